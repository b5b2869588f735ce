"""The parts of `tpm-identity` that matter only for a TPM with auths set: proof of its EK, and the permitted Clear.

A TPM whose endorsement auth is set can't activate a credential until that auth is known, and the auth is on record
under the EK Name. So it first shows that it has the EK by a session salted to it, which needs no auth; joins; and then,
with the auth, proves an AK as every other. Whether a Clear is permitted is decided by a person, not here.
"""

from __future__ import annotations

from hal.errors import AlreadyOwned, EkMismatch
from hal.interfaces import Custody, EndorsementIdentity, Ownership
from hal.types import Hierarchy
from station.action import Action, Look, Trip
from station.messages import Facts
from station.steps.attest import prove_attestation_key
from station.steps.current_ek import current_ek
from station.steps.tpm_auths import auth, names

SECONDS = 120.0
"""A CreatePrimary of an RSA key takes up to tens of seconds on real chips."""


def is_sealed(trip: Trip) -> bool:
    """Whether the endorsement auth is set, so that credentials are activated only by who knows it."""
    if not trip.board.has(Custody) or not trip.board.has(Ownership):
        return False
    return Hierarchy.ENDORSEMENT in trip.need(Ownership).state(trip.call).auths_set


def show_possession(trip: Trip) -> Facts:
    """What stands in for the AK's proof until the unit is known."""
    trip.need(Custody).holds_ek(trip.call, current_ek(trip))
    return {"ek_possession": "salted session"}


class Clear(Action):
    """What somebody else set is cleared, where an engineer has permitted it for this TPM; else it is left alone."""

    name = "clear"
    seconds = SECONDS

    def probe(self, trip: Trip) -> Facts | None:
        if trip.unit is None or not trip.unit.may_clear or not trip.board.has(Custody):
            return {}
        state = trip.need(Ownership).state(trip.call)
        if state.auths_set or (state.srk is not None and not trip.ours("tpm-ownership.srk")):
            return None
        return {"tpm_cleared_by": trip.facts.get("tpm_cleared_by")}

    def apply(self, trip: Trip) -> None:
        custody, ek = trip.need(Custody), current_ek(trip)
        lockout = None
        if not custody.platform_open(trip.call):
            offered = trip.desk.recover(ek.name) if trip.unit and trip.unit.resumable else {}
            lockout = offered.get(Hierarchy.LOCKOUT.value)
            if lockout is None:
                state = trip.need(Ownership).state(trip.call)
                raise AlreadyOwned(
                    f"the TPM has {names(state.auths_set)} auth set; clearing it is permitted, but platform auth is"
                    " set and its lockout auth isn't known",
                    hint="Whoever owned it brings the lockout auth (`hallmark escrow offer`), or the firmware clears"
                    " it; then plug the board in again.",
                )
        custody.clear(trip.call, ek, lockout)
        trip.facts["tpm_cleared_by"] = "platform" if lockout is None else "lockout"
        # What was proven before stands for a TPM that is no more: the key at its handle went, and the AK with it.
        for fact in ("ek_handle", "ak_public"):
            trip.facts.pop(fact, None)

    def verify(self, trip: Trip) -> Facts:
        facts = super().verify(trip)
        report = trip.need(EndorsementIdentity).derive(trip.call, trip.text("ek_template"))
        if not any(key.name == trip.octets("ek_name") for key in report.keys):
            raise EkMismatch("after the Clear the TPM has another endorsement key than before")
        return facts


class LateAttestation(Look):
    """The AK's proof where it had to wait: for the endorsement auth, or for a Clear."""

    name = "late-attestation"
    seconds = SECONDS
    repeatable = False

    def probe(self, trip: Trip) -> Facts:
        if "ak_public" in trip.facts:
            return {}
        ek = current_ek(trip)
        if is_sealed(trip):
            ownership = trip.need(Ownership)
            known = auth(trip, Hierarchy.ENDORSEMENT, ownership.state(trip.call))
            if not ownership.proves(trip.call, ek, Hierarchy.ENDORSEMENT, known):
                raise AlreadyOwned("endorsement auth is set, and not to the value on record")
        return {"ak_public": prove_attestation_key(trip)}
