"""`tpm-ownership`: the TPM belongs to the factory's customer. Escrow comes before each change, lockout auth last.

Which auths are set follows from how the device will prove itself in the field: DPS clients need empty owner and
endorsement auth for a TPM enrollment, so that sets lockout only; an X.509 enrollment sets owner and lockout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from msgspec import Meta, Struct

from hal.errors import AlreadyOwned, LockedOut
from hal.interfaces import Ownership
from hal.secret import EMPTY, Secret
from hal.types import Hierarchy, LockoutPolicy, OwnershipState, SrkTemplate
from station.action import Action, Look, Step, Trip
from station.messages import Facts
from station.steps.tpm_identity import DERIVE_SECONDS, current_ek


class Options(Struct, frozen=True):
    auths: Annotated[
        list[Literal["owner", "lockout"]] | None,
        Meta(description="an array of 'owner' and 'lockout'; left out, it follows from the enrollment"),
    ] = None
    srk: Annotated[Literal["rsa2048", "p256"], Meta(description="'rsa2048' or 'p256'")] = "rsa2048"
    attestation: str = "tpm"
    """Filled in from the recipe's `enroll` step; it decides `auths` where these are left out."""
    untrusted_ek: Annotated[Literal["refuse", "accept"], Meta(description="'refuse' or 'accept'")] = "refuse"
    """Whether the auths may be given to a TPM whose EK nothing vouches for."""
    max_tries: Annotated[int, Meta(ge=1, le=1000)] = 31
    recovery_seconds: Annotated[int, Meta(ge=1, le=86400 * 7)] = 600
    lockout_recovery_seconds: Annotated[int, Meta(ge=0, le=86400 * 7)] = 86400

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


def _state(trip: Trip) -> OwnershipState:
    state = trip.need(Ownership).state(trip.call)
    if state.in_lockout:
        raise LockedOut(f"the TPM is in dictionary-attack lockout after {state.lockout_counter} wrong tries")
    return state


def _names(hierarchies: frozenset[Hierarchy]) -> str:
    return " and ".join(sorted(hierarchies)) or "no"


def _refuse_foreign(trip: Trip, hierarchies: frozenset[Hierarchy]) -> None:
    """AlreadyOwned for auths that are set although this station never began to: one wrong try on lockout locks it."""
    foreign = frozenset(item for item in hierarchies if not trip.ours(f"tpm-ownership.{item.value}-auth"))
    if foreign:
        raise AlreadyOwned(f"the TPM has {_names(foreign)} auth set, and this station never began to set it")


def auth(trip: Trip, hierarchy: Hierarchy, state: OwnershipState) -> Secret:
    """The hierarchy's auth as it is now: EMPTY, or the one on record. AlreadyOwned when it can't be known."""
    if hierarchy not in state.auths_set:
        return EMPTY
    _refuse_foreign(trip, frozenset({hierarchy}))
    if hierarchy.value not in trip.auths and trip.unit is not None and trip.unit.resumable:
        trip.auths.update(trip.desk.recover(trip.octets("ek_name")))
    if hierarchy.value not in trip.auths:
        raise AlreadyOwned(
            f"{hierarchy} auth is set, and its value is only in escrow",
            hint="Hand the board to an engineer: an officer opens the escrow for this rework.",
        )
    return trip.auths[hierarchy.value]


class Escrow(Action):
    """The values are chosen, sealed to the officers and durable, before the TPM hears of any."""

    name = "escrow"

    def probe(self, trip: Trip) -> Facts | None:
        state, wanted = _state(trip), trip.options.wanted
        escrowed = {Hierarchy(name) for name in (trip.unit.escrowed if trip.unit else [])}
        foreign = state.auths_set - (wanted & escrowed)
        if foreign:
            raise AlreadyOwned(f"the TPM has {_names(foreign)} auth set, and not by this recipe")
        _refuse_foreign(trip, state.auths_set)
        if state.auths_set >= wanted <= escrowed:
            return self._facts(trip)
        if wanted <= escrowed and trip.unit is not None and trip.unit.resumable:
            trip.auths.update(trip.desk.recover(trip.octets("ek_name")))
            return self._facts(trip)
        if state.auths_set:
            raise AlreadyOwned(
                f"the TPM has {_names(state.auths_set)} auth set, but not all of its escrow record has been",
                hint="Hand the board to an engineer: an officer opens the escrow for this rework.",
            )
        return self._facts(trip) if wanted and set(trip.auths) >= {item.value for item in wanted} else None

    def apply(self, trip: Trip) -> None:
        auths = {hierarchy.value: Secret.random() for hierarchy in trip.options.wanted}
        trip.desk.protect(trip.octets("ek_name"), auths)
        trip.auths.update(auths)

    def _facts(self, trip: Trip) -> Facts:
        return {"auths": sorted(hierarchy.value for hierarchy in trip.options.wanted)}


class Srk(Action):
    """The storage root key is at 0x81000001, without auth, so that field clients can use it."""

    name = "srk"
    seconds = DERIVE_SECONDS

    def probe(self, trip: Trip) -> Facts | None:
        srk = _state(trip).srk
        return None if srk is None else {"srk_public": srk}

    def apply(self, trip: Trip) -> None:
        owner = auth(trip, Hierarchy.OWNER, _state(trip))
        trip.need(Ownership).make_srk(trip.call, current_ek(trip), SrkTemplate(trip.options.srk), owner)


class DictionaryAttack(Action):
    """Tries and recovery times are the recipe's."""

    name = "dictionary-attack"

    def probe(self, trip: Trip) -> Facts | None:
        return {} if _state(trip).lockout_policy == trip.options.lockout_policy else None

    def apply(self, trip: Trip) -> None:
        lockout = auth(trip, Hierarchy.LOCKOUT, _state(trip))
        trip.need(Ownership).set_lockout_policy(
            trip.call, current_ek(trip), trip.options.lockout_policy, lockout
        )


class OwnerAuth(Action):
    """Owner auth is the escrowed value."""

    name = "owner-auth"

    def probe(self, trip: Trip) -> Facts | None:
        state = _state(trip)
        if Hierarchy.OWNER not in state.auths_set:
            return None
        known = trip.auths.get(Hierarchy.OWNER.value)
        if known is not None and not trip.need(Ownership).proves(
            trip.call, current_ek(trip), Hierarchy.OWNER, known
        ):
            raise AlreadyOwned("owner auth is set, and not to the value on record")
        return {"owner_auth": "proven" if known is not None else "on record"}

    def apply(self, trip: Trip) -> None:
        _set(trip, Hierarchy.OWNER)


class LockoutAuth(Action):
    """Lockout auth is the escrowed value. Last, because from here on only the escrow can undo it."""

    name = "lockout-auth"

    def probe(self, trip: Trip) -> Facts | None:
        # Never tried: one wrong lockout try locks it. The intent before the change and the TPM's answer are the proof.
        if Hierarchy.LOCKOUT not in _state(trip).auths_set:
            return None
        _refuse_foreign(trip, frozenset({Hierarchy.LOCKOUT}))
        return {}

    def apply(self, trip: Trip) -> None:
        _set(trip, Hierarchy.LOCKOUT)


class NothingBeyond(Look):
    """No hierarchy has an auth that the recipe doesn't name."""

    name = "state"

    def probe(self, trip: Trip) -> Facts:
        state = _state(trip)
        if state.auths_set != trip.options.wanted:
            raise AlreadyOwned(
                f"the TPM has {_names(state.auths_set)} auth set; the recipe wants {_names(trip.options.wanted)}"
            )
        return {"platform_enabled": state.platform_enabled, "disable_clear": state.disable_clear}


def _set(trip: Trip, hierarchy: Hierarchy) -> None:
    new = trip.auths[hierarchy.value]
    trip.need(Ownership).set_auth(trip.call, current_ek(trip), hierarchy, new, EMPTY)


def _actions(options: Options) -> tuple[Action, ...]:
    actions: list[Callable[[], Action]] = [Escrow, Srk, DictionaryAttack]
    if Hierarchy.OWNER in options.wanted:
        actions.append(OwnerAuth)
    if Hierarchy.LOCKOUT in options.wanted:
        actions.append(LockoutAuth)
    return tuple(make() for make in (*actions, NothingBeyond))


STEP = Step(
    use="tpm-ownership",
    summary="escrow and set the auths, make the SRK",
    options=Options,
    actions=_actions,
    needs=lambda _options: ((Ownership, None),),
    requires=lambda _options: frozenset({"ek_public", "ek_name", "unit"}),
    gives=lambda _options: frozenset({"auths", "srk_public"}),
)
