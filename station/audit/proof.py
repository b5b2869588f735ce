"""A unit's proof: its records, each with its path to the root of one signed checkpoint. Written and judged here.

It shows that each record was in the trail that was signed. That none is left out only a whole export can show.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Struct

from hal.errors import AuditBroken, quote
from station.audit import note, record
from station.audit.record import Record
from station.audit.tree import leaf_hash, root_from_inclusion
from station.audit.verify import HINT, Trust

VERSION: Final = 1
PROOF_LIMIT: Final = 64 * 1024 * 1024


class ProvenRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """`path`: hex, from the leaf's sibling up (RFC 6962, 2.1.1). The record's hash is over its canonical octets,
    whatever spaces the file has.
    """

    record: Record
    path: list[str]


class UnitProof(Struct, frozen=True, forbid_unknown_fields=True):
    """`key`: DER SubjectPublicKeyInfo, base64, for information. `unproven`: records that came after the checkpoint."""

    hallmark_audit_proof: int
    unit: str
    registration_id: str
    checkpoint: str
    key: str
    records: list[ProvenRecord]
    unproven: int


@dataclass(frozen=True, slots=True)
class Proven:
    head: note.Head
    unit: str
    records: list[Record]


class _Holder(Struct, frozen=True):
    """A device history record or an archive record: its proof is all that is wanted here."""

    audit: UnitProof


_decoder: Final = msgspec.json.Decoder(UnitProof)
_holder: Final = msgspec.json.Decoder(_Holder)


def make(
    unit: str,
    registration_id: str,
    checkpoint: bytes,
    key: bytes,
    records: Sequence[tuple[bytes, Sequence[bytes]]],
    unproven: int,
) -> UnitProof:
    """`records`: canonical octets and path of each."""
    return UnitProof(
        VERSION,
        unit,
        registration_id,
        checkpoint.decode(),
        base64.b64encode(key).decode(),
        [ProvenRecord(record.read(octets), [item.hex() for item in path]) for octets, path in records],
        unproven,
    )


def read(octets: bytes) -> UnitProof:
    """From a proof's file, or from a history.json that holds one. AuditBroken when it is none of this version."""
    try:
        try:
            found = _decoder.decode(octets)
        except msgspec.ValidationError:
            found = _holder.decode(octets).audit
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AuditBroken("this is no proof of a unit's audit records") from error
    if found.hallmark_audit_proof != VERSION:
        raise AuditBroken(f"a proof of version {found.hallmark_audit_proof}; this Hallmark reads {VERSION}")
    return found


def verify(proof: UnitProof, trust: Trust) -> Proven:
    """What the proof shows. AuditBroken names the first record that it doesn't hold for."""
    checkpoint = note.read_note(proof.checkpoint.encode())
    head = checkpoint.head
    known = [(head.size, head.root) == trust.root, any(head == item.head for item in trust.remembered)]
    if trust.keys:
        note.verify(checkpoint, trust.keys)
    elif not any(known):
        raise AuditBroken(
            "the proof's checkpoint is neither the root nor a checkpoint that you brought",
            hint="Give the checkpoints' key with --key.",
        )
    found: list[Record] = []
    for item in proof.records:
        seq, octets = item.record.seq, record.octets_of(item.record)
        try:
            path = [bytes.fromhex(step) for step in item.path]
        except ValueError as error:
            raise AuditBroken(f"the path of record {seq} is no list of hashes", hint=HINT) from error
        if root_from_inclusion(seq - 1, head.size, leaf_hash(octets), path) != head.root:
            raise AuditBroken(f"record {seq} is not in the trail that was signed", hint=HINT)
        found.append(item.record)
    _belong(proof.unit, found)
    return Proven(head, proof.unit, found)


def _belong(unit: str, records: Sequence[Record]) -> None:
    """Each record tells of the unit, or of a visit that another one of the unit's records names."""
    visits = {item.visit for item in records if item.unit == unit and item.visit is not None}
    order = [item.seq for item in records]
    if not records or order != sorted(set(order)):
        raise AuditBroken("the proof's records are none, or not in their order", hint=HINT)
    for item in records:
        if item.unit != unit and not (item.unit is None and item.visit in visits):
            raise AuditBroken(f"record {item.seq} does not tell of unit {quote(unit)}", hint=HINT)
