"""Ownership over whole visits, on a real (software) TPM and a real store: taken, resumed, reworked, cleared, and what
the link carried meanwhile."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.swtpm.process import SwtpmProcess
from drivers.tpm.tss import ESYS_TR
from hal.call import Call
from hal.errors import (
    AlreadyOwned,
    DeadlineExceeded,
    DeviceGone,
    HallmarkError,
    OfficerNeeded,
    PlatformOpen,
    Quarantined,
)
from hal.interfaces import Custody, EndorsementIdentity, Ownership
from hal.secret import Secret
from hal.types import Hierarchy
from station.escrow_drill import drill
from station.escrow_media import Medium
from station.key_keeper import KeyKeeper
from station.store import Store
from tests import store_parts as parts
from tests.fixtures_tpm import Recorder, lasting
from tests.integration.test_tpm_ownership import raw
from tests.ownership_parts import Cut, Line

ALL = ["owner", "endorsement", "lockout"]
CC_HIERARCHY_CHANGE_AUTH, CC_CLEAR, CC_DA, CC_EVICT = 0x129, 0x126, 0x13A, 0x120


@pytest.fixture
def make_line(tmp_path: Path, store: Store, line: Recorder) -> Iterator[Callable[..., Line]]:
    """Makes the line of a test, and reads all that its link has carried when the test is over."""
    made: list[Line] = []

    def make(**ownership: object) -> Line:
        made.append(Line(tmp_path, store, line, **ownership))
        return made[-1]

    yield make
    for item in made:
        assert item.seen, "a trip without a secret proves nothing"
        no_value_in_clear(item)


def no_value_in_clear(line: Line) -> None:
    """In no frame, in either direction, in none of the forms in which an auth value could stand there."""
    frames = b"".join(line.recorder.sent + line.recorder.received)
    for value in line.seen:
        for form in (value.rstrip(b"\0"), value.hex().encode(), value.hex().upper().encode()):
            assert form not in frames
        for shift in range(3):  # base64 of anything around it
            assert base64.b64encode(bytes(shift) + value)[4:-4] not in frames


def held(line: Line) -> set[Hierarchy]:
    """The newest record, proven on the TPM by the officer's drill."""
    record = line.escrows(line.unit())[-1]
    with line.recorder.visit() as board:
        found = drill(board, record, lasting())
    assert all(item.held for item in found), found
    return {item.hierarchy for item in found}


def counter(line: Line) -> int:
    with line.recorder.visit() as board:
        state = board.get(Ownership).state(lasting())
    assert not state.in_lockout
    return state.lockout_counter


@pytest.mark.parametrize("auths", [["lockout"], ["owner", "lockout"], ALL])
def test_what_the_recipe_names_is_set_and_what_escrow_has_is_what_the_tpm_has(
    make_line: Callable[..., Line], auths: list[str]
) -> None:
    line = make_line(auths=auths)
    line.visit()
    assert held(line) == {Hierarchy(name) for name in auths}
    record = line.store.unit(line.unit())
    assert record is not None
    assert record.summary.outcome == "PASS"
    assert record.facts["tpm-ownership.platform"] == {"platform": "open", "platform_waiver": "bench mode"}


def test_none_sets_none(tmp_path: Path, store: Store, line: Recorder) -> None:
    trip = Line(tmp_path, store, line, auths=[])
    trip.visit()
    with line.visit() as board:
        assert not board.get(Ownership).state(lasting()).auths_set
    assert CC_HIERARCHY_CHANGE_AUTH not in line.codes


def test_a_closed_platform_is_asked_for_and_a_waiver_is_on_record(make_line: Callable[..., Line]) -> None:
    line = make_line(auths=["lockout"], platform="closed")
    with pytest.raises(PlatformOpen):
        line.visit()
    line.ownership |= {"platform": "waived", "platform_reason": "firmware 2 closes it"}
    line.visit()
    record = line.store.unit(line.unit())
    assert record is not None
    assert record.facts["tpm-ownership.platform"]["platform_waiver"] == "firmware 2 closes it"


# --- cuts -------------------------------------------------------------------------------------------------------


def cut_at_message(number: int) -> Callable[[str], None]:
    """The station answers so many questions of the worker; then the worker is gone."""
    left = [number]

    def cut(said: str) -> None:
        if said in ("Begin", "Done", "Protect", "CopyEscrow"):
            left[0] -= 1
            if left[0] == 0:
                raise Cut

    return cut


@pytest.mark.parametrize("number", range(9, 23, 2))
def test_a_worker_that_dies_between_any_two_steps_leaves_a_unit_that_goes_on(
    make_line: Callable[..., Line], swtpm: SwtpmProcess, tmp_path: Path, number: int
) -> None:
    (tmp_path / "stick").mkdir()
    line = make_line(auths=ALL, escrow_copies=2)
    line.media = (Medium(tmp_path / "stick", tmp_path, bench=True),)
    with contextlib.suppress(Cut):
        line.visit(cut_at_message(number))
        pytest.fail("the visit was over before it was cut")
    line.store.recover()
    swtpm.power_cut()
    swtpm.power_on()
    line.visit()
    assert held(line) == set(Hierarchy)
    assert counter(line) == 0


COMMANDS = [
    (CC_DA, 1),
    (CC_HIERARCHY_CHANGE_AUTH, 1),
    (CC_HIERARCHY_CHANGE_AUTH, 2),
    (CC_HIERARCHY_CHANGE_AUTH, 3),
]


@pytest.mark.parametrize("done", [False, True], ids=["lost", "answer lost"])
@pytest.mark.parametrize(("code", "which"), [(CC_EVICT, 1), *COMMANDS])
def test_a_power_cut_at_each_change_leaves_a_unit_that_goes_on(
    make_line: Callable[..., Line], swtpm: SwtpmProcess, tmp_path: Path, code: int, which: int, done: bool
) -> None:
    (tmp_path / "stick").mkdir()
    line = make_line(auths=ALL, escrow_copies=2)
    line.media = (Medium(tmp_path / "stick", tmp_path, bench=True),)

    def cut(command: bytes) -> None:
        if int.from_bytes(command[6:10]) == code and line.recorder.codes.count(code) == which:
            swtpm.power_cut()
            raise DeviceGone("unplugged")

    def after(command: bytes, response: bytes) -> bytes:
        cut(command)
        return response

    def before(_call: Call, command: bytes) -> bytes | None:
        cut(command)
        return None

    if done:
        line.recorder.after = after
    else:
        line.recorder.before = before
    with pytest.raises(DeviceGone):
        line.visit()
    line.recorder.after = lambda _command, response: response
    line.recorder.before = lambda _call, _command: None
    swtpm.power_on()
    line.visit()
    assert held(line) == set(Hierarchy)
    assert counter(line) == 0


# --- a second medium --------------------------------------------------------------------------------------------


def test_without_the_second_medium_nothing_is_set_and_with_it_the_board_goes_on_by_itself(
    make_line: Callable[..., Line], tmp_path: Path
) -> None:
    stick = tmp_path / "stick"
    line = make_line(auths=["owner", "lockout"], escrow_copies=2)
    line.media = (Medium(stick, tmp_path, bench=True),)
    with pytest.raises(DeadlineExceeded):
        line.visit(patience=1.5)
    assert CC_HIERARCHY_CHANGE_AUTH not in line.recorder.codes
    plugged = threading.Timer(0.5, stick.mkdir)
    plugged.start()
    desk = line.visit()
    plugged.join()
    assert any("waiting for copy 2 of 2" in note and "medium" in note for note in desk.notes)
    assert held(line) == {Hierarchy.OWNER, Hierarchy.LOCKOUT}
    newest = line.escrows(line.unit())[-1]
    (file,) = stick.glob("*.p7m")
    assert file.name == f"{newest.ek_name.hex()}-{newest.generation}.p7m"
    record = line.store.unit(line.unit())
    assert record is not None
    assert file.read_bytes() == record.escrows[-1].sealed
    assert [item["place"] for item in line.events("escrow-copied")] == [str(stick)]
    assert record.escrows[-1].places == [str(stick)]


# --- the key that wraps resume copies ---------------------------------------------------------------------------


def test_the_orders_wrap_key_is_destroyed_with_its_last_unit_and_not_before(
    make_line: Callable[..., Line],
) -> None:
    line = make_line(auths=["lockout"])
    line.store.load_work_orders([("WO-17", parts.SKU, 1)])
    keeper = KeyKeeper(line.store, line.token)  # type: ignore[arg-type]
    with contextlib.suppress(Cut):
        line.visit(cut_at_message(12))
    line.store.recover()
    keeper.tidy()
    assert set(line.token.keys) == {"order-WO-17.1"}
    line.visit()
    keeper.tidy()
    assert not line.token.keys
    assert line.events("wrap-key-destroyed") == [{"key": "order-WO-17.1"}]


# --- rework -----------------------------------------------------------------------------------------------------


def test_rework_needs_an_officer_whose_values_serve_one_visit(make_line: Callable[..., Line]) -> None:
    line = make_line(auths=ALL)
    line.visit()
    with pytest.raises(OfficerNeeded) as refused:
        line.visit()
    assert "hallmark escrow offer" in refused.value.hint
    record = line.escrows(line.unit())[-1]
    assert line.store.units(1)[0].quarantine is None, "it is ours: nobody is asked"
    line.offered.put(record.ek_name, record.auths, "olga (uid 7)")
    line.visit()
    assert line.events("auths-used")[-1]["by"] == "olga (uid 7)"
    assert not line.offered.waits(record.ek_name)
    with pytest.raises(OfficerNeeded):
        line.visit()
    assert held(line) == set(Hierarchy)


# --- somebody else's TPM ----------------------------------------------------------------------------------------


def take(line: Line, *hierarchies: ESYS_TR) -> None:
    with raw(line.recorder) as (_, esapi):
        for hierarchy in hierarchies:
            esapi.hierarchy_change_auth(hierarchy, b"somebody else's")
    line.recorder.sent.clear()
    line.recorder.received.clear()


@pytest.mark.parametrize(
    "hierarchies", [(ESYS_TR.LOCKOUT,), (ESYS_TR.OWNER, ESYS_TR.ENDORSEMENT, ESYS_TR.LOCKOUT)]
)
def test_a_foreign_tpm_waits_for_an_engineer_and_is_cleared_only_when_he_says_so(
    make_line: Callable[..., Line], hierarchies: tuple[ESYS_TR, ...]
) -> None:
    line = make_line(auths=["owner", "lockout"])
    take(line, *hierarchies)
    with pytest.raises(AlreadyOwned, match="never began"):
        line.visit()
    with pytest.raises(Quarantined):
        line.visit()
    assert CC_CLEAR not in line.recorder.codes
    assert counter(line) == 0
    (asked,) = line.store.decisions(10)
    with line.recorder.visit() as board:
        name = board.get(EndorsementIdentity).endorsements(lasting()).keys[0].name
    assert (asked.kind, asked.subject, asked.choices) == ("tpm-owned", name.hex(), ["clear", "reject"])
    line.store.decide(asked.id, "clear", "returned from the lab", "erika (uid 9)")
    line.visit()
    assert line.recorder.codes.count(CC_CLEAR) == 1
    assert held(line) == {Hierarchy.OWNER, Hierarchy.LOCKOUT}
    (cleared,) = line.events("tpm-cleared")
    assert (cleared["by"], cleared["means"]) == ("erika (uid 9)", "platform")
    assert line.store.decisions(10)[0].used_at is not None
    assert line.escrows(line.unit())[-1].ek_name == name


def test_where_the_platform_is_closed_a_clear_takes_the_owners_lockout_auth(
    make_line: Callable[..., Line],
) -> None:
    line = make_line(auths=["lockout"])
    take(line, ESYS_TR.LOCKOUT)
    with raw(line.recorder) as (_, esapi):
        esapi.hierarchy_change_auth(ESYS_TR.PLATFORM, b"firmware's own")
    with pytest.raises(AlreadyOwned):
        line.visit()
    line.store.decide(1, "clear", "bought back", "erika")
    with pytest.raises(AlreadyOwned, match="platform auth is set"):
        line.visit()
    assert counter(line) == 0
    line.store.decide(2, "clear", "bought back", "erika")
    name = bytes.fromhex(line.store.decisions(10)[0].subject)
    line.offered.put(name, {"lockout": Secret(b"somebody else's")}, "olga")
    line.visit()
    assert line.events("tpm-cleared")[-1]["means"] == "lockout"
    assert held(line) == {Hierarchy.LOCKOUT}
    assert not line.recorder.carried(b"somebody else's")


def test_a_rejected_tpm_is_left_as_it_is(make_line: Callable[..., Line]) -> None:
    line = make_line(auths=["lockout"])
    line.seen.add(b"somebody else's")
    take(line, ESYS_TR.LOCKOUT)
    with pytest.raises(AlreadyOwned):
        line.visit()
    line.store.decide(1, "reject", "not ours", "erika")
    with pytest.raises(Quarantined, match="out for good"):
        line.visit()
    assert CC_CLEAR not in line.recorder.codes


# --- probing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["ours", "somebody else"])
def test_no_probe_burns_a_lockout_try(make_line: Callable[..., Line], owner: str) -> None:
    """Every look that a step, the drill or a command takes, with the TPM's own counter before and after."""
    line = make_line(auths=ALL)
    line.visit()
    if owner != "ours":
        with raw(line.recorder) as (_, esapi):
            esapi.clear(ESYS_TR.PLATFORM)
        take(line, ESYS_TR.OWNER, ESYS_TR.LOCKOUT)
    record = line.escrows(line.unit())[-1]

    def looks() -> Iterator[Callable[[], object]]:
        yield line.visit
        with line.recorder.visit() as board:
            custody, ownership = board.get(Custody), board.get(Ownership)
            ek = (
                next(
                    key
                    for key in board.get(EndorsementIdentity).derive(lasting(), "L-1").keys
                    if key.name == record.ek_name
                )
                if owner != "ours"
                else board.get(EndorsementIdentity).endorsements(lasting()).keys[0]
            )
            yield lambda: ownership.state(lasting())
            yield lambda: custody.platform_open(lasting())
            yield lambda: custody.holds_ek(lasting(), ek)
            yield lambda: ownership.proves(lasting(), ek, Hierarchy.OWNER, Secret(b"wrong"))
            yield lambda: ownership.proves(lasting(), ek, Hierarchy.ENDORSEMENT, Secret(b"wrong"))
            yield lambda: drill(board, record, lasting())

    before = counter(line)
    for look in looks():
        with contextlib.suppress(HallmarkError):
            look()
        assert counter(line) == before
