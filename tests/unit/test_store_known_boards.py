"""A board whose identity is in doubt: both sides wait, a person decides, the answer is carried out."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from hal.errors import IdentityConflict, Outcome, Quarantined, StationError
from station import messages
from station.store import Store
from station.store.decisions import Decision
from station.store.known_boards import CHOICES
from tests import store_parts as parts


def state(store: Store, name: str) -> str:
    record = store.unit(name)
    assert record is not None
    return record.summary.state


def end(store: Store, visit: str) -> None:
    store.fail(visit, "tpm-identity", "join", "IdentityConflict", "x", "y", Outcome.REFUSED)


def another_ek(store: Store) -> Decision:
    """Board 1 is made; then something with its serial shows board 2's EK."""
    parts.trip(store, 1)
    visit = parts.plug(store)
    with pytest.raises(IdentityConflict, match=r"known board with another EK.*SN-1.*board-1") as refused:
        parts.join(store, visit, 2, [("serial", "SN-1")])
    assert "hallmark decisions" in refused.value.hint
    end(store, visit)
    (asked,) = store.decisions(10, waiting=True)
    return asked


def test_both_sides_of_another_ek_wait_and_neither_joins_nor_is_uploaded(store: Store) -> None:
    asked = another_ek(store)
    assert (asked.kind, asked.choices) == ("another-ek", list(CHOICES["another-ek"]))
    assert (state(store, "board-1"), state(store, "board-2")) == ("quarantined", "quarantined")
    assert store.lease("dps", 10, "uploader") == []
    for board in (1, 2):
        with pytest.raises(Quarantined, match="another EK"):
            parts.join(store, parts.plug(store), board)
    kinds = [event.kind for event in store.events(0, 500)]
    assert {"decision-asked", "quarantined", "identity-conflict", "quarantine-refused"} <= set(kinds)


def test_the_same_board_again_asks_no_second_question(store: Store) -> None:
    asked = another_ek(store)
    with pytest.raises(Quarantined):
        parts.join(store, parts.plug(store), 2, [("serial", "SN-1")])
    assert store.decisions(10) == [asked]


def test_a_replaced_tpm_retires_the_old_unit_and_the_new_one_takes_its_claims(store: Store) -> None:
    asked = another_ek(store)
    made = store.decide(asked.id, "replaced", "TPM swapped in rework 17", "alice")
    assert (made.answer, made.by) == ("replaced", "alice")
    assert (state(store, "board-1"), state(store, "board-2")) == ("retired", "open")
    assert parts.join(store, parts.plug(store), 2, parts.claims(1)).returning
    with pytest.raises(Quarantined, match=r"out for good.*decision 1"):
        parts.join(store, parts.plug(store, "B"), 1)
    assert store.lease("dps", 10, "uploader") == [], "what was queued for the retired unit is not sent"
    retired = next(event for event in store.events(0, 500) if event.kind == "retired")
    assert retired.detail["by"] == "alice"


def test_a_retired_unit_that_a_service_has_is_named_for_withdrawal(store: Store) -> None:
    parts.trip(store, 1)
    (item,) = store.lease("dps", 10, "me")
    store.report([messages.Outcome(item.seq, etag="e")])
    with pytest.raises(IdentityConflict):
        parts.join(store, parts.plug(store), 2, [("serial", "SN-1")])
    store.decide(1, "replaced", "swapped", "alice")
    retired = next(event for event in store.events(0, 500) if event.kind == "retired")
    assert retired.detail["to_withdraw_at"] == "dps"


def test_two_boards_with_one_serial_both_go_on_and_ask_nothing_more(store: Store) -> None:
    asked = another_ek(store)
    store.decide(asked.id, "two-boards", "the maker printed one label twice", "alice")
    for board in (1, 2, 1, 2):
        visit = parts.plug(store)
        assert parts.join(store, visit, board, [("serial", "SN-1")]).returning
        end(store, visit)
    assert store.decisions(10, waiting=True) == []
    assert len(store.lease("dps", 10, "uploader")) == 1


def test_a_rejected_newcomer_is_retired_and_the_known_unit_goes_on(store: Store) -> None:
    store.decide(another_ek(store).id, "reject", "forged label", "alice")
    assert (state(store, "board-1"), state(store, "board-2")) == ("passed", "retired")


def test_another_serial_waits_and_is_a_changed_part_or_a_clone(store: Store) -> None:
    parts.trip(store, 1)
    visit = parts.plug(store)
    with pytest.raises(
        IdentityConflict, match=r"board-1 is on record with serial 'SN-1', this board says 'SN-2'"
    ):
        parts.join(store, visit, 1, [("serial", "SN-2")])
    end(store, visit)
    assert state(store, "board-1") == "quarantined"
    store.decide(1, "same-board", "new label", "alice")
    visit = parts.plug(store)
    assert parts.join(store, visit, 1, [("serial", "SN-2")]).returning
    end(store, visit)
    visit = parts.plug(store)
    with pytest.raises(IdentityConflict, match="'SN-2', this board says 'SN-1'"):
        parts.join(store, visit, 1, [("serial", "SN-1")])
    end(store, visit)
    store.decide(2, "clone", "two boards on the bench", "bob")
    assert state(store, "board-1") == "retired"


def test_one_identity_in_two_nests_stops_both_visits(store: Store) -> None:
    first = parts.plug(store, "A")
    parts.join(store, first, 1)
    second = parts.plug(store, "B")
    with pytest.raises(IdentityConflict, match="board-1 is in nest A right now"):
        parts.join(store, second, 1)
    with pytest.raises(Quarantined, match="nest A right now"):
        store.begin(first, "certificate", "key")
    with pytest.raises(Quarantined):
        store.finish(first, "enroll", "queue", {}, parts.enrollment(1), ["dps"], b"a")
    end(store, first)
    end(store, second)
    store.decide(1, "same-board", "the cable was moved", "alice")
    assert parts.join(store, parts.plug(store), 1).returning


def test_a_board_that_was_moved_is_waited_for_until_its_first_nest_has_noticed(store: Store) -> None:
    first = parts.plug(store, "A")
    parts.join(store, first, 1)
    second = parts.plug(store, "B")
    noticed = threading.Timer(0.2, end, (store, first))
    noticed.start()
    store.await_elsewhere_closed(second, "ek-name", parts.ek_name(1).hex(), 20)
    assert parts.join(store, second, 1).returning
    noticed.join()
    began = time.monotonic()
    store.await_elsewhere_closed(parts.plug(store, "C"), "ek-name", parts.ek_name(1).hex(), 0.1)
    assert 0.1 <= time.monotonic() - began < 10


def test_two_units_parts_on_one_board_wait_until_the_part_is_said_to_have_moved(store: Store) -> None:
    parts.trip(store, 1)
    visit = parts.plug(store)
    parts.join(store, visit, 2, [])
    end(store, visit)
    visit = parts.plug(store)
    with pytest.raises(
        IdentityConflict, match="this board is unit board-2, but its serial 'SN-1' is unit board-1's"
    ):
        parts.join(store, visit, 2, [("serial", "SN-1")])
    end(store, visit)
    assert (state(store, "board-1"), state(store, "board-2")) == ("quarantined", "quarantined")
    store.decide(1, "moved", "carrier board moved", "alice")
    assert parts.join(store, parts.plug(store), 2, [("serial", "SN-1")]).returning
    assert state(store, "board-1") == "passed"


def test_only_the_answer_ends_a_quarantine_that_waits_for_one(store: Store) -> None:
    another_ek(store)
    for board in ("board-1", "board-2"):
        with pytest.raises(StationError, match="waits for decision 1"):
            store.set_quarantine(board, None, "operator")
    store.decide(1, "two-boards", "x", "alice")
    assert state(store, "board-1") == "passed"


def test_a_unit_that_was_aside_for_another_reason_stays_aside(store: Store) -> None:
    parts.trip(store, 1)
    visit = parts.plug(store)
    parts.join(store, visit, 2, [])
    end(store, visit)
    store.set_quarantine("board-1", "burnt smell", "alice")
    with pytest.raises(IdentityConflict):
        parts.join(store, parts.plug(store), 2, [("serial", "SN-1")])
    store.decide(1, "moved", "x", "alice")
    assert (state(store, "board-1"), state(store, "board-2")) == ("quarantined", "open")


@pytest.mark.parametrize(
    ("choice", "reason", "error"),
    [("maybe", "x", ValueError), ("replaced", " ", ValueError), ("replaced", "x" * 501, ValueError)],
)
def test_an_answer_needs_a_choice_and_a_reason(
    store: Store, choice: str, reason: str, error: type[Exception]
) -> None:
    asked = another_ek(store)
    with pytest.raises(error):
        store.decide(asked.id, choice, reason, "alice")
    assert store.decisions_waiting() == 1


def test_an_answer_stands(store: Store, store_path: Path) -> None:
    asked = another_ek(store)
    store.decide(asked.id, "two-boards", "x", "alice")
    with pytest.raises(LookupError, match="answered already"):
        store.decide(asked.id, "reject", "y", "bob")
    with pytest.raises(LookupError, match="no decision 99"):
        store.decide(99, "reject", "y", "bob")
    store.use_decision(asked.id)
    with pytest.raises(LookupError):
        store.use_decision(asked.id)
    assert parts.rows(store_path, "SELECT answer, by FROM decisions") == [("two-boards", "alice")]


def test_a_question_and_its_answer_outlive_a_restart(store_path: Path) -> None:
    with Store.open(store_path, ballast=4096) as store:
        asked = store.ask("tpm-owned", "ek 1", "somebody owns this TPM", ["clear", "reject"])
        assert store.ask("tpm-owned", "ek 1", "again", ["clear", "reject"]) == asked
    with Store.open(store_path, ballast=4096) as store:
        store.decide(asked.id, "clear", "returned from the lab", "alice")
    with Store.open(store_path, ballast=4096) as store:
        found = store.decision("tpm-owned", "ek 1")
        assert found is not None
        assert (found.answer, found.used_at) == ("clear", None)
        assert store.ask("tpm-owned", "ek 1", "owned again", ["clear"]).id != asked.id
