"""Vendors' lists on their way into the store: copied to the station's own folder, checked there, taken in page by page.

The command line puts a list here; the running station takes it in beside its visits, or, while none runs, the command
does so itself. A list counts whole or not at all.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import apsw
import structlog
from msgspec import Struct

from hal.errors import Aborted, ConfigError, HallmarkError, StationError
from station.signed import SUFFIX, Signer
from station.store import Store
from station.store.database import fsync_directory
from station.trust import ek_list

INCOMING: Final = "incoming"
ENDING: Final = ".jsonl"
PAGE: Final = 5000
"""EK Names of one transaction: some milliseconds of the store's one writer."""
SORT_CACHE_KIB: Final = 16 * 1024
Signers = Callable[[], tuple[Signer, ...]]


class Taken(Struct, frozen=True):
    """`new` is false for a list that was there already."""

    lot: str
    entries: int
    new: bool


def put(folder: Path, source: Path) -> Path:
    """Copies a list and its signature into `folder`/incoming, the signature last; the copy's path.

    What is read and checked is this copy: nobody but the station's user and root can change it meanwhile.
    """
    incoming = folder / INCOMING
    try:
        incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(suffix=ENDING, dir=incoming)
        target = Path(name)
        with os.fdopen(descriptor, "wb") as stream, source.open("rb") as original:
            shutil.copyfileobj(original, stream)
            stream.flush()
            os.fsync(stream.fileno())
        half = target.with_name(target.name + ".half")
        shutil.copyfile(source.with_name(source.name + SUFFIX), half)
        _hand_over(incoming, target, half)
        half.replace(target.with_name(target.name + SUFFIX))
        fsync_directory(incoming)
    except OSError as error:
        raise StationError(
            f"{error.filename or source} can't be read or copied: {os.strerror(error.errno or 0)}",
            hint="Run it as root or as the station's user; the signature has to be beside the list.",
        ) from error
    return target


def remove(path: Path) -> None:
    for suffix in (SUFFIX, ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def take_in(
    store: Store, path: Path, signers: tuple[Signer, ...], stopping: Callable[[], bool] = lambda: False
) -> Taken:
    """The list at `path` into the store. ConfigError when it doesn't hold or is older than its lot's; Aborted when
    `stopping` says so in the middle: then nothing of it counts.
    """
    with ek_list.opened(path) as listed, tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        signer = listed.signer(signers)
        header, digest = listed.header, listed.sha256()
        created = int(header.created.timestamp() * 1000)
        names = _Sorted(Path(scratch) / "names", path)
        try:
            names.fill(entry.name for entry in listed.entries())
            number = store.begin_ek_list(
                header.lot, header.vendor, created, header.count, digest, signer.name
            )
            if number is None:
                return Taken(header.lot, header.count, new=False)
            for page in names.pages():
                if stopping():
                    raise Aborted("the station stopped while it took in an EK list")
                store.add_ek_list_entries(number, page)
        finally:
            names.close()
        store.finish_ek_list(number)
        return Taken(header.lot, header.count, new=True)


def sweep(store: Store, stopping: Callable[[], bool] = lambda: False) -> None:
    """Removes what superseded and broken-off lists left. Not while a list is being taken in."""
    after: bytes | None = b""
    while after is not None and not stopping():
        after = store.sweep_ek_lists(after)


class Intake:
    """Takes in what lies in `incoming`, on a thread of its own. `look` often, `stop` once."""

    def __init__(self, folder: Path, store: Store, signers: Signers) -> None:
        self._incoming, self._store, self._signers = folder / INCOMING, store, signers
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._swept = False
        self._log = structlog.get_logger()

    def look(self) -> None:
        """Starts on what is there, unless it is at it."""
        if self._thread is not None and self._thread.is_alive():
            return
        if not self._swept or any(self._complete()):
            self._thread = threading.Thread(target=self._run, name="ek-lists")
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _complete(self) -> Iterator[Path]:
        return (
            path for path in self._incoming.glob(f"*{ENDING}") if path.with_name(path.name + SUFFIX).exists()
        )

    def _run(self) -> None:
        try:
            for path in sorted(self._complete()):
                self._take(path)
            sweep(self._store, self._stopping.is_set)
            self._swept = True
        except HallmarkError as error:
            self._log.error("EK lists", code=error.code, reason=str(error), hint=error.hint)

    def _take(self, path: Path) -> None:
        fields: dict[str, str | int | bool | None] = {"file": path.name}
        try:
            taken = take_in(self._store, path, self._signers(), self._stopping.is_set)
        except Aborted:
            raise  # it lies there still, and is taken in after the next start
        except HallmarkError as error:
            fields |= {"code": error.code, "message": str(error), "hint": error.hint}
            self._store.append_event("ek-list-refused", fields=fields)
        else:
            fields |= {"lot": taken.lot, "entries": taken.entries, "new": taken.new}
            self._store.append_event("ek-list-taken", fields=fields)
        remove(path)


class _Sorted:
    """EK Names on disk, sorted without holding them all: the store's tree is then written leaf by leaf."""

    def __init__(self, path: Path, source: Path) -> None:
        self._source = source
        self._db = apsw.Connection(str(path))
        self._db.pragma("journal_mode", "OFF")
        self._db.pragma("synchronous", "OFF")
        self._db.pragma("cache_size", -SORT_CACHE_KIB)
        self._db.execute("CREATE TABLE names (name BLOB NOT NULL) STRICT")

    def fill(self, names: Iterator[bytes]) -> None:
        """ConfigError when one comes twice."""
        with self._db:
            self._db.executemany("INSERT INTO names VALUES (?)", ((name,) for name in names))
        try:
            self._db.execute("CREATE UNIQUE INDEX by_name ON names (name)")
        except apsw.ConstraintError as error:
            raise ConfigError("names an EK twice", file=str(self._source)) from error

    def pages(self) -> Iterator[list[bytes]]:
        cursor = self._db.execute("SELECT name FROM names ORDER BY name")
        while page := [name for (name,) in itertools.islice(cursor, PAGE)]:
            yield page

    def close(self) -> None:
        self._db.close()


def _hand_over(incoming: Path, *files: Path) -> None:
    """What root has put there belongs to the station's user, as the folder around it does."""
    if os.geteuid() == 0:
        owner = incoming.parent.parent.stat()
        for path in (incoming.parent, incoming, *files):
            os.chown(path, owner.st_uid, owner.st_gid)
