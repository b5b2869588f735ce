"""Which unit a board is: strong identifiers name it, claims only contradict."""

from __future__ import annotations

from pathlib import Path

import pytest

from hal.errors import IdentityConflict, Outcome, ProtocolViolation, Quarantined, StationError
from station.store import Store
from tests import store_parts as parts


def end(store: Store, visit: str) -> None:
    store.fail(visit, "flash", "write", "DeviceGone", "unplugged", "plug it in", Outcome.ABORTED)


def test_a_board_that_comes_back_is_the_same_unit_with_its_facts(store: Store) -> None:
    first = parts.plug(store)
    store.begin(first, "flash", "write")
    store.done(first, "flash", "write", {"version": "1.4.2", "digest": b"\0\xff", "parts": [b"a"], "n": 3})
    made = parts.join(store, first, 1)
    store.begin(first, "tpm-ownership", "lockout")
    end(store, first)
    again = parts.join(store, parts.plug(store, "B"), 1)
    assert not made.returning
    assert again.returning
    assert again.unit == made.unit
    assert again.facts == {"flash.write": {"version": "1.4.2", "digest": b"\0\xff", "parts": [b"a"], "n": 3}}
    assert again.intents == ["tpm-ownership.lockout"]


def test_a_lost_database_finds_the_same_unit_again(tmp_path: Path) -> None:
    units = []
    for name in ("before.db", "after.db"):
        with Store.open(tmp_path / name, ballast=4096) as store:
            units.append(parts.join(store, parts.plug(store), 7).unit)
    assert units[0] == units[1]


def test_what_was_done_before_the_join_belongs_to_the_unit(store: Store, store_path: Path) -> None:
    visit = parts.plug(store)
    store.begin(visit, "flash", "write")
    unit = parts.join(store, visit, 1)
    assert unit.intents == ["flash.write"]
    store.done(visit, "flash", "write", {})
    assert parts.rows(store_path, "SELECT unit FROM actions") == [(unit.unit,)]


def test_a_cloned_ek_on_a_board_with_another_serial_is_refused(store: Store) -> None:
    parts.trip(store, 1)
    with pytest.raises(
        IdentityConflict, match=r"board-1 is on record with serial 'SN-1', this board says 'SN-2'"
    ):
        parts.join(store, parts.plug(store), 1, [("serial", "SN-2")])


def test_a_cloned_ek_in_two_nests_at_once_is_refused(store: Store) -> None:
    parts.join(store, parts.plug(store, "A"), 1)
    with pytest.raises(IdentityConflict, match="board-1 is in nest A right now"):
        parts.join(store, parts.plug(store, "B"), 1)


def test_two_units_parts_on_one_board_are_refused(store: Store) -> None:
    parts.trip(store, 1)
    visit = parts.plug(store)
    parts.join(store, visit, 2, [])
    end(store, visit)
    with pytest.raises(
        IdentityConflict, match="this board is unit board-2, but its serial 'SN-1' is unit board-1's"
    ):
        parts.join(store, parts.plug(store), 2, [("serial", "SN-1")])


def test_a_board_may_tell_more_macs_later_but_not_only_others(store: Store) -> None:
    for claimed in (["a"], ["a", "b"], ["b"]):
        visit = parts.plug(store)
        parts.join(store, visit, 1, [("mac", mac) for mac in claimed])
        end(store, visit)
    with pytest.raises(IdentityConflict, match="mac 'a', 'b', this board says 'c'"):
        parts.join(store, parts.plug(store), 1, [("mac", "c")])


def test_a_registration_id_belongs_to_one_unit(store: Store) -> None:
    parts.trip(store, 1)
    with pytest.raises(IdentityConflict, match="registration ID board-1"):
        store.join(parts.plug(store), "key", "ab" * 32, "board-1", [])


def test_a_unit_keeps_its_registration_id_and_sku(store: Store) -> None:
    parts.trip(store, 1)
    with pytest.raises(IdentityConflict, match="now has board-9"):
        store.join(parts.plug(store), "ek-name", parts.ek_name(1).hex(), "board-9", [])
    with pytest.raises(IdentityConflict, match="is a gw-200, this nest makes gw-300"):
        parts.join(store, parts.plug(store, sku="gw-300"), 1)


def test_after_an_absence_another_board_in_the_nest_is_refused(store: Store) -> None:
    visit = parts.plug(store)
    parts.join(store, visit, 1)
    assert parts.join(store, visit, 1).returning
    with pytest.raises(IdentityConflict, match="another board is in the nest"):
        parts.join(store, visit, 2)


def test_a_quarantined_unit_says_why_until_it_is_released(store: Store) -> None:
    unit = parts.trip(store, 1).unit
    store.set_quarantine("board-1", "burnt smell", "alice")
    with pytest.raises(Quarantined, match="burnt smell"):
        parts.join(store, parts.plug(store), 1)
    store.set_quarantine(unit, None, "bob")
    assert parts.join(store, parts.plug(store), 1).returning
    with pytest.raises(LookupError, match="isn't in quarantine"):
        store.set_quarantine(unit, None, "bob")
    with pytest.raises(LookupError, match="no unit"):
        store.set_quarantine("nobody", "x", "bob")


@pytest.mark.parametrize(
    ("kind", "value", "registration_id", "claimed"),
    [
        ("serial", "SN-1", "board-1", []),
        ("ek-name", "XY", "board-1", []),
        ("key", "AB" * 32, "board-1", []),
        ("key", "ab" * 32, "../etc", []),
        ("key", "ab" * 32, "Board", []),
        ("key", "ab" * 32, "board-1", [("ek-name", "000b" + "00" * 32)]),
        ("key", "ab" * 32, "board-1", [("serial", "x" * 129)]),
        ("key", "ab" * 32, "board-1", [("serial", "")]),
        ("key", "ab" * 32, "board-1", [("mac", str(n)) for n in range(33)]),
    ],
)
def test_identifiers_that_are_none_are_refused(
    store: Store, kind: str, value: str, registration_id: str, claimed: list[tuple[str, str]]
) -> None:
    with pytest.raises(ProtocolViolation):
        store.join(parts.plug(store), kind, value, registration_id, claimed)
    assert store.units(10) == []


def test_a_closed_visit_takes_nothing_more_and_keeps_its_verdict(store: Store) -> None:
    visit = parts.plug(store)
    parts.join(store, visit, 1)
    end(store, visit)
    for act in (
        lambda: store.begin(visit, "a", "b"),
        lambda: store.done(visit, "a", "b", {}),
        lambda: parts.join(store, visit, 1),
        lambda: store.finish(visit, "a", "b", {}, b"x", ["dps"], b""),
    ):
        with pytest.raises(StationError, match="isn't open"):
            act()
    assert not store.fail(visit, None, None, "X", "late", "", Outcome.ERROR)
    record = store.unit("board-1")
    assert record is not None
    assert [item.outcome for item in record.visits] == ["ABORTED"]


def test_visits_left_open_by_a_crash_are_aborted_and_their_units_go_on(store_path: Path) -> None:
    with Store.open(store_path, ballast=4096) as store:
        parts.join(store, parts.plug(store), 1)
    with Store.open(store_path, ballast=4096) as store:
        assert len(store.recover()) == 1
        assert store.recover() == []
        assert parts.join(store, parts.plug(store), 1).returning


def test_a_new_board_in_the_nest_ends_the_visit_before(store: Store) -> None:
    first = parts.plug(store)
    second = parts.plug(store)
    assert [first.rsplit(".", 1)[-1], second.rsplit(".", 1)[-1]] == ["1", "2"]
    with pytest.raises(StationError, match="isn't open"):
        store.begin(first, "a", "b")


def test_beginning_again_takes_back_an_earlier_result(store: Store) -> None:
    visit = parts.plug(store)
    parts.join(store, visit, 1)
    store.begin(visit, "a", "b")
    store.done(visit, "a", "b", {"x": 1})
    store.begin(visit, "a", "b")
    end(store, visit)
    unit = parts.join(store, parts.plug(store), 1)
    assert unit.intents == ["a.b"]
    assert unit.facts == {}


def test_facts_of_other_types_are_refused(store: Store) -> None:
    visit = parts.plug(store)
    for value in (1.5, {"a": "b"}, ["a", b"b"], "x" * 200_000):
        with pytest.raises(ProtocolViolation):
            store.done(visit, "a", "b", {"x": value})  # type: ignore[dict-item]
