"""Opening the database file so that what is acknowledged stays: settings in order, one station, a known SQLite.

Also the one place where SQLite's errors become ours. No queries, no threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

import apsw

from hal.errors import StationError, StoreUnavailable
from station.store import audit_tree, schema

MINIMUM_SQLITE: Final = (3, 51, 3)
"""3.7.0 to 3.51.2 can lose acknowledged commits in WAL mode (sqlite.org/wal.html, "WAL-reset bug")."""
READ_WAIT_MS: Final = 2000
"""How long a reader waits for the moment in which a writer resets the WAL."""
STORAGE_ERRORS: Final = (
    apsw.FullError,
    apsw.IOError,
    apsw.CantOpenError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.ReadOnlyError,
    apsw.NoMemError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.PermissionsError,
    apsw.AuthError,
    apsw.InterruptError,
)


def storage_error(error: apsw.Error) -> StationError:
    """SQLite's error as ours: StoreUnavailable when disk or file is the cause, else StationError (our own fault)."""
    if isinstance(error, apsw.FullError):
        return StoreUnavailable("the disk is full: nothing was recorded", hint=FULL_HINT)
    if isinstance(error, apsw.InterruptError):
        return StoreUnavailable("a question to the store took too long and was stopped")
    if isinstance(error, STORAGE_ERRORS):
        return StoreUnavailable(f"the store can't be read or written: {error}")
    return StationError(f"the store refused a record: {error}")


FULL_HINT: Final = "Free disk space; nothing was lost, and the boards go on when plugged in again."


def check_sqlite(found: str | None = None) -> None:
    """StationError when the SQLite that apsw carries is one that can lose commits."""
    text = found or apsw.sqlite_lib_version()
    if tuple(int(part) for part in text.split(".")) < MINIMUM_SQLITE:
        wanted = ".".join(map(str, MINIMUM_SQLITE))
        raise StationError(
            f"SQLite {text} can lose acknowledged records; {wanted} or newer is needed",
            hint="Install Hallmark's locked dependencies again: apsw brings its own SQLite.",
        )


class StationLock:
    """At most one station per store: an flock beside the database, dropped by the kernel when the process ends.

    Beside it, not on it: closing any descriptor of the database file would drop SQLite's own POSIX locks on it.
    """

    def __init__(self, database: Path) -> None:
        path = database.with_suffix(".lock")
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _os_error(error, path) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            if error.errno != errno.EWOULDBLOCK:
                raise _os_error(error, path) from error
            raise StationError(
                "another station has this store open",
                hint="One station per installation: stop the other one, or give this one a --root of its own.",
            ) from error

    def release(self) -> None:
        os.close(self._fd)


def open_writer(path: Path) -> apsw.Connection:
    """The one writing connection, migrated, durable from its first commit on. The caller holds the `StationLock`."""
    check_sqlite()
    try:
        # An empty file is a valid empty database; SQLite gives -wal and -shm the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise _os_error(error, path) from error
    try:
        db = apsw.Connection(str(path))
        try:
            _prepare_writer(db)
            fsync_directory(path.parent)
            schema.migrate(db)
            audit_tree.complete(db)
        except BaseException:
            db.close()
            raise
    except apsw.Error as error:
        raise storage_error(error) from error
    return db


def _prepare_writer(db: apsw.Connection) -> None:
    db.set_busy_timeout(READ_WAIT_MS)
    # EXTRA first: with less, the rollback journal of the switch to WAL can come back after a power cut and undo it.
    db.pragma("synchronous", "EXTRA")
    if db.pragma("journal_mode", "WAL") != "wal":
        raise StoreUnavailable(
            "the store's file system does not support SQLite's WAL (shared memory is needed)"
        )
    # Checkpoints are the writer's own, between groups: never inside a caller's commit.
    db.wal_autocheckpoint(0)
    db.pragma("foreign_keys", True)
    db.pragma("secure_delete", True)
    _harden(db)


def open_reader(path: Path) -> apsw.Connection:
    """A connection that can only read. The station may write meanwhile."""
    check_sqlite()
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        db.set_busy_timeout(READ_WAIT_MS)
        db.pragma("query_only", True)
        _harden(db)
        found = schema.version(db)
    except apsw.Error as error:
        raise storage_error(error) from error
    if found != len(schema.MIGRATIONS):
        db.close()
        raise StationError(
            f"the store has version {found}, this Hallmark reads version {len(schema.MIGRATIONS)}",
            hint="Start the station once: it brings an older store up to date.",
        )
    return db


def _harden(db: apsw.Connection) -> None:
    # Not what untrusted text could reach here, but free: sqlite.org/security.html.
    db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    db.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    db.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
    db.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)


def fsync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _os_error(error: OSError, path: Path) -> StoreUnavailable:
    return StoreUnavailable(f"{path.name} can't be opened: {os.strerror(error.errno or 0)}")
