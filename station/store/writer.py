"""The one thread that writes: it commits what callers have queued as one group, and lets them go when that is durable.

Each caller's work runs inside its own SAVEPOINT, so an error in it undoes that work alone. Housekeeping (checkpoints,
scrubbing) happens here too, but between groups. What the work does is not known here.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import apsw

from hal.errors import StoreUnavailable
from station.store.database import READ_WAIT_MS, storage_error

T = TypeVar("T")
Work = Callable[[apsw.Connection], T]

GROUP_LIMIT: Final = 256
"""Callers in one commit: more only makes the first of them wait longer."""
IDLE: Final = 0.05
"""Seconds without work after which housekeeping may start."""
CHECKPOINT_PAGES: Final = 1000
"""WAL pages (4 KiB) from which an idle moment is used for a checkpoint: SQLite's own default."""
URGENT_PAGES: Final = 16_000
"""WAL pages from which a checkpoint no longer waits for an idle moment (64 MiB)."""
HOUSEKEEPING_RETRY: Final = 1.0
"""Seconds until housekeeping that failed (readers in the way, disk full) is tried again."""


@dataclass(slots=True, eq=False)
class _Job:
    work: Work[Any]
    future: Future[Any] = field(default_factory=Future)
    value: Any = None
    error: BaseException | None = None


class _GroupLostError(Exception):
    """SQLite has rolled back the whole transaction by itself (disk full, I/O error)."""


class Writer:
    """Owns the writing connection from `start` to `close`. `committed` is called after each group, on this thread."""

    def __init__(self, db: apsw.Connection, committed: Callable[[apsw.Connection], None]) -> None:
        self._db = db
        self._committed = committed
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._wal_pages = 0
        self._scrub_due = threading.Event()
        self._not_before = 0.0
        self._closed = False
        self._state_lock = threading.Lock()
        self.groups = 0
        """Commits so far: with the number of callers it tells how well they share them."""
        self.trouble: str | None = None
        """Why the last housekeeping failed, None when it did not."""
        db.set_wal_hook(self._on_wal)
        self._thread = threading.Thread(target=self._main, name="store-writer", daemon=True)
        self._thread.start()

    def run(self, work: Work[T]) -> T:
        """`work(connection)`: its value once that is durable; if it raises, it is undone and the error comes here."""
        job = _Job(work)
        with self._state_lock:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            self._jobs.put(job)
        value: T = job.future.result()
        return value

    def scrub(self) -> None:
        """Empties the WAL soon: something was deleted that should not linger in it."""
        self._scrub_due.set()
        with self._state_lock:
            if not self._closed:
                # An empty commit costs nothing, and wakes the thread when it waits without a limit.
                self._jobs.put(_Job(lambda _: None))

    def close(self) -> bool:
        """Commits what is queued, ends the thread, closes the connection. False when that was done before."""
        with self._state_lock:
            if self._closed:
                return False
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        self._db.close()
        return True

    # --- on the writer's thread --------------------------------------------------------------------------------

    def _main(self) -> None:
        last = False
        while not last:
            group, last = self._next_group()
            if group:
                self._commit(group)
            if not last and self._housekeeping_due(idle=not group):
                self._housekeep()

    def _next_group(self) -> tuple[list[_Job], bool]:
        wanted = self._scrub_due.is_set() or self._wal_pages > CHECKPOINT_PAGES
        wait = max(IDLE, self._not_before - time.monotonic()) if wanted else None
        try:
            job = self._jobs.get(timeout=wait)
        except queue.Empty:
            return [], False
        group: list[_Job] = []
        while job is not None:
            group.append(job)
            if len(group) == GROUP_LIMIT or self._jobs.empty():
                return group, False
            job = self._jobs.get()
        return group, True

    def _commit(self, group: list[_Job]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for job in group:
                self._attempt(job)
            self._db.execute("COMMIT")
        except (apsw.Error, _GroupLostError) as error:
            self._lose(group, error)
            return
        self.groups += 1
        self._committed(self._db)
        for job in group:
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.value)

    def _attempt(self, job: _Job) -> None:
        self._db.execute("SAVEPOINT job")
        try:
            job.value = job.work(self._db)
        except BaseException as error:  # whatever the work raised belongs to its caller
            job.error = storage_error(error) if isinstance(error, apsw.Error) else error
            if not self._db.in_transaction:
                raise _GroupLostError from error
            self._db.execute("ROLLBACK TO job")
        self._db.execute("RELEASE job")

    def _lose(self, group: list[_Job], error: Exception) -> None:
        cause = error.__cause__ if isinstance(error, _GroupLostError) else error
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        for job in group:
            # An error of its own for each: exceptions collect tracebacks, and callers are on different threads.
            problem = storage_error(cause) if isinstance(cause, apsw.Error) else StoreUnavailable(str(cause))
            job.future.set_exception(problem)

    def _on_wal(self, db: apsw.Connection, name: str, pages: int) -> int:
        del db, name
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _housekeeping_due(self, *, idle: bool) -> bool:
        if time.monotonic() < self._not_before:
            return False
        return idle or self._wal_pages > URGENT_PAGES

    def _housekeep(self) -> None:
        scrub = self._scrub_due.is_set()
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if scrub else apsw.SQLITE_CHECKPOINT_PASSIVE
        self._scrub_due.clear()
        # No waiting for readers: callers would wait with us.
        self._db.set_busy_timeout(0)
        try:
            total, moved = self._db.wal_checkpoint(mode=mode)
        except apsw.Error as error:
            self.trouble = str(error)
            self._not_before = time.monotonic() + HOUSEKEEPING_RETRY
            if scrub:
                self._scrub_due.set()
        else:
            self.trouble = None
            if moved >= total:
                self._wal_pages = 0
            else:
                self._not_before = time.monotonic() + HOUSEKEEPING_RETRY
        finally:
            self._db.set_busy_timeout(READ_WAIT_MS)
