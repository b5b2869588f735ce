"""Showing the station that a key is in the TPM of the visit's EK. What it believes is `station.nest.attesting`'s."""

from __future__ import annotations

from hal.interfaces import KeyAttestation
from hal.types import AkKind
from station.action import Trip
from station.messages.worker import ATTESTATION_KEY
from station.steps.current_ek import current_ek


def prove_attestation_key(trip: Trip, kind: AkKind = AkKind.VISIT) -> bytes:
    """The AK's TPM2B_PUBLIC; ResidencyUnproven when the TPM can't open a credential for its EK and this AK."""
    tpm, ek = trip.need(KeyAttestation), current_ek(trip)
    ak = tpm.attestation_key(trip.call, kind)
    certificate = trip.facts.get("ek_certificate")
    credential, _ = trip.desk.credential(
        ATTESTATION_KEY, ek.public, ak, certificate if isinstance(certificate, bytes) else None
    )
    trip.desk.proven(tpm.activate(trip.call, ek, ak, credential), None)
    return ak
