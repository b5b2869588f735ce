"""One process for a whole visit: desk, journal, board's place and reporter in memory, which write down what was asked.

`Stage.said` is the order of events, across all of them: what a test of the order of durable writes reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hal.call import Call
from hal.driver import Bindings
from hal.errors import DeviceGone, HallmarkError
from hal.interfaces import DeviceIdentity
from hal.secret import Secret
from hal.types import (
    BoardIdentity,
    Certified,
    Credential,
    EndorsementKey,
    Enrollment,
    FirmwareImage,
    KeyPurpose,
    TransportKey,
)
from station import messages, runner
from station.action import Action, Circumstances, DeliveredKey, NoOptions, Step, Trip
from station.messages import Facts, Unit
from station.nest.attesting import Attesting
from station.recipe import PlannedStep
from station.runner import Runner

UNIT = Unit(
    unit="u1",
    registration_id="r1",
    returning=False,
    facts={},
    escrowed=[],
    resumable=False,
    intents=[],
)


class Stage:
    """Desk, Journal, Place and Reporter of one visit."""

    def __init__(self, board: Bindings | None = None) -> None:
        self.said: list[str] = []
        self.board = board or Bindings()
        self.unit = UNIT
        self.fails: dict[str, list[HallmarkError]] = {}
        """What the next calls of that name raise, one each."""
        self.facts: dict[str, Facts] = {}
        self.found: dict[str, bool] = {}
        self.enrollment: Enrollment | None = None
        self.protected: list[dict[str, Secret]] = []
        self.auths: dict[str, Secret] = {}
        self.chain: list[bytes] = []
        self.notes: list[str] = []
        self.attesting = Attesting()

    def say(self, what: str) -> None:
        waiting = self.fails.get(what)
        self.said.append(what)
        if waiting:
            raise waiting.pop(0)

    # --- Desk ---

    def judge_ek(self, ek: EndorsementKey, chain: Sequence[bytes]) -> Facts:
        self.say("judge")
        return {"ek_trust": "certificate", "ek_anchor": "CN=maker root"}

    def join(
        self,
        kind: str,
        value: str,
        registration_id: str,
        claims: list[tuple[str, str]],
        *,
        unproven: bool = False,
    ) -> Unit:
        self.say(f"join {kind}")
        return self.unit

    def protect(self, ek_name: bytes, auths: Mapping[str, Secret]) -> None:
        self.say(f"protect {' '.join(sorted(auths))}")
        self.protected.append(dict(auths))

    def recover(self, ek_name: bytes) -> dict[str, Secret]:
        self.say("recover")
        return dict(self.auths)

    def copy_escrow(self, ek_name: bytes) -> int:
        self.say("copy escrow")
        return 2

    def credential(
        self, purpose: str, ek_public: bytes, public: bytes, ek_certificate: bytes | None
    ) -> tuple[Credential, bytes]:
        self.say(f"credential {purpose}")
        asked = messages.AskCredential(purpose, ek_public, public, ek_certificate or b"")
        made = self.attesting.credential(asked)
        return Credential(made.id_object, made.encrypted_secret), made.nonce

    def proven(self, secret: bytes, certified: Certified | None) -> None:
        self.say("proven")
        attest, signature = (certified.attest, certified.signature) if certified else (b"", b"")
        self.attesting.proven(messages.Proven(secret, attest, signature))

    def issue(self, profile: str, csr: bytes) -> list[bytes]:
        self.say(f"issue {profile}")
        return self.chain

    def challenge(self) -> bytes:
        raise AssertionError("no step of this test delivers a key")

    def deliver_key(self, purpose: KeyPurpose, transport: TransportKey, identity: bytes) -> DeliveredKey:
        raise AssertionError(purpose)

    def prove_key(self, mac: bytes) -> None:
        raise AssertionError(mac)

    def draw(self, key: bytes) -> list[bytes]:
        self.say("draw")
        return self.chain

    def adopt(self, chain: Sequence[bytes]) -> None:
        self.say("adopt")

    def stock_name(self, key: bytes) -> str:
        self.say("stock name")
        return "r1"

    def image(self, name: str) -> FirmwareImage:
        raise AssertionError(name)

    # --- Journal ---

    def begin(self, step: str, action: str) -> None:
        self.say(f"begin {step}.{action}")

    def done(self, step: str, action: str, facts: Facts, *, found: bool) -> None:
        self.say(f"done {step}.{action}")
        self.facts[f"{step}.{action}"] = facts
        self.found[f"{step}.{action}"] = found

    def finish(self, step: str, action: str, facts: Facts, enrollment: Enrollment | None) -> None:
        self.say(f"finish {step}.{action}")
        self.enrollment = enrollment

    # --- Place ---

    def enter(self, trip: Trip) -> None:
        self.say("enter")
        trip.board = self.board

    def absent(self, within: float) -> None:
        self.say(f"absent {within:g}")

    def return_to(self, trip: Trip) -> None:
        self.say("return")
        trip.board = self.board

    # --- Reporter ---

    def phase(
        self, step: str, action: str, phase: str, *, seconds: float, note: str = "", hint: str = ""
    ) -> Callable[[int, int | None], None]:
        if note:
            self.notes.append(f"{phase}: {note} {hint}")
        return lambda done, total: None

    # --- the visit ---

    def trip(self, *, bench: bool = True, call: Call | None = None) -> Trip:
        about = Circumstances("s1", bench, "gw", ())
        return Trip(about, self.board, self, call or Call.lasting(30))

    def run(self, *steps: PlannedStep, trip: Trip | None = None) -> Runner:
        made = Runner(trip or self.trip(), self, self, self)
        made.run(steps)
        return made


class Deed(Action):
    """An action on a device that is one set of words: done when its name is among them."""

    def __init__(
        self,
        name: str,
        stage: Stage,
        device: set[str],
        *,
        repeatable: bool = True,
        absence: float | None = None,
        facts: Facts | None = None,
        sticks: bool = True,
        doing: Callable[[Trip], None] | None = None,
    ) -> None:
        """`doing` comes first in `apply`; without `sticks` the device forgets at once."""
        self.name = name  # type: ignore[misc]
        self.repeatable = repeatable  # type: ignore[misc]
        self.absence = absence
        self._stage, self._device, self._facts, self._sticks = stage, device, facts or {}, sticks
        self._doing = doing

    def probe(self, trip: Trip) -> Facts | None:
        self._stage.say(f"probe {self.name}")
        return self._facts if self.name in self._device else None

    def apply(self, trip: Trip) -> None:
        if self._doing is not None:
            self._doing(trip)
        if self._sticks:
            self._device.add(self.name)
        self._stage.say(f"apply {self.name}")


class Joining(Deed):
    def probe(self, trip: Trip) -> Facts:
        trip.unit = trip.desk.join("key", "00" * 32, "r1", [])
        return self._facts


class Serials:
    """`DeviceIdentity` of boards that come one after the other."""

    def __init__(self, *serials: str) -> None:
        self._serials = list(serials)

    def identify(self, call: Call) -> BoardIdentity:
        return BoardIdentity("gw", self._serials.pop(0) if self._serials[1:] else self._serials[0])


def boards(*serials: str) -> Bindings:
    found = Bindings()
    found.add("link", DeviceIdentity, Serials(*serials))
    return found


def plan(*actions: Action, use: str = "s") -> PlannedStep:
    """A step of these actions."""
    step = Step(use, "", NoOptions, lambda _options: actions, lambda _options: ())
    return PlannedStep(step, NoOptions())


def gone() -> DeviceGone:
    return DeviceGone("unplugged")


def without_pauses(monkeypatch: Any) -> None:
    """Pauses between tries as short as they go."""
    monkeypatch.setattr(runner, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(runner, "LONGEST_PAUSE", 0.002)
    monkeypatch.setattr(runner, "LOOK_AGAIN", 0.001)


def order(said: Sequence[str], *wanted: str) -> bool:
    """Whether `wanted` happened, in that order."""
    rest = iter(said)
    return all(item in rest for item in wanted)
