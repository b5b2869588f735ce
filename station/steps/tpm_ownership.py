"""`tpm-ownership`: the TPM belongs to the factory's customer. Escrow comes before each change, lockout auth last.

Which auths are set follows from how the device will prove itself in the field: DPS clients need empty owner and
endorsement auth for a TPM enrollment, so that sets lockout only; an X.509 enrollment sets owner and lockout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta, Struct

from hal.errors import AlreadyOwned, OfficerNeeded, PlatformOpen
from hal.interfaces import Custody, Ownership
from hal.secret import EMPTY, Secret
from hal.types import Hierarchy, LockoutPolicy, SrkTemplate
from station.action import Action, Look, Step, Trip, Warnings
from station.messages import Facts
from station.steps.current_ek import current_ek
from station.steps.tpm_auths import auth, names, refuse_foreign, state_of
from station.steps.tpm_identity import DERIVE_SECONDS

COPIES_SECONDS: Final = 60.0
"""One look at the second media, with what has to be written to them."""
BENCH_WAIVER: Final = "bench mode"
BREAKS: Final = {
    Hierarchy.OWNER: "DPS clients in C and C# keep their identity key by EvictControl with an empty owner auth, which"
    " fails once it is set; name 'owner' in field_client_knows if yours is given it",
    Hierarchy.ENDORSEMENT: "DPS clients activate their credential by PolicySecret with an empty endorsement auth,"
    " which fails once it is set; name 'endorsement' in field_client_knows if yours is given it",
}
"""azure-iot-sdk-csharp#2991 for the second; the first is TPM_RC_BAD_AUTH (0x9A2) on a software TPM."""


class Options(Struct, frozen=True):
    auths: Annotated[
        list[Literal["owner", "endorsement", "lockout"]] | None,
        Meta(
            description="an array of 'owner', 'endorsement' and 'lockout'; left out, it follows from the enrollment"
        ),
    ] = None
    field_client_knows: Annotated[
        list[Literal["owner", "endorsement"]], Meta(description="an array of 'owner' and 'endorsement'")
    ] = []
    """Auths that the client in the field is given: what would break another one is meant then, and on record."""
    escrow_copies: Annotated[int, Meta(ge=1, le=4, description="a whole number from 1 to 4")] = 1
    """The station's own counts as one; the others are on the media of station.toml's [escrow]."""
    platform: Annotated[Literal["closed", "waived"] | None, Meta(description="'closed' or 'waived'")] = None
    """Left out, it is 'closed' in production; a bench's TPMs are open, which is on record."""
    platform_reason: Annotated[str, Meta(max_length=200, description="text of at most 200 characters")] = ""
    srk: Annotated[Literal["rsa2048", "p256"], Meta(description="'rsa2048' or 'p256'")] = "rsa2048"
    attestation: str = "tpm"
    """Filled in from the recipe's `enroll` step; it decides `auths` where these are left out."""
    untrusted_ek: Annotated[Literal["refuse", "accept"], Meta(description="'refuse' or 'accept'")] = "refuse"
    """Whether the auths may be given to a TPM whose EK nothing vouches for."""
    max_tries: Annotated[int, Meta(ge=1, le=1000)] = 31
    recovery_seconds: Annotated[int, Meta(ge=1, le=86400 * 7)] = 600
    lockout_recovery_seconds: Annotated[int, Meta(ge=0, le=86400 * 7)] = 86400

    def __post_init__(self) -> None:
        if (self.platform == "waived") != bool(self.platform_reason.strip()):
            message = "platform = 'waived' and platform_reason go together: expected both or neither"
            raise ValueError(message)

    @property
    def wanted(self) -> frozenset[Hierarchy]:
        if self.auths is not None:
            return frozenset(Hierarchy(name) for name in self.auths)
        return frozenset(
            {Hierarchy.LOCKOUT} if self.attestation == "tpm" else {Hierarchy.OWNER, Hierarchy.LOCKOUT}
        )

    @property
    def lockout_policy(self) -> LockoutPolicy:
        return LockoutPolicy(self.max_tries, self.recovery_seconds, self.lockout_recovery_seconds)


class Escrow(Action):
    """The values are chosen, sealed to the officers and durable, before the TPM hears of any."""

    name = "escrow"

    def probe(self, trip: Trip) -> Facts | None:
        state, wanted = state_of(trip), trip.options.wanted
        escrowed = {Hierarchy(name) for name in (trip.unit.escrowed if trip.unit else [])}
        refuse_foreign(trip, state.auths_set)
        if beyond := state.auths_set - (wanted & escrowed):
            raise OfficerNeeded(f"the TPM has {names(beyond)} auth set, by us, which this recipe doesn't set")
        if state.auths_set >= wanted <= escrowed:
            return self._facts(trip)
        if wanted <= escrowed and trip.unit is not None and trip.unit.resumable:
            trip.auths.update(trip.desk.recover(trip.octets("ek_name")))
            return self._facts(trip)
        if state.auths_set:
            raise OfficerNeeded(
                f"the TPM has {names(state.auths_set)} auth set, but not all of its escrow record has been"
            )
        return self._facts(trip) if wanted and set(trip.auths) >= {item.value for item in wanted} else None

    def apply(self, trip: Trip) -> None:
        auths = {hierarchy.value: Secret.random() for hierarchy in trip.options.wanted}
        trip.desk.protect(trip.octets("ek_name"), auths)
        trip.auths.update(auths)

    def _facts(self, trip: Trip) -> Facts:
        return {"auths": sorted(hierarchy.value for hierarchy in trip.options.wanted)}


class EscrowCopies(Look):
    """As many copies of the escrow record as the recipe asks for are durable, in places that don't fail together.

    Before each change, in a visit that resumes too: until then the station answers EscrowIncomplete, and the board
    waits.
    """

    name = "escrow-copies"
    seconds = COPIES_SECONDS
    repeatable = False

    def probe(self, trip: Trip) -> Facts:
        return {"escrow_copies": trip.desk.copy_escrow(trip.octets("ek_name"))}


class Srk(Action):
    """The storage root key is at 0x81000001, without auth, so that field clients can use it."""

    name = "srk"
    seconds = DERIVE_SECONDS

    def probe(self, trip: Trip) -> Facts | None:
        srk = state_of(trip).srk
        return None if srk is None else {"srk_public": srk}

    def apply(self, trip: Trip) -> None:
        owner = auth(trip, Hierarchy.OWNER, state_of(trip))
        trip.need(Ownership).make_srk(trip.call, current_ek(trip), SrkTemplate(trip.options.srk), owner)


class DictionaryAttack(Action):
    """Tries and recovery times are the recipe's."""

    name = "dictionary-attack"

    def probe(self, trip: Trip) -> Facts | None:
        return {} if state_of(trip).lockout_policy == trip.options.lockout_policy else None

    def apply(self, trip: Trip) -> None:
        lockout = auth(trip, Hierarchy.LOCKOUT, state_of(trip))
        trip.need(Ownership).set_lockout_policy(
            trip.call, current_ek(trip), trip.options.lockout_policy, lockout
        )


class _ProvableAuth(Action):
    """An auth that may be tried: a wrong one counts nowhere."""

    hierarchy: ClassVar[Hierarchy]

    def probe(self, trip: Trip) -> Facts | None:
        if self.hierarchy not in state_of(trip).auths_set:
            return None
        known = trip.auths.get(self.hierarchy.value)
        if known is not None and not trip.need(Ownership).proves(
            trip.call, current_ek(trip), self.hierarchy, known
        ):
            raise AlreadyOwned(f"{self.hierarchy} auth is set, and not to the value on record")
        return {f"{self.hierarchy}_auth": "proven" if known is not None else "on record"}

    def apply(self, trip: Trip) -> None:
        _set(trip, self.hierarchy)


class OwnerAuth(_ProvableAuth):
    """Owner auth is the escrowed value."""

    name = "owner-auth"
    hierarchy = Hierarchy.OWNER


class EndorsementAuth(_ProvableAuth):
    """Endorsement auth is the escrowed value. What the rest of the visit proves by the EK is authorised with it."""

    name = "endorsement-auth"
    hierarchy = Hierarchy.ENDORSEMENT


class LockoutAuth(Action):
    """Lockout auth is the escrowed value. Last, because from here on only the escrow can undo it."""

    name = "lockout-auth"

    def probe(self, trip: Trip) -> Facts | None:
        # Never tried: one wrong lockout try locks it. The intent before the change and the TPM's answer are the proof.
        if Hierarchy.LOCKOUT not in state_of(trip).auths_set:
            return None
        refuse_foreign(trip, frozenset({Hierarchy.LOCKOUT}))
        return {}

    def apply(self, trip: Trip) -> None:
        _set(trip, Hierarchy.LOCKOUT)


class Platform(Look):
    """Nobody can undo all this by an empty platform auth; or it is waived, and on record why."""

    name = "platform"
    repeatable = False

    def probe(self, trip: Trip) -> Facts:
        if not trip.need(Custody).platform_open(trip.call):
            return {"platform": "closed"}
        options = trip.options
        waiver = options.platform_reason or (
            BENCH_WAIVER if trip.about.bench and not options.platform else ""
        )
        if not waiver:
            raise PlatformOpen("the TPM's platform hierarchy is enabled with an empty auth")
        return {"platform": "open", "platform_waiver": waiver}


class NothingBeyond(Look):
    """No hierarchy has an auth that the recipe doesn't name."""

    name = "state"

    def probe(self, trip: Trip) -> Facts:
        state = state_of(trip)
        if state.auths_set != trip.options.wanted:
            raise AlreadyOwned(
                f"the TPM has {names(state.auths_set)} auth set; the recipe wants {names(trip.options.wanted)}"
            )
        return {
            "platform_enabled": state.platform_enabled,
            "disable_clear": state.disable_clear,
            "field_client_knows": sorted(trip.options.field_client_knows),
            "ownership_warnings": [text for _key, text in warnings(trip.options)],
        }


def _set(trip: Trip, hierarchy: Hierarchy) -> None:
    new = trip.auths[hierarchy.value]
    trip.need(Ownership).set_auth(trip.call, current_ek(trip), hierarchy, new, EMPTY)


def _actions(options: Options) -> tuple[Action, ...]:
    changes: dict[Hierarchy, Callable[[], Action]] = {
        Hierarchy.OWNER: OwnerAuth,
        Hierarchy.ENDORSEMENT: EndorsementAuth,
        Hierarchy.LOCKOUT: LockoutAuth,
    }
    auths = [make for hierarchy, make in changes.items() if hierarchy in options.wanted]
    copies = [EscrowCopies] if options.escrow_copies > 1 and auths else []
    return tuple(make() for make in (Escrow, *copies, Srk, DictionaryAttack, *auths, Platform, NothingBeyond))


def warnings(options: Options) -> Warnings:
    """What the recipe may do, and somebody will be sorry for (facts of the DPS clients: docs/escrow.md)."""
    found: list[tuple[str, str]] = []
    known = {Hierarchy(name) for name in options.field_client_knows}
    if options.attestation == "tpm":
        found += [("auths", BREAKS[item]) for item in BREAKS if item in options.wanted - known]
    if Hierarchy.LOCKOUT not in options.wanted:
        found.append(("auths", "without lockout auth anybody on the device can clear the TPM"))
    if options.platform == "waived":
        found.append(("platform", "an empty platform auth undoes ownership, and this recipe lets it pass"))
    return tuple(found)


STEP = Step(
    use="tpm-ownership",
    summary="escrow and set the auths, make the SRK",
    options=Options,
    actions=_actions,
    needs=lambda _options: ((Ownership, None), (Custody, None)),
    requires=lambda _options: frozenset({"ek_public", "ek_name", "unit"}),
    gives=lambda _options: frozenset({"auths", "srk_public"}),
    warnings=warnings,
)
