"""What a TPM says of its auths, whose they are, and the values of ours. Nothing is set here, and no lockout auth tried.

An auth that is set is ours when the journal says that this station began to set it for this unit. Anything else is
somebody else's: never tried, never replaced.
"""

from __future__ import annotations

from collections.abc import Iterable

from hal.errors import AlreadyOwned, LockedOut, OfficerNeeded
from hal.interfaces import Ownership
from hal.secret import EMPTY, Secret
from hal.types import Hierarchy, OwnershipState
from station.action import Trip


def state_of(trip: Trip) -> OwnershipState:
    """LockedOut while the TPM takes no lockout auth. Reading it needs no auth and costs no try."""
    state = trip.need(Ownership).state(trip.call)
    if state.in_lockout:
        raise LockedOut(f"the TPM is in dictionary-attack lockout after {state.lockout_counter} wrong tries")
    return state


def names(hierarchies: Iterable[Hierarchy]) -> str:
    return " and ".join(sorted(hierarchies)) or "no"


def refuse_foreign(trip: Trip, hierarchies: Iterable[Hierarchy]) -> None:
    """AlreadyOwned for auths that are set although this station never began to: one wrong try on lockout locks it."""
    theirs = [item for item in hierarchies if not trip.ours(f"tpm-ownership.{item.value}-auth")]
    if theirs:
        raise AlreadyOwned(f"the TPM has {names(theirs)} auth set, and this station never began to set it")


def auth(trip: Trip, hierarchy: Hierarchy, state: OwnershipState) -> Secret:
    """The hierarchy's auth as it is now: EMPTY, or the one on record. OfficerNeeded when only escrow has it."""
    if hierarchy not in state.auths_set:
        return EMPTY
    refuse_foreign(trip, frozenset({hierarchy}))
    if hierarchy.value not in trip.auths and trip.unit is not None and trip.unit.resumable:
        trip.auths.update(trip.desk.recover(trip.octets("ek_name")))
    if hierarchy.value not in trip.auths:
        raise OfficerNeeded(f"{hierarchy} auth is set, and its value is only in escrow")
    return trip.auths[hierarchy.value]
