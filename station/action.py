"""What a step is made of: actions that probe, apply and verify. The words that every step in `station/steps`
is written in.

A step knows the device only through HAL interfaces and the station only through its desk; it never retries, journals or
reads a clock: the runner does.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol, TypeVar

import msgspec

from hal.call import Call
from hal.driver import Bindings
from hal.errors import RecipeError, VerifyMismatch
from hal.secret import Secret
from hal.types import (
    Certified,
    Credential,
    EndorsementKey,
    Enrollment,
    FirmwareImage,
    KeyPurpose,
    SealedKey,
    TransportKey,
)
from station.messages import Fact, Facts, Unit

T = TypeVar("T")
OF_ONE_VISIT: Final = frozenset({"ak_public", "ek_handle", "ek_evict", "tpm_cleared_by"})
"""Facts that say what one visit has seen or done, and nothing of the next."""
DEFAULT_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class DeliveredKey:
    """Ciphertext, but for `spki`. `upload`: sealed to the uploader, empty when nothing has to be uploaded."""

    sealed: SealedKey
    upload: bytes = b""
    spki: bytes = b""


class Desk(Protocol):
    """What a worker may ask of its station. Each call returns when the answer is durable, or raises."""

    def judge_ek(self, ek: EndorsementKey, chain: Sequence[bytes]) -> Facts: ...

    def join(
        self,
        kind: str,
        value: str,
        registration_id: str,
        claims: list[tuple[str, str]],
        *,
        unproven: bool = False,
    ) -> Unit:
        """`unproven`: the TPM can't show its EK before its endorsement auth is known."""
        ...

    def protect(self, ek_name: bytes, auths: Mapping[str, Secret]) -> None: ...

    def recover(self, ek_name: bytes) -> dict[str, Secret]: ...

    def copy_escrow(self, ek_name: bytes) -> int:
        """How many durable copies the newest escrow record has; EscrowIncomplete while the recipe wants more."""

    def credential(
        self, purpose: str, ek_public: bytes, public: bytes, ek_certificate: bytes | None
    ) -> tuple[Credential, bytes]:
        """The credential that the TPM is to open, and the nonce that it is to certify."""

    def proven(self, secret: bytes, certified: Certified | None) -> None:
        """What the TPM answered; ResidencyUnproven when it proves nothing."""

    def issue(self, profile: str, csr: bytes) -> list[bytes]: ...

    def challenge(self) -> bytes:
        """A fresh nonce of the station, 32 octets, good for one `deliver_key` or one `prove_key`."""

    def deliver_key(self, purpose: KeyPurpose, transport: TransportKey, identity: bytes) -> DeliveredKey:
        """The joined unit's key, sealed to its board; the same one each time.

        `identity`: SPKI (DER) of the board's own key, which signed `transport` and the last challenge; empty without.
        """

    def prove_key(self, mac: bytes) -> None:
        """PossessionUnproven unless `mac` is over the last challenge, by the unit's symmetric key."""

    def draw(self, key: bytes) -> list[bytes]:
        """The unit's certificate of the recipe's lot, DER, leaf first. `key`: the device's SPKI, empty for any."""

    def adopt(self, chain: Sequence[bytes]) -> None:
        """What the device came with is the unit's certificate; raises what is wrong with it."""

    def stock_name(self, key: bytes) -> str:
        """The common name that a lot's certificate has for this key (SPKI)."""

    def image(self, name: str) -> FirmwareImage: ...


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What holds for the whole visit."""

    station: str
    bench: bool
    sku: str
    issuers: tuple[bytes, ...]
    """Every certificate that our issuing CA has had, DER."""
    long_lived_days: int = 825
    """A leaf that is valid for longer needs a key place that software can't copy the key from."""


@dataclass(slots=True)
class Trip:
    """One visit as its steps see it. `facts` grows with each action; secrets are in `auths` only, and die
    with the process.
    """

    about: Circumstances
    board: Bindings
    desk: Desk
    call: Call
    options: Any = None
    facts: Facts = field(default_factory=dict)
    unit: Unit | None = None
    auths: dict[str, Secret] = field(default_factory=dict)
    enrollment: Enrollment | None = None
    inherits: frozenset[str] = frozenset()
    """Steps of earlier passes whose facts on record hold in this visit too."""
    begun: set[str] = field(default_factory=set)
    """`step.action` of what this visit began to apply."""

    def inherit(self) -> None:
        """After the visit has joined: what earlier passes gave and this one has not. Later steps ask the device."""
        for action, facts in sorted(self.unit.facts.items() if self.unit else ()):
            if action.partition(".")[0] in self.inherits:
                given = {name: value for name, value in facts.items() if name not in OF_ONE_VISIT}
                self.facts = {**given, **self.facts}

    def need(self, interface: type[T], role: str | None = None) -> T:
        return self.board.get(interface, role)

    def octets(self, name: str) -> bytes:
        """A fact that is octets. RecipeError when no earlier action gave it."""
        value = self._fact(name)
        if not isinstance(value, bytes):
            raise RecipeError(f"fact {name!r} is not octets")
        return value

    def text(self, name: str) -> str:
        value = self._fact(name)
        if not isinstance(value, str):
            raise RecipeError(f"fact {name!r} is not text")
        return value

    def octets_list(self, name: str) -> list[bytes]:
        value = self._fact(name)
        if not isinstance(value, list):
            raise RecipeError(f"fact {name!r} is no list of octets")
        return [item for item in value if isinstance(item, bytes)]

    def words(self, name: str) -> list[str]:
        """A fact that is a list of words."""
        value = self._fact(name)
        if not isinstance(value, list):
            raise RecipeError(f"fact {name!r} is no list")
        return [item for item in value if isinstance(item, str)]

    def recorded(self, action: str) -> Facts:
        """Facts that an earlier visit of this unit stored for `step.action`; empty when there are none."""
        return self.unit.facts.get(action, {}) if self.unit else {}

    def ours(self, action: str) -> bool:
        """Whether this visit or an earlier one of this unit did `step.action`, or began to: what else is
        there is foreign.
        """
        known = self.unit is not None and (action in self.unit.facts or action in self.unit.intents)
        return known or action in self.begun

    def _fact(self, name: str) -> Fact:
        if name not in self.facts:
            raise RecipeError(f"no earlier step gave {name!r}")
        return self.facts[name]


class Action(abc.ABC):
    """One change to the device (or one look at it), with its own journal row."""

    name: ClassVar[str]
    seconds: float = DEFAULT_SECONDS
    """How long each of probe, apply and verify may take."""
    repeatable: ClassVar[bool] = False
    """May run before the visit has joined a unit: doing it again harms nothing."""
    absence: float | None = None
    """Seconds that the board may be away while this is applied."""

    @abc.abstractmethod
    def probe(self, trip: Trip) -> Facts | None:
        """Asks the device: facts when it is done, None when not; raises when what is there must not be touched."""

    @abc.abstractmethod
    def apply(self, trip: Trip) -> None:
        """Does it. Not called when `probe` found it done."""

    def verify(self, trip: Trip) -> Facts:
        """Asks the device again."""
        facts = self.probe(trip)
        if facts is None:
            raise VerifyMismatch(f"{self.name}: the device does not show what was just done to it")
        return facts


class Look(Action):
    """An action that only looks or proves: its probe always answers with facts or raises."""

    repeatable = True

    def apply(self, trip: Trip) -> None:
        del trip
        raise VerifyMismatch(f"{self.name}: nothing to apply, and the device does not show it")


class NoOptions(msgspec.Struct, frozen=True):
    """For steps without options."""


Warnings = tuple[tuple[str, str], ...]
"""(option, sentence) of what a recipe may do, and somebody will be sorry for."""
Need = tuple[type, str | None]
"""A HAL interface, and the role of the driver that has to offer it, None for any."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step as a recipe names it. `needs` and `actions` depend on the options; `requires` and `gives` name facts."""

    use: str
    summary: str
    options: type[Any]
    actions: Callable[[Any], tuple[Action, ...]]
    needs: Callable[[Any], tuple[Need, ...]]
    requires: Callable[[Any], frozenset[str]] = lambda _options: frozenset()
    gives: Callable[[Any], frozenset[str]] = lambda _options: frozenset()
    warnings: Callable[[Any], Warnings] = lambda _options: ()
