"""The archive record: what a collector keeps of a unit for life. Certificate, escrow, proofs; queued with its PASS."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from station.attestation import Transcript, from_json
from station.audit.proof import UnitProof
from station.messages import Facts
from station.store import Store
from station.trail import unit_proof
from station.trust.verdict import Verdict


class SealedEscrow(Struct, frozen=True):
    """`sealed`: CMS AuthEnvelopedData to the officers, DER."""

    ek_name: bytes
    generation: int
    hierarchies: list[str]
    sealed: bytes


class ArchiveRecord(Struct, frozen=True):
    """`chain`: DER, leaf first. `facts` by `step.action`: the proofs' transcripts are among them."""

    station: str
    unit: str
    registration_id: str
    sku: str
    chain: list[bytes]
    escrows: list[SealedEscrow]
    facts: dict[str, Facts]
    configuration: str = ""
    """SHA-256 of the signed configuration set of the last visit, hex; empty on a bench."""
    ek_verdict: Verdict | None = None
    """What vouches for its EK; None for boards without a TPM."""
    attestation: Transcript | None = None
    audit: UnitProof | None = None
    """The unit's audit records, proven against the newest checkpoint; None while the trail has none."""


def archive_record(station: str, store: Store, unit: str) -> bytes:
    """JSON of the unit's archive record as the store has it now, octets as base64."""
    record = store.unit(unit)
    if record is None:
        raise LookupError(f"there is no unit {unit}")
    return msgspec.json.encode(
        ArchiveRecord(
            station=station,
            unit=record.summary.unit,
            registration_id=record.summary.registration_id,
            sku=record.summary.sku,
            chain=record.certificate.chain if record.certificate else [],
            escrows=[
                SealedEscrow(item.ek_name, item.generation, item.hierarchies, item.sealed)
                for item in record.escrows
            ],
            facts=record.facts,
            configuration=(record.visits[-1].configuration or b"").hex() if record.visits else "",
            ek_verdict=record.ek_verdict,
            attestation=from_json(record.attestation) if record.attestation is not None else None,
            audit=unit_proof(store, unit) if store.audit_checkpoint() is not None else None,
        ),
        order="sorted",
    )
