"""Read-only connections for everything that only looks: few, shared, and each question bounded in time.

A reader that takes long would keep the WAL from being emptied, so it is stopped. Nothing here can write.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import apsw

from hal.errors import StoreUnavailable
from station.store.database import open_reader, storage_error

T = TypeVar("T")

CONNECTIONS: Final = 4
TIME_LIMIT: Final = 2.0
"""Seconds that one question may take, and that it may wait for a connection."""
CHECK_EVERY: Final = 5000
"""SQLite virtual machine instructions between two looks at the clock (about 0.1 ms)."""


class Readers:
    """Up to four connections, opened when first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = threading.Event()
        self._idle: queue.LifoQueue[apsw.Connection | None] = queue.LifoQueue()
        for _ in range(CONNECTIONS):
            self._idle.put(None)

    def read(self, question: Callable[[apsw.Connection], T], limit: float = TIME_LIMIT) -> T:
        """`question(connection)` over one consistent snapshot; StoreUnavailable when it takes over `limit` seconds."""
        if self._closed.is_set():
            raise StoreUnavailable("the store is closed")
        try:
            db = self._idle.get(timeout=limit)
        except queue.Empty:
            raise StoreUnavailable("too many questions to the store at once") from None
        try:
            db = db or open_reader(self._path)
            return _ask(db, question, time.monotonic() + limit)
        except apsw.Error as error:
            raise storage_error(error) from error
        finally:
            self._idle.put(db)

    def close(self) -> None:
        """Closes them once their questions are answered."""
        if self._closed.is_set():
            return
        self._closed.set()
        for _ in range(CONNECTIONS):
            db = self._idle.get()
            if db is not None:
                db.close()


def _ask(db: apsw.Connection, question: Callable[[apsw.Connection], T], deadline: float) -> T:
    db.set_progress_handler(lambda: time.monotonic() > deadline, CHECK_EVERY)
    db.execute("BEGIN")
    try:
        return question(db)
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
