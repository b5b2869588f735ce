"""What is acknowledged stays, and nothing stays in half: power cuts at any moment, kills at any write."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import apsw
import pytest

from hal.errors import HallmarkError
from station.messages import Outcome
from station.store import Store, audit, database
from tests import audit_parts
from tests import store_crash as crash
from tests import store_parts as parts
from tests.unit.test_audit_store import records_of
from tests.unit.test_audit_tree import plain_root

NAME = "station.db"
BALLAST = 4096


def scenario(path: Path, promise: Callable[[str], None]) -> None:
    """Two units' trips, an upload, a checkpoint, and another open: every kind of write that the store makes."""
    with Store.open(path, ballast=BALLAST) as store:
        store.recover()
        store.load_work_orders([("WO-1", parts.SKU, 10)])
        promise("order")
        store._write(many_records)
        for board in (1, 2):
            parts.trip(store, board)
            promise(f"passed board-{board}")
            promise(f"signed {audit_parts.sign(store).size}")
        (first, *_) = store.lease("dps", 10, "me")
        store.report([Outcome(first.seq, etag="e", sent=b"{}")], "me")
        promise(f"uploaded {first.registration_id}")
        store.release("me")
    with Store.open(path, ballast=BALLAST) as store:
        visit = parts.plug(store)
        parts.join(store, visit, 3)
        promise("joined board-3")


def many_records(db: apsw.Connection, now: int) -> None:
    """So many that a hash of 256 of them is kept, at a write of the units' trips."""
    for number in range(240):
        audit.append(db, now, "tested", fields={"number": number})


def judge(path: Path, promised: list[object]) -> None:
    """Opens what is left as a station would, and compares it with what was promised."""
    with Store.open(path, ballast=BALLAST) as store:
        store.recover()
        units = {unit.registration_id: unit for unit in store.units(100)}
        acknowledged = {row.registration_id for row in store.outbox_items(100, state="acknowledged")}
        orders = store.work_orders()
        events = store.events(0, 500)
        signed = [item.size for item in store.audit_checkpoints(0)]
        records = records_of(path)
        assert store.audit_root(len(records)) == plain_root(records), "the tree is not the records' one"
        assert all(leaf.sound for leaf in store.audit_leaves(0))
        assert all(item.root == plain_root(records[: item.size]) for item in store.audit_checkpoints(0))
    for promise in promised:
        word, *rest = str(promise).split()
        if word == "order":
            assert [order.id for order in orders] == ["WO-1"]
        elif word == "passed":
            assert units[rest[0]].state == "passed"
        elif word == "signed":
            assert int(rest[0]) in signed
        elif word == "uploaded":
            assert rest[0] in acknowledged
        else:
            assert rest[0] in units
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert parts.rows(path, parts.HALVES) == []
    assert parts.rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert parts.rows(path, "PRAGMA foreign_key_check") == []


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> list[crash.Op]:
    found: list[crash.Op] = []
    recorder = crash.Recorder(found.append)
    try:
        folder = tmp_path_factory.mktemp("recorded")
        scenario(folder / NAME, lambda token: found.append(crash.Op("ack", token=token)))
    finally:
        recorder.unregister()
    return found


def test_the_recording_saw_the_whole_scenario(log: list[crash.Op]) -> None:
    assert sum(op.kind == "ack" for op in log) == 7
    assert {op.file for op in log if op.kind == "write"} >= {NAME, f"{NAME}-wal", f"{NAME}-journal"}
    assert any(op.kind == "sync" and op.file == NAME for op in log), "no checkpoint"


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0], ids=["nothing", "some sectors", "everything"])
def test_after_a_power_cut_all_that_was_promised_is_there(
    log: list[crash.Op], tmp_path: Path, chance: float
) -> None:
    """`chance`: how much of what was not synced reached the disk. Everything: as if only the process was killed."""
    # Where a promise or a sync is near, each moment counts; in between a sample does.
    near = {at + by for at, op in enumerate(log) if op.kind in ("ack", "sync", "delete") for by in (0, 1)}
    dice = random.Random(7)
    moments = sorted(dice.sample(sorted(near), min(len(near), 150)) + dice.sample(range(len(log)), 50))
    for moment in moments:
        folder = tmp_path / str(moment)
        folder.mkdir(exist_ok=True)
        judge(folder / NAME, crash.image(log, moment, folder, crash.sectors(chance, moment)))


def test_these_images_tell_when_the_settings_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With synchronous=FULL the deletion of the rollback journal isn't synced: it comes back and undoes the store."""
    right = database._prepare_writer

    def wrong(db: apsw.Connection) -> None:
        db.pragma("synchronous", "FULL")
        db.pragma("journal_mode", "WAL")
        right(db)

    monkeypatch.setattr(database, "_prepare_writer", wrong)
    found: list[crash.Op] = []
    recorder = crash.Recorder(found.append)
    try:
        (tmp_path / "recorded").mkdir()
        scenario(tmp_path / "recorded" / NAME, lambda token: found.append(crash.Op("ack", token=token)))
    finally:
        recorder.unregister()
    monkeypatch.setattr(database, "_prepare_writer", right)
    lost = 0
    for moment in range(0, len(found), 10):
        folder = tmp_path / str(moment)
        folder.mkdir()
        try:
            judge(folder / NAME, crash.image(found, moment, folder, crash.sectors(0.0, moment)))
        except (AssertionError, KeyError, HallmarkError):
            lost += 1
    assert lost


def test_a_station_killed_at_any_write_finds_all_that_it_promised(
    tmp_path: Path, log: list[crash.Op]
) -> None:
    """Real kills, shared memory file and all."""
    operations = sum(op.kind != "ack" for op in log)
    for at in random.Random(11).sample(range(1, operations * 9 // 10), 16):
        path = tmp_path / str(at) / NAME
        path.parent.mkdir()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # no pytest in here: whatever happens, it ends at once
            _run_until_killed(path, writer, at)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            promised = pipe.read().splitlines()
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        judge(path, list(promised))


def _run_until_killed(path: Path, promises: int, at: int) -> NoReturn:
    def promise(token: str) -> None:
        os.write(promises, f"{token}\n".encode())

    try:
        killer = crash.Recorder(crash.Killer(at))
        scenario(path, promise)
        killer.unregister()
    finally:
        os._exit(1)
