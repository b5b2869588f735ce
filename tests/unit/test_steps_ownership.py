"""`tpm-ownership` against every state that a TPM and its record can be in: what is foreign is never touched, a lockout
auth is never tried, and no auth is set that isn't escrowed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.call import Call
from hal.driver import Bindings
from hal.errors import AlreadyOwned, DeadlineExceeded, LockedOut, PlatformOpen, StoreUnavailable, TpmError
from hal.interfaces import Custody, Ownership
from hal.secret import EMPTY, Secret
from hal.types import EkOrigin, EndorsementKey, Hierarchy, LockoutPolicy, OwnershipState, SrkTemplate
from station.recipe import PlannedStep
from station.steps import tpm_ownership
from station.steps.tpm_ownership import Options
from tests.runner_parts import UNIT, Stage, order, without_pauses

NAMES: Final[tuple[Literal["owner"], Literal["endorsement"], Literal["lockout"]]] = (
    "owner",
    "endorsement",
    "lockout",
)
NOTHING: Final[frozenset[Hierarchy]] = frozenset()
OWNER, ENDORSEMENT, LOCKOUT = Hierarchy.OWNER, Hierarchy.ENDORSEMENT, Hierarchy.LOCKOUT
ALL: Final = frozenset({OWNER, ENDORSEMENT, LOCKOUT})
EK_NAME = b"\x00\x0b" + bytes(32)
FOREIGN = Secret(b"somebody else's")


@dataclass
class FakeTpm:
    """A TPM's hierarchies. Says each command to the stage; keeps to the rules of the real one."""

    stage: Stage
    auths: dict[Hierarchy, Secret] = field(default_factory=dict)
    srk: bytes | None = None
    policy: LockoutPolicy = field(default_factory=lambda: LockoutPolicy(10, 1000, 1000))
    locked: bool = False
    open: bool = False
    """Whether its platform hierarchy is."""
    late: bool = False
    """The next command is done, and its answer gets lost."""

    def _answer(self) -> None:
        if self.late:
            self.late = False
            raise DeadlineExceeded("no answer in time")

    def state(self, call: Call) -> OwnershipState:
        del call
        return OwnershipState(frozenset(self.auths), self.locked, 0, self.policy, True, False, self.srk)

    def _auth(self, hierarchy: Hierarchy, given: Secret) -> None:
        if given != self.auths.get(hierarchy, EMPTY):
            if hierarchy is LOCKOUT:
                raise AssertionError("a wrong lockout auth was tried: the TPM is locked now")
            raise TpmError(f"wrong {hierarchy} auth")

    def set_auth(
        self, call: Call, ek: EndorsementKey, hierarchy: Hierarchy, new: Secret, current: Secret
    ) -> None:
        del call
        assert ek.name == EK_NAME
        self._auth(hierarchy, current)
        self.stage.say(f"set {hierarchy}")
        self.auths[hierarchy] = new
        self._answer()

    def make_srk(self, call: Call, ek: EndorsementKey, template: SrkTemplate, owner: Secret) -> bytes:
        del call, ek, template
        self._auth(OWNER, owner)
        self.stage.say("make srk")
        self.srk = b"srk"
        self._answer()
        return b"srk"

    def set_lockout_policy(
        self, call: Call, ek: EndorsementKey, policy: LockoutPolicy, lockout: Secret
    ) -> None:
        del call, ek
        self._auth(LOCKOUT, lockout)
        self.stage.say("set policy")
        self.policy = policy
        self._answer()

    def platform_open(self, call: Call) -> bool:
        del call
        return self.open

    def holds_ek(self, call: Call, ek: EndorsementKey) -> None:
        del call
        assert ek.name == EK_NAME

    def proves_lockout(self, call: Call, ek: EndorsementKey, auth: Secret) -> bool:
        raise AssertionError("no step tries a lockout auth")

    def clear(self, call: Call, ek: EndorsementKey, lockout: Secret | None) -> None:
        raise AssertionError("nobody has permitted a Clear")

    def proves(self, call: Call, ek: EndorsementKey, hierarchy: Hierarchy, auth: Secret) -> bool:
        del call, ek
        assert hierarchy is not LOCKOUT
        return auth == self.auths.get(hierarchy, EMPTY)


class Crash(BaseException):
    """The worker is gone."""


class Case:
    """A visit at its ownership step: TPM, record, recipe."""

    def __init__(
        self,
        wanted: frozenset[Hierarchy],
        set_: frozenset[Hierarchy] = NOTHING,
        escrowed: frozenset[Hierarchy] = NOTHING,
        begun: frozenset[Hierarchy] = NOTHING,
        *,
        resumable: bool = False,
    ) -> None:
        """`begun`: auths that the journal says were begun. What is set and wasn't begun is somebody else's."""
        self.stage = Stage()
        self.wanted, self.escrowed = wanted, escrowed
        recorded = {name: Secret.random() for name in Hierarchy}
        self.stage.auths = {name.value: recorded[name] for name in escrowed} if resumable else {}
        self.tpm = FakeTpm(
            self.stage, {name: recorded[name] if name in begun & escrowed else FOREIGN for name in set_}
        )
        self.before = dict(self.tpm.auths)
        self.foreign = {name for name, auth in self.before.items() if auth == FOREIGN}
        self.stage.board = Bindings()
        self.stage.board.add("tpm", Ownership, self.tpm)
        self.stage.board.add("tpm", Custody, self.tpm)
        self.stage.unit = msgspec.structs.replace(
            UNIT,
            escrowed=sorted(item.value for item in escrowed),
            resumable=resumable,
            intents=[f"tpm-ownership.{item.value}-auth" for item in begun],
        )
        self.options = Options(auths=[name for name in NAMES if Hierarchy(name) in wanted])

    def run(self, *, bench: bool = True) -> None:
        trip = self.stage.trip(bench=bench)
        trip.unit = self.stage.unit
        trip.facts |= {
            "ek_public": b"ek",
            "ek_name": EK_NAME,
            "ek_origin": EkOrigin.PERSISTENT.value,
            "ek_template": "L-1",
        }
        self.stage.run(PlannedStep(tpm_ownership.STEP, self.options), trip=trip)


subsets = st.frozensets(st.sampled_from([OWNER, ENDORSEMENT, LOCKOUT]))


@settings(max_examples=400)
@given(subsets, subsets, subsets, subsets, st.booleans())
def test_in_every_state_the_tpm_is_taken_or_left_as_it_was_and_no_lockout_is_tried_in_vain(
    wanted: frozenset[Hierarchy],
    set_: frozenset[Hierarchy],
    escrowed: frozenset[Hierarchy],
    begun: frozenset[Hierarchy],
    resumable: bool,
) -> None:
    case = Case(wanted, set_, escrowed, begun & set_, resumable=resumable and bool(escrowed))
    refused = False
    try:
        case.run()  # a wrong try on lockout is an AssertionError of the fake
    except AlreadyOwned:
        refused = True
    if refused:
        assert not {name: auth for name, auth in case.tpm.auths.items() if case.before.get(name) != auth}
        resumes = resumable and wanted <= escrowed
        assert case.foreign or set_ - wanted or set_ - escrowed or (set_ and not resumes), "refused its own"
        return
    assert not case.foreign, "what somebody else set was taken for ours"
    assert frozenset(case.tpm.auths) == wanted
    for name, auth in case.tpm.auths.items():
        known = [*(made.get(name.value) for made in case.stage.protected), case.stage.auths.get(name.value)]
        assert auth in known or case.before.get(name) == auth, "an auth was set that is not escrowed"
    assert case.tpm.srk is not None
    assert case.stage.said[-1] == "finish tpm-ownership.state"


@pytest.mark.parametrize(
    "wanted", [frozenset({LOCKOUT}), frozenset({OWNER, LOCKOUT}), frozenset({OWNER}), ALL]
)
def test_escrow_is_durable_before_any_auth_and_lockout_comes_last(wanted: frozenset[Hierarchy]) -> None:
    case = Case(wanted)
    case.run()
    said = case.stage.said
    names = " ".join(sorted(item.value for item in wanted))
    changes = [item for item in said if item.startswith(("set ", "make ", "protect "))]
    assert changes[0] == f"protect {names}"
    assert changes[1:3] == ["make srk", "set policy"]
    assert changes[3:] == [f"set {name}" for name in (OWNER, ENDORSEMENT, LOCKOUT) if name in wanted]
    for name in wanted:
        assert order(
            said, f"begin tpm-ownership.{name}-auth", f"set {name}", f"done tpm-ownership.{name}-auth"
        )


def test_auths_that_could_not_be_escrowed_are_not_set() -> None:
    case = Case(frozenset({OWNER, LOCKOUT}))
    case.stage.fails["protect lockout owner"] = [StoreUnavailable("disk full")]
    with pytest.raises(StoreUnavailable):
        case.run()
    assert not case.tpm.auths
    assert case.tpm.srk is None


@pytest.mark.parametrize(
    "when", [*("set owner", "set lockout", "make srk", "set policy", "protect lockout owner")]
)
def test_a_lost_answer_in_the_same_visit_is_no_foreign_owner(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pauses(monkeypatch)
    case = Case(frozenset({OWNER, LOCKOUT}))
    honest = case.stage.say
    lost = [when]

    def say(what: str) -> None:
        honest(what)
        if what in lost:
            lost.remove(what)
            case.tpm.late = True

    monkeypatch.setattr(case.stage, "say", say)
    case.run()
    assert not lost
    assert set(case.tpm.auths) == {OWNER, LOCKOUT}
    assert case.stage.said[-1] == "finish tpm-ownership.state"


@pytest.mark.parametrize("crashed_after", range(1, 15))
def test_after_a_crash_at_any_command_the_next_visit_ends_with_auths_that_are_escrowed(
    crashed_after: int,
) -> None:
    """The second visit knows what the first one's journal and escrow say, and what the TPM shows."""
    case = Case(ALL)
    honest = case.stage.say
    count = 0

    def say(what: str) -> None:
        nonlocal count
        honest(what)
        count += what.startswith(("set ", "make ", "protect ", "begin "))
        if count == crashed_after:
            raise Crash

    case.stage.say = say  # type: ignore[method-assign]
    with contextlib.suppress(Crash):
        case.run()
    case.stage.say = honest  # type: ignore[method-assign]
    kept = case.stage.protected[-1] if case.stage.protected else {}
    said = case.stage.said
    begun = [item.removeprefix("begin ") for item in said if item.startswith("begin ")]
    case.stage.auths = dict(kept)
    case.stage.unit = msgspec.structs.replace(
        UNIT, returning=True, escrowed=sorted(kept), resumable=bool(kept), intents=begun
    )
    case.run()
    assert {name.value: auth for name, auth in case.tpm.auths.items()} == case.stage.protected[-1]


def test_a_tpm_in_lockout_is_left_alone() -> None:
    case = Case(frozenset({LOCKOUT}))
    case.tpm.locked = True
    with pytest.raises(LockedOut):
        case.run()
    assert not any(said.startswith(("set", "make", "protect")) for said in case.stage.said)


def test_a_lockout_auth_that_somebody_set_after_our_escrow_is_never_tried() -> None:
    """Escrowed in a visit that was cut off before it set anything; then somebody else took the TPM."""
    case = Case(
        frozenset({LOCKOUT}), set_=frozenset({LOCKOUT}), escrowed=frozenset({LOCKOUT}), resumable=True
    )
    with pytest.raises(AlreadyOwned, match="never began"):
        case.run()
    assert case.tpm.auths == case.before


@pytest.mark.parametrize("bench", [True, False])
@pytest.mark.parametrize("platform", [None, "closed", "waived"])
@pytest.mark.parametrize("is_open", [True, False])
def test_an_open_platform_hierarchy_is_refused_in_production_unless_it_is_waived_on_record(
    bench: bool, platform: Literal["closed", "waived"] | None, is_open: bool
) -> None:
    case = Case(frozenset({LOCKOUT}))
    case.tpm.open = is_open
    reason = "firmware 2 closes it" if platform == "waived" else ""
    case.options = msgspec.structs.replace(case.options, platform=platform, platform_reason=reason)
    if is_open and (platform == "closed" or (platform is None and not bench)):
        with pytest.raises(PlatformOpen):
            case.run(bench=bench)
        return
    case.run(bench=bench)
    facts = case.stage.facts["tpm-ownership.platform"]
    waiver = {"platform": "open", "platform_waiver": reason or "bench mode"}
    assert facts == (waiver if is_open else {"platform": "closed"})


def test_which_auths_are_set_follows_from_the_enrollment() -> None:
    assert Options(attestation="tpm").wanted == {LOCKOUT}
    assert Options(attestation="x509").wanted == {OWNER, LOCKOUT}
    assert Options(attestation="x509-group").wanted == {OWNER, LOCKOUT}
    assert Options(attestation="tpm", auths=["owner"]).wanted == {OWNER}
    assert Options(attestation="x509", auths=[]).wanted == frozenset()
