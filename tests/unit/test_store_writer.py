"""Opening, sharing commits, bounded reads, full disks: what the store promises below its rules."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from hal.errors import Outcome, StationError, StoreUnavailable
from station.store import Store, database, schema
from tests import store_parts as parts


def _blocking(waiting: threading.Event, hold: threading.Event) -> Callable[[apsw.Connection], bool]:
    """Work that keeps the writer busy, so that others queue up behind it."""

    def work(db: apsw.Connection) -> bool:
        waiting.set()
        return hold.wait(10)

    return work


def test_callers_share_commits_and_each_is_durable(store: Store, store_path: Path) -> None:
    writer = store._writable.writer
    hold, waiting = threading.Event(), threading.Event()
    blocker = threading.Thread(target=writer.run, args=(_blocking(waiting, hold),))
    blocker.start()
    assert waiting.wait(10)
    threads = [threading.Thread(target=store.append_event, args=(f"from-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    while writer._jobs.qsize() < len(threads):
        threading.Event().wait(0.001)
    before = writer.groups
    hold.set()
    for thread in (blocker, *threads):
        thread.join(10)
    assert writer.groups - before == 2, "the blocker's own, and one for all eight"
    kinds = {kind for (kind,) in parts.rows(store_path, "SELECT kind FROM audit")}
    assert kinds == {f"from-{n}" for n in range(8)}


def test_an_error_undoes_its_callers_work_alone(store: Store) -> None:
    writer = store._writable.writer
    hold, waiting = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def bad(db: apsw.Connection) -> None:
        db.execute("INSERT INTO audit (at, kind, fields, leaf) VALUES (1, 'half', '{}', zeroblob(32))")
        raise ValueError("odd")

    def call() -> None:
        try:
            writer.run(bad)
        except ValueError as error:
            failures.append(error)

    threads = [
        threading.Thread(target=writer.run, args=(_blocking(waiting, hold),)),
        *(threading.Thread(target=target) for target in (call, lambda: store.append_event("good"), call)),
    ]
    threads[0].start()
    assert waiting.wait(10)
    for thread in threads[1:]:
        thread.start()
    while writer._jobs.qsize() < 3:
        threading.Event().wait(0.001)
    hold.set()
    for thread in threads:
        thread.join(10)
    assert len(failures) == 2
    assert [event.kind for event in store.events(0, 10)] == ["good"]


def test_a_transaction_that_sqlite_gave_up_is_lost_for_all_in_it_and_the_next_works(store: Store) -> None:
    def give_up(db: apsw.Connection) -> None:
        db.execute("INSERT INTO audit (at, kind, fields, leaf) VALUES (1, 'half', '{}', zeroblob(32))")
        db.execute("ROLLBACK")
        raise apsw.FullError("as SQLite does")

    with pytest.raises(StoreUnavailable, match="disk is full"):
        store._writable.writer.run(give_up)
    store.append_event("next")
    assert [event.kind for event in store.events(0, 10)] == ["next"]


def test_events_arrive_in_order_without_gaps_while_many_write(store: Store) -> None:
    threads = [
        threading.Thread(target=lambda: [store.append_event("tick") for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    seen: list[int] = []
    while len(seen) < 200:
        assert store.wait_event(len(seen), 10)
        seen += [event.seq for event in store.events(seen[-1] if seen else 0, 500)]
    for thread in threads:
        thread.join()
    assert seen == list(range(1, 201))
    assert not store.wait_event(200, 0.01)


def test_closing_commits_what_is_queued_and_refuses_the_rest(store_path: Path) -> None:
    store = Store.open(store_path, ballast=4096)
    threads = [threading.Thread(target=store.append_event, args=("late",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.append_event("too late")
    assert not store_path.with_name("station.db-wal").exists(), "an orderly end leaves one file"
    assert parts.rows(store_path, "SELECT count(*) FROM audit") == [(8,)]


def test_a_second_station_is_refused_and_a_killed_ones_lock_is_gone(store_path: Path) -> None:
    with Store.open(store_path, ballast=4096):
        with pytest.raises(StationError, match="another station has this store open"):
            Store.open(store_path, ballast=4096)
        with Store.open(store_path, readonly=True) as reader:
            assert reader.units(10) == []
    Store.open(store_path, ballast=4096).close()


def test_a_read_only_store_writes_nothing(store: Store, store_path: Path) -> None:
    parts.trip(store, 1)
    with Store.open(store_path, readonly=True) as reader:
        assert reader.last_event() == store.last_event()
        with pytest.raises(StationError, match="read only"):
            reader.append_event("x")
        with pytest.raises(StoreUnavailable, match="readonly"):
            reader._readers.read(lambda db: db.execute("DELETE FROM outbox"))


def test_a_question_that_takes_too_long_is_stopped_and_the_next_is_answered(store: Store) -> None:
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(StoreUnavailable, match="too long"):
        store._readers.read(lambda db: db.execute(endless).get, limit=0.1)
    assert store.units(1) == []


@pytest.mark.parametrize("found", ["3.40.1", "3.7.0", "3.51.2"])
def test_a_sqlite_that_can_lose_commits_is_refused(found: str) -> None:
    with pytest.raises(StationError, match=f"SQLite {found}"):
        database.check_sqlite(found)
    database.check_sqlite("3.51.3")
    database.check_sqlite("4.0.0")


def _schema(path: Path) -> list[tuple[str, ...]]:
    return parts.rows(path, "SELECT type, name, sql FROM sqlite_schema ORDER BY type, name")


@pytest.mark.parametrize("version", range(len(schema.MIGRATIONS) + 1))
def test_a_store_of_each_version_becomes_the_newest(tmp_path: Path, version: int) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    db = apsw.Connection(str(old))
    schema.migrate(db, schema.MIGRATIONS[:version])
    assert schema.version(db) == version
    db.close()
    for path in (old, new):
        with Store.open(path, ballast=4096) as store:
            parts.trip(store, 1)
    assert _schema(old) == _schema(new)
    assert parts.rows(old, "PRAGMA user_version") == [(len(schema.MIGRATIONS),)]


def test_a_migration_that_fails_leaves_the_version_before(tmp_path: Path) -> None:
    db = apsw.Connection(str(tmp_path / "station.db"))
    schema.migrate(db)
    with pytest.raises(apsw.SQLError):
        schema.migrate(db, (*schema.MIGRATIONS, "CREATE TABLE half (x); SELECT nonsense;"))
    assert schema.version(db) == len(schema.MIGRATIONS)
    assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").get == 0


def test_a_newer_store_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    newer, foreign, rubbish = tmp_path / "newer.db", tmp_path / "foreign.db", tmp_path / "rubbish.db"
    Store.open(newer, ballast=4096).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with sqlite3.connect(foreign) as connection:
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    rubbish.write_bytes(b"no database at all" * 500)
    for path, match in ((newer, "version 99"), (foreign, "no Hallmark store"), (rubbish, "can't be read")):
        with pytest.raises(StationError, match=match):
            Store.open(path, ballast=4096)
    with pytest.raises(StationError, match="version 99"):
        Store.open(newer, readonly=True)


class _FullFile(apsw.VFSFile):
    def __init__(self, vfs: _FullDisk, name: apsw.URIFilename | str | None, flags: list[int]) -> None:
        self._vfs = vfs
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - apsw's name
        if self._vfs.full and self._vfs.ballast.exists():
            raise apsw.FullError("no space left")
        super().xWrite(data, offset)


class _FullDisk(apsw.VFS):
    """Once `full`, nothing more is written while the ballast takes the last room."""

    def __init__(self, ballast: Path) -> None:
        self.ballast = ballast
        self.full = False
        super().__init__("full-disk", "unix", makedefault=True)

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's name
        return _FullFile(self, name, flags)


@pytest.fixture
def disk(store_path: Path) -> Iterator[_FullDisk]:
    found = _FullDisk(store_path.with_suffix(".ballast"))
    yield found
    found.unregister()


# SQLite's own report of the failed write, through apsw, once the error is raised as ours.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_on_a_full_disk_nothing_is_half_done_and_what_is_open_can_still_be_closed(
    disk: _FullDisk, store_path: Path
) -> None:
    with Store.open(store_path, ballast=4096) as store:
        visit = parts.plug(store)
        parts.join(store, visit, 1)
        disk.full = True
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="disk is full"):
                store.finish(visit, "enroll", "queue", {}, b"{}", ["dps"], b"archive")
        assert store.depth().queued == 0
        assert store.fail(visit, "enroll", "queue", "StoreUnavailable", "disk full", "", Outcome.ERROR)
        assert not disk.ballast.exists(), "it gave its room to the verdict"
        disk.full = False
        parts.trip(store, 1)
        assert disk.ballast.exists(), "made again when there is room"
        assert parts.rows(store_path, parts.HALVES) == []


def test_no_visit_begins_when_there_is_no_room_to_end_it(store_path: Path) -> None:
    with Store.open(store_path, ballast=1 << 60) as store:
        with pytest.raises(StoreUnavailable, match="nearly full"):
            parts.plug(store)
        store.append_event("goes on")
        assert not store.release_ballast()
