"""What the signer remembers of audit trails: of each the head that it signed last, so that none is ever taken back.

Works inside the ledger's transactions. Whether a new head may be signed is decided in `checkpoints`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import apsw

TRAILS: Final = """
    CREATE TABLE trails (
        origin TEXT PRIMARY KEY NOT NULL,
        size INTEGER NOT NULL CHECK (size >= 0),
        root BLOB NOT NULL CHECK (length(root) = 32),
        note BLOB,                                            -- NULL until signed
        key BLOB,                                             -- DER SubjectPublicKeyInfo that signed it
        intended_at INTEGER NOT NULL,                         -- Unix seconds
        closed_at INTEGER,
        closed_why TEXT
    ) STRICT;
    CREATE UNIQUE INDEX trails_one_open ON trails (closed_at IS NULL) WHERE closed_at IS NULL;
    CREATE TRIGGER trails_keep_rows BEFORE DELETE ON trails
        BEGIN SELECT raise(ABORT, 'what was signed is not forgotten'); END;
    CREATE TRIGGER trails_only_grow BEFORE UPDATE ON trails
        WHEN new.origin <> old.origin OR new.size < old.size OR old.closed_at IS NOT NULL
          OR (new.size = old.size AND new.root <> old.root)
        BEGIN SELECT raise(ABORT, 'what was signed is not taken back'); END;
"""
"""A migration of the ledger."""


@dataclass(frozen=True, slots=True)
class Trail:
    """`note` is None when the head was about to be signed and no signature is known. `closed`: why, or None."""

    origin: str
    size: int
    root: bytes
    note: bytes | None
    key: bytes | None
    closed: str | None


def current(db: apsw.Connection) -> Trail | None:
    """The trail that checkpoints are signed of, None before the first."""
    return _one(db, "closed_at IS NULL", ())


def of(db: apsw.Connection, origin: str) -> Trail | None:
    return _one(db, "origin = ?", (origin,))


def intend(db: apsw.Connection, origin: str, size: int, root: bytes, now: int) -> None:
    """The head that is about to be signed."""
    db.execute(
        "INSERT INTO trails (origin, size, root, intended_at) VALUES (?, ?, ?, ?) ON CONFLICT (origin) DO UPDATE"
        " SET size = excluded.size, root = excluded.root, note = NULL, key = NULL, intended_at = excluded.intended_at",
        (origin, size, root, now),
    )


def keep(db: apsw.Connection, origin: str, size: int, note: bytes, key: bytes) -> None:
    """The signature over the intended head."""
    db.execute("UPDATE trails SET note = ?, key = ? WHERE origin = ? AND size = ?", (note, key, origin, size))


def close(db: apsw.Connection, why: str, now: int) -> Trail | None:
    """Ends the current trail, so that another may begin; which it was, None when there is none."""
    found = current(db)
    if found is not None:
        db.execute(
            "UPDATE trails SET closed_at = ?, closed_why = ? WHERE origin = ?", (now, why, found.origin)
        )
    return found


def _one(db: apsw.Connection, where: str, given: tuple[str, ...]) -> Trail | None:
    row = db.execute(
        f"SELECT origin, size, root, note, key, closed_why FROM trails WHERE {where}",  # noqa: S608 - constants
        given,
    ).fetchone()
    return None if row is None else Trail(*row)
