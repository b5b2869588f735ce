"""The runner's promises: order of durable writes, retries, absences, nothing that lasts for an unknown unit."""

from __future__ import annotations

import time

import pytest

from hal.call import Call, Cancel
from hal.errors import (
    Aborted,
    DeadlineExceeded,
    DeviceBusy,
    DeviceGone,
    DeviceRefused,
    HallmarkError,
    IdentityConflict,
    PeerUnavailable,
    PinRejected,
    ProtocolViolation,
    RecipeError,
    StoreUnavailable,
    TokenAbsent,
    VerifyMismatch,
)
from station import runner
from station.runner import DEVICE_TRIES, SILENT_TRIES
from tests.runner_parts import Deed, Joining, Stage, boards, gone, order, plan, without_pauses


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    without_pauses(monkeypatch)
    return Stage()


@pytest.fixture
def device() -> set[str]:
    return set()


# --- order ------------------------------------------------------------------------------------------------------


def test_an_intent_is_durable_before_its_deed_and_the_result_after_the_look(
    stage: Stage, device: set[str]
) -> None:
    stage.run(plan(Joining("join", stage, device), Deed("a", stage, device), Deed("b", stage, device)))
    assert stage.said == [
        *("enter", "join key", "done s.join"),
        *("probe a", "begin s.a", "apply a", "probe a", "done s.a"),
        *("probe b", "begin s.b", "apply b", "probe b", "finish s.b"),
    ]


def test_what_the_device_shows_already_is_not_done_again(stage: Stage, device: set[str]) -> None:
    device |= {"a", "b"}
    stage.run(plan(Joining("join", stage, device), Deed("a", stage, device), Deed("b", stage, device)))
    assert not any(said.startswith(("begin", "apply")) for said in stage.said)
    assert stage.found == {"s.join": True, "s.a": True}
    assert stage.said[-1] == "finish s.b"


def test_a_pass_is_the_last_thing_and_only_the_last_action_finishes(stage: Stage, device: set[str]) -> None:
    one, two = plan(Joining("join", stage, device), use="one"), plan(Deed("a", stage, device), use="two")
    stage.run(one, two)
    assert [said for said in stage.said if said.startswith("finish")] == ["finish two.a"]
    assert stage.said[-1] == "finish two.a"


def test_an_action_that_leaves_no_trace_is_no_success(stage: Stage, device: set[str]) -> None:
    with pytest.raises(VerifyMismatch, match="does not show what was just done"):
        stage.run(plan(Deed("a", stage, device, sticks=False)))
    assert stage.said.count("apply a") == 2
    assert "finish s.a" not in stage.said


def test_a_board_that_restarted_and_forgot_what_it_had_not_kept_is_told_once_more(
    stage: Stage, device: set[str]
) -> None:
    """As with settings that are in RAM until they are saved: its port stayed, and nobody noticed the restart."""
    deed = Deed("a", stage, device, sticks=False)
    others = iter([set(), {"a"}])  # what it shows after the first and the second time
    deed._doing = lambda _: device.update(next(others))
    stage.run(plan(deed))
    assert stage.said == ["enter", "probe a", "begin s.a", *("apply a", "probe a") * 2, "finish s.a"]


def test_facts_go_to_the_journal_and_to_later_steps(stage: Stage, device: set[str]) -> None:
    trip = stage.trip()
    joined = Joining("join", stage, device, facts={"registration_id": "r1"})
    stage.run(plan(joined, Deed("a", stage, device)), trip=trip)
    assert stage.facts["s.join"] == {"registration_id": "r1"}
    assert trip.text("registration_id") == "r1"


def test_nothing_that_lasts_is_done_to_a_board_that_is_no_unit_yet(stage: Stage, device: set[str]) -> None:
    with pytest.raises(RecipeError, match="before the unit is known"):
        stage.run(plan(Deed("a", stage, device, repeatable=False), Joining("join", stage, device)))
    assert stage.said == ["enter"]


@pytest.mark.parametrize("when", ["begin s.a", "done s.a", "finish s.b"])
def test_what_cannot_be_made_durable_ends_the_visit_there(stage: Stage, device: set[str], when: str) -> None:
    stage.fails[when] = [StoreUnavailable("disk full")]
    with pytest.raises(StoreUnavailable):
        stage.run(plan(Deed("a", stage, device), Deed("b", stage, device)))
    assert stage.said[-1] == when
    assert ("apply a" in stage.said) == (when != "begin s.a")


# --- retries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [DeviceBusy, DeadlineExceeded, ProtocolViolation])
@pytest.mark.parametrize("when", ["enter", "probe a", "apply a"])
def test_a_device_that_errs_is_asked_again_from_the_probe_on(
    stage: Stage, device: set[str], error: type[HallmarkError], when: str
) -> None:
    stage.fails[when] = [error("noise")]
    stage.run(plan(Deed("a", stage, device)))
    assert stage.said.count("probe a") >= 2
    assert stage.said[-1] == "finish s.a"
    assert any("noise" in note and error.default_hint in note for note in stage.notes)
    if when == "apply a":  # the answer got lost, the deed was done: the device is the truth
        assert stage.said.count("apply a") == 1


@pytest.mark.parametrize(
    ("error", "tries"),
    [(ProtocolViolation, DEVICE_TRIES), (DeviceBusy, DEVICE_TRIES), (DeadlineExceeded, SILENT_TRIES)],
)
def test_a_device_gets_a_few_tries_and_then_its_verdict(
    stage: Stage, device: set[str], error: type[HallmarkError], tries: int
) -> None:
    stage.fails["probe a"] = [error("noise") for _ in range(20)]
    with pytest.raises(error):
        stage.run(plan(Deed("a", stage, device)))
    assert stage.said.count("probe a") == tries


@pytest.mark.parametrize("error", [DeviceGone, DeviceRefused, VerifyMismatch, IdentityConflict, PinRejected])
def test_what_no_repetition_mends_is_not_repeated(
    stage: Stage, device: set[str], error: type[HallmarkError]
) -> None:
    stage.fails["apply a"] = [error("no")]
    with pytest.raises(error):
        stage.run(plan(Deed("a", stage, device)))
    assert stage.said.count("probe a") == 1


@pytest.mark.parametrize("error", [PeerUnavailable, TokenAbsent])
def test_the_stations_own_parts_get_the_time_of_a_restart(
    stage: Stage, device: set[str], error: type[HallmarkError]
) -> None:
    stage.fails["ask a"] = [error("away") for _ in range(3 * DEVICE_TRIES)]

    def away(trip: object) -> None:
        del trip
        stage.say("ask a")

    stage.run(plan(Deed("a", stage, device, doing=away)))
    assert stage.said.count("ask a") == 3 * DEVICE_TRIES + 1
    assert stage.said[-1] == "finish s.a"


def test_even_the_stations_own_parts_do_not_get_for_ever(
    stage: Stage, device: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "STATION_PATIENCE", 0.1)
    stage.fails["probe a"] = [TokenAbsent("away") for _ in range(100_000)]
    began = time.monotonic()
    with pytest.raises(TokenAbsent):
        stage.run(plan(Deed("a", stage, device)))
    assert time.monotonic() - began < 5


def test_a_cancel_ends_a_pause_between_tries_with_its_reason(
    stage: Stage, device: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "FIRST_PAUSE", 60.0)
    monkeypatch.setattr(runner, "LONGEST_PAUSE", 60.0)
    cancel = Cancel()

    def doing(trip: object) -> None:
        del trip
        cancel.set(Aborted("drained"))
        raise DeviceBusy("held")

    deed = Deed("a", stage, device, doing=doing)
    with pytest.raises(Aborted, match="drained"):
        stage.run(plan(deed), trip=stage.trip(call=Call(cancel=cancel)))


def test_each_phase_has_its_own_time_within_the_visits(stage: Stage, device: set[str]) -> None:
    left: list[float] = []
    deed = Deed("a", stage, device, doing=lambda trip: left.append(trip.call.remaining()))
    deed.seconds = 7.0
    trip = stage.trip(call=Call())
    stage.run(plan(deed), trip=trip)
    assert 6.0 < left[0] <= 7.0
    assert trip.call.remaining() == float("inf")


# --- absences ---------------------------------------------------------------------------------------------------


def test_a_declared_absence_is_told_before_the_deed_and_the_look_is_at_what_came_back(
    stage: Stage, device: set[str]
) -> None:
    stage.run(plan(Deed("boot", stage, device, absence=5.0)))
    assert order(
        stage.said, "begin s.boot", "absent 5", "apply boot", "return", "probe boot", "finish s.boot"
    )


def test_a_board_that_goes_before_it_answers_is_looked_for(stage: Stage, device: set[str]) -> None:
    stage.fails["apply boot"] = [gone()]
    stage.fails["return"] = [gone(), DeviceBusy("not there yet")]
    stage.run(plan(Deed("boot", stage, device, absence=5.0)))
    assert stage.said.count("return") == 3
    assert stage.said[-1] == "finish s.boot"


def test_a_board_that_stays_away_is_gone_when_its_time_is_over(stage: Stage, device: set[str]) -> None:
    stage.fails["return"] = [gone() for _ in range(100_000)]
    began = time.monotonic()
    with pytest.raises(DeviceGone):
        stage.run(plan(Deed("boot", stage, device, absence=0.2, sticks=False)))
    assert time.monotonic() - began < 3


def test_removal_outside_of_an_absence_is_the_end(stage: Stage, device: set[str]) -> None:
    stage.fails["apply a"] = [gone()]
    with pytest.raises(DeviceGone):
        stage.run(plan(Deed("a", stage, device)))
    assert "return" not in stage.said


def test_another_board_that_comes_back_is_a_conflict(stage: Stage, device: set[str]) -> None:
    stage.board = boards("SN-2")
    trip = stage.trip()
    trip.facts["board_serial"] = "SN-1"
    with pytest.raises(IdentityConflict, match="another board came back"):
        stage.run(plan(Deed("boot", stage, device, absence=5.0)), trip=trip)
    assert "finish s.boot" not in stage.said


def test_the_same_board_that_comes_back_goes_on(stage: Stage, device: set[str]) -> None:
    stage.board = boards("SN-1")
    trip = stage.trip()
    trip.facts["board_serial"] = "SN-1"
    stage.run(plan(Deed("boot", stage, device, absence=5.0)), trip=trip)
    assert stage.said[-1] == "finish s.boot"
