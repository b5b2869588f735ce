"""The emulated service's records in one SQLite file, so that a restart keeps them. One writer at a time, by a lock."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]
KINDS: Final = ("enrollment", "group", "registration", "identity")
"""Records by what they are: individual enrollments, groups, registration states, TPM identity keys."""


class Store:
    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS records (kind TEXT, id TEXT, body TEXT NOT NULL, PRIMARY KEY (kind, id)) STRICT"
        )
        self.revision = 0
        """Counts changes in this process: whoever keeps something made of the records asks whether it is still good."""

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, durable when it ends, and alone."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
            self.revision += 1

    def get(self, kind: str, name: str) -> Json | None:
        with self._lock:
            row = self._db.execute(
                "SELECT body FROM records WHERE kind = ? AND id = ?", (kind, name.lower())
            ).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, kind: str, name: str, body: Json) -> None:
        with self._lock:
            self._db.execute(
                "INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (kind, name.lower(), json.dumps(body))
            )

    def delete(self, kind: str, name: str) -> None:
        with self._lock:
            self._db.execute("DELETE FROM records WHERE kind = ? AND id = ?", (kind, name.lower()))

    def count(self, kind: str) -> int:
        with self._lock:
            (found,) = self._db.execute("SELECT count(*) FROM records WHERE kind = ?", (kind,)).fetchone()
        return int(found)

    def page(self, kind: str, after: str, limit: int) -> list[tuple[str, Json]]:
        """At most `limit` records with an ID behind `after`, by ID."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, body FROM records WHERE kind = ? AND id > ? ORDER BY id LIMIT ?",
                (kind, after, limit),
            ).fetchall()
        return [(name, json.loads(body)) for name, body in rows]

    def all(self, kind: str) -> list[Json]:
        return [body for _, body in self.page(kind, "", -1)]
