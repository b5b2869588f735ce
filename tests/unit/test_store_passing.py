"""PASS is one transaction; secrets stay sealed or wrapped; certificates, work orders and outbox keep their rules."""

from __future__ import annotations

import functools
from pathlib import Path

import apsw
import pytest

from hal.errors import (
    ConfigError,
    DuplicateKey,
    EkMismatch,
    Outcome,
    ProtocolViolation,
    QuotaSpent,
    StationError,
)
from station import messages
from station.store import Store
from station.wire import Problem
from tests import store_parts as parts


def test_a_pass_counts_queues_and_forgets_in_one(store: Store, store_path: Path) -> None:
    store.load_work_orders([("WO-1", parts.SKU, 5)])
    parts.trip(store, 1, sinks=["dps", "site"])
    assert parts.rows(store_path, parts.HALVES) == []
    assert parts.rows(store_path, "SELECT count(*) FROM resume_copies") == [(0,)]
    assert parts.rows(store_path, "SELECT count(*) FROM escrows") == [(1,)]
    assert store.depth().queued == 2
    (order,) = store.work_orders()
    assert (order.passed, order.attempts, order.left) == (1, 1, 4)


def test_a_returning_unit_with_the_same_enrollment_adds_nothing(store: Store) -> None:
    store.load_work_orders([("WO-1", parts.SKU, 5)])
    for _ in range(3):
        parts.trip(store, 1)
    assert len(store.outbox_items(10)) == 2
    (order,) = store.work_orders()
    assert (order.passed, order.attempts) == (1, 3)


def test_other_content_takes_the_place_of_what_was_not_sent_yet(store: Store) -> None:
    parts.trip(store, 1)
    visit = parts.plug(store)
    parts.join(store, visit, 1)
    store.finish(visit, "enroll", "queue", {}, parts.enrollment(1, "reworked"), ["dps"], b"")
    assert [row.state for row in store.outbox_items(10) if row.kind == "enrollment"] == [
        "superseded",
        "queued",
    ]
    assert [item.enrollment for item in store.lease("dps", 10, "me")] == [parts.enrollment(1, "reworked")]


def test_a_spent_work_order_stops_a_new_unit_at_join_but_not_a_counted_one(store: Store) -> None:
    store.load_work_orders([("WO-1", parts.SKU, 1)])
    parts.trip(store, 1)
    left = store.work_order_left(parts.SKU)
    assert left is not None
    assert left.left == 0
    with pytest.raises(QuotaSpent, match="WO-1"):
        parts.join(store, parts.plug(store), 2)
    parts.trip(store, 1)
    store.load_work_orders([("WO-1", parts.SKU, 1), ("WO-2", parts.SKU, 1)])
    parts.trip(store, 2)
    assert [(order.id, order.passed) for order in store.work_orders()] == [("WO-1", 1), ("WO-2", 1)]


def test_boards_in_nests_reserve_their_share(store: Store) -> None:
    store.load_work_orders([("WO-1", parts.SKU, 1)])
    first = parts.plug(store, "A")
    with pytest.raises(QuotaSpent):
        parts.join(store, parts.plug(store, "B"), 2)
    store.fail(first, None, None, "DeviceGone", "", "", Outcome.ABORTED)
    parts.trip(store, 2, "B")


def test_a_work_order_keeps_its_sku_and_rests_when_it_is_not_named(store: Store) -> None:
    store.load_work_orders([("WO-1", parts.SKU, 1)])
    with pytest.raises(ConfigError, match="WO-1"):
        store.load_work_orders([("WO-1", "other", 1)])
    assert [order.sku for order in store.work_orders()] == [parts.SKU]
    store.load_work_orders([])
    assert store.work_order_left(parts.SKU) is None


def test_a_pass_without_enrollment_leaves_the_unit_open_and_its_copy(store: Store) -> None:
    visit = parts.plug(store)
    parts.join(store, visit, 1)
    store.protect(visit, parts.ek_name(1), ["owner"], b"sealed", b"wrapped")
    store.finish(visit, "check", "all", {}, b"", [], b"")
    visit = parts.plug(store)
    unit = parts.join(store, visit, 1)
    assert unit.resumable
    assert store.resume_copy(visit, parts.ek_name(1)) == (1, b"wrapped")
    assert store.units(1)[0].state == "open"


def test_an_enrollment_needs_a_sink_and_a_failure_changes_nothing(store: Store, store_path: Path) -> None:
    visit = parts.plug(store)
    parts.join(store, visit, 1)
    with pytest.raises(ConfigError):
        store.finish(visit, "enroll", "queue", {}, b"{}", [], b"archive")
    assert parts.rows(
        store_path, "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM actions)"
    ) == [(0,)]


def test_secrets_are_for_the_joined_units_own_ek_only(store: Store) -> None:
    visit = parts.plug(store)
    with pytest.raises(StationError, match="no unit yet"):
        store.protect(visit, parts.ek_name(1), ["owner"], b"s", b"w")
    parts.join(store, visit, 1)
    assert store.resume_copy(visit, parts.ek_name(1)) is None
    store.protect(visit, parts.ek_name(1), ["owner"], b"s", b"w")
    other = parts.plug(store, "B")
    parts.join(store, other, 2)
    for act in (
        lambda: store.resume_copy(other, parts.ek_name(1)),
        lambda: store.protect(other, parts.ek_name(1), ["owner"], b"s", b"w"),
        lambda: store.resume_copy(visit, parts.ek_name(2)),
    ):
        with pytest.raises(EkMismatch):
            act()


def test_generations_grow_and_all_copies_stay_until_the_pass(store: Store) -> None:
    visit = parts.plug(store)
    unit = parts.join(store, visit, 1)
    name = parts.ek_name(1)
    assert store.next_generation(name) == 1
    assert store.protect(visit, name, ["owner"], b"s1", b"w1", 1) == 1
    assert store.protect(visit, name, ["owner", "lockout"], b"s2", b"w2", 2) == 2
    with pytest.raises(StationError, match="its turn is 3"):
        store.protect(visit, name, ["owner"], b"s", b"w", 2)
    assert store.resume_copies(visit, name) == [(2, b"w2"), (1, b"w1")]
    back = parts.join(store, visit, 1)
    assert (back.escrowed, back.resumable) == (["lockout", "owner"], True)
    record = store.unit(unit.unit)
    assert record is not None
    assert [(item.generation, item.sealed) for item in record.escrows] == [(1, b"s1"), (2, b"s2")]


def _execute(statement: str, db: apsw.Connection) -> None:
    db.execute(statement)


@pytest.mark.parametrize("table", ["escrows", "audit"])
def test_escrows_and_audit_rows_are_never_changed_or_deleted(store: Store, table: str) -> None:
    parts.trip(store, 1)
    for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET unit = NULL"):
        with pytest.raises(StationError, match="append-only"):
            store._writable.writer.run(functools.partial(_execute, statement))


def test_a_deleted_copy_is_in_no_file_any_more(store: Store, store_path: Path) -> None:
    visit = parts.plug(store)
    parts.join(store, visit, 1)
    mark = b"wrapped copy that has to go " * 300
    store.protect(visit, parts.ek_name(1), ["owner"], b"sealed", mark)
    store.finish(visit, "enroll", "queue", {}, b"{}", ["dps"], b"")
    wal = store_path.with_name("station.db-wal")
    for _ in range(100):
        if wal.stat().st_size == 0:
            break
        store.wait_change(store.changes(), 0.05)
    for file in (store_path, wal):
        assert mark[:28] not in file.read_bytes()


def test_one_certificate_per_unit_and_one_unit_per_key_and_serial(store: Store) -> None:
    visit = parts.plug(store)
    unit = parts.join(store, visit, 1).unit
    assert store.certificate(unit) is None
    store.record_certificate(visit, "p", parts.chain(1))
    store.record_certificate(visit, "p", parts.chain(1))
    assert store.certificate(unit) == parts.chain(1)
    with pytest.raises(DuplicateKey, match="already has another"):
        store.record_certificate(visit, "p", parts.chain(5))
    other = parts.plug(store, "B")
    parts.join(store, other, 2)
    for stolen in (parts.chain(1, serial=77), parts.chain(2, serial=1001)):
        with pytest.raises(DuplicateKey, match="another unit's"):
            store.record_certificate(other, "p", stolen)
    with pytest.raises(ProtocolViolation, match="can't be read"):
        store.record_certificate(other, "p", [b"rubbish"])


def _problem(code: str) -> Problem:
    return Problem(code, "it said no", "look at it")


def test_a_row_is_held_by_one_and_comes_back_when_its_holder_goes(store: Store) -> None:
    parts.trip(store, 1)
    (item,) = store.lease("dps", 10, "one")
    assert store.lease("dps", 10, "two") == []
    assert store.lease("site", 10, "two") == []
    with pytest.raises(ProtocolViolation, match="not leased"):
        store.report([messages.Outcome(item.seq)], "two")
    store.release("one")
    assert store.lease("dps", 10, "two") == [item]


def test_outcomes_retry_park_and_acknowledge(store: Store) -> None:
    for board in (1, 2, 3):
        parts.trip(store, board)
    one, two, three = store.lease("dps", 10, "me")
    store.report(
        [
            messages.Outcome(one.seq, etag='"e"', sent=b'{"sent":1}'),
            messages.Outcome(two.seq, problem=_problem("Throttled")),
            messages.Outcome(three.seq, problem=_problem("Rejected")),
        ],
        "me",
    )
    depth = store.depth()
    assert (depth.queued, depth.parked, depth.acknowledged, store.leased) == (1, 1, 1, 0)
    assert depth.last_upload is not None
    (again,) = store.lease("dps", 10, "me")
    assert (again.seq, again.tries) == (two.seq, 1)
    store.requeue(three.seq, "alice")
    with pytest.raises(LookupError):
        store.requeue(three.seq, "alice")
    assert [item.seq for item in store.lease("dps", 10, "me")] == [three.seq]
    record = store.unit("board-1")
    assert record is not None
    assert record.outbox[0].sent == b'{"sent":1}'


def test_an_unknown_problem_parks_rather_than_repeats_for_ever(store: Store) -> None:
    parts.trip(store, 1)
    (item,) = store.lease("dps", 1, "me")
    store.report([messages.Outcome(item.seq, problem=_problem("Nonsense"))], "me")
    assert store.depth().parked == 1


def test_rows_that_keep_failing_do_not_starve_the_rest(store: Store) -> None:
    for board in (1, 2, 3):
        parts.trip(store, board)
    (poison,) = store.lease("dps", 1, "me")
    store.report([messages.Outcome(poison.seq, problem=_problem("Throttled"))], "me")
    assert poison.seq not in [item.seq for item in store.lease("dps", 2, "me")]


def test_a_receipt_counts_for_a_row_that_was_superseded_meanwhile(store: Store) -> None:
    parts.trip(store, 1)
    (old,) = store.lease("dps", 1, "me")
    visit = parts.plug(store)
    parts.join(store, visit, 1)
    store.finish(visit, "enroll", "queue", {}, parts.enrollment(1, "new"), ["dps"], b"")
    assert store.lease("dps", 1, "me") == [], "the older one is still on its way"
    store.report([messages.Outcome(old.seq, etag="e")], "me")
    (new,) = store.lease("dps", 1, "me")
    assert new.enrollment == parts.enrollment(1, "new")
    assert store.depth().acknowledged == 1


def test_a_batch_fits_into_a_frame(store: Store) -> None:
    for board in range(1, 13):
        visit = parts.plug(store)
        parts.join(store, visit, board, [])
        store.finish(visit, "enroll", "queue", {}, bytes([board]) * 60_000, ["dps"], b"")
    assert 1 < len(store.lease("dps", 100, "me")) < 12


def test_units_are_found_by_the_beginning_of_an_identifier_page_by_page(store: Store) -> None:
    for board in range(1, 6):
        visit = parts.plug(store)
        parts.join(store, visit, board)
    assert [unit.registration_id for unit in store.units(10, query="SN-3")] == ["board-3"]
    assert [unit.registration_id for unit in store.units(10, query="board-2")] == ["board-2"]
    assert store.units(10, query="%") == []
    first = store.units(2)
    assert [unit.registration_id for unit in first] == ["board-5", "board-4"]
    assert [unit.registration_id for unit in store.units(10, first[-1].unit)] == [
        "board-3",
        "board-2",
        "board-1",
    ]
