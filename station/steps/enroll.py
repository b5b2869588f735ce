"""`enroll`: what the cloud has to know of this unit is queued, in the transaction that makes the unit a PASS."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from hal.types import (
    Attestation,
    Enrollment,
    SealedSymmetricAttestation,
    SymmetricGroupAttestation,
    TpmAttestation,
    X509Attestation,
    X509GroupAttestation,
)
from station.action import Action, Step, Trip
from station.messages import Facts

Tag = Annotated[str, Meta(min_length=1, max_length=128)]


class Options(Struct, frozen=True):
    attestation: Annotated[
        Literal["tpm", "x509", "x509-group", "symmetric-key"],
        Meta(description="'tpm', 'x509', 'x509-group' or 'symmetric-key'"),
    ]
    group: Annotated[str, Meta(max_length=128, description="the enrollment group's name")] = ""
    tags: dict[Tag, Tag] = {}

    def __post_init__(self) -> None:
        grouped = {"x509-group": True, "symmetric-key": bool(self.group)}.get(self.attestation, False)
        if grouped != bool(self.group):
            raise ValueError(
                "`group` names the enrollment group of attestation 'x509-group', or of 'symmetric-key' with keys that"
                " are derived; of no other"
            )


class Queue(Action):
    name = "queue"

    def probe(self, trip: Trip) -> Facts | None:
        """Never found done: queueing the same content again adds nothing, and the transaction decides."""
        del trip
        return None

    def apply(self, trip: Trip) -> None:
        options: Options = trip.options
        attestation: Attestation
        if options.attestation == "tpm":
            srk = trip.facts.get("srk_public")
            attestation = TpmAttestation(trip.octets("ek_public"), srk if isinstance(srk, bytes) else None)
        elif options.attestation == "x509":
            attestation = X509Attestation(trip.octets_list("certificate_chain")[0])
        elif options.attestation == "symmetric-key" and options.group:
            attestation = SymmetricGroupAttestation(options.group)
        elif options.attestation == "symmetric-key":
            attestation = SealedSymmetricAttestation(trip.octets("symmetric_sealed"))
        else:
            attestation = X509GroupAttestation(options.group, trip.octets_list("certificate_chain")[0])
        name = trip.text("registration_id")
        trip.enrollment = Enrollment(
            name, name, attestation, {"sku": trip.about.sku, **options.tags, **_kind_of_tpm(trip)}
        )

    def verify(self, trip: Trip) -> Facts:
        return {"attestation": trip.options.attestation}


def _evidence(options: Options) -> str:
    """The fact that the cloud will know the unit by."""
    if options.attestation == "tpm":
        return "ek_public"
    if options.attestation == "symmetric-key":
        return "symmetric_group" if options.group else "symmetric_sealed"
    return "certificate_chain"


def _kind_of_tpm(trip: Trip) -> dict[str, str]:
    """A software TPM is for a bench: whoever sees the enrollment later has to see that too."""
    return {"tpm": "software"} if trip.facts.get("tpm_software") is True else {}


STEP = Step(
    use="enroll",
    summary="queue the enrollment; the unit passes with it",
    options=Options,
    actions=lambda _options: (Queue(),),
    needs=lambda _options: (),
    requires=lambda options: frozenset({"registration_id", "unit", _evidence(options)}),
)
