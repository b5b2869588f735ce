"""What was proven of a unit's TPM keys, kept with the unit. What a transcript says is `station.attestation`'s."""

from __future__ import annotations

import hashlib

import apsw

from station.attestation import from_json
from station.store import audit, visits


def record(db: apsw.Connection, now: int, visit: str, transcript: bytes) -> None:
    """Keeps the transcript of the visit's unit in place of an older one, and its digest on the audit trail.

    One without a device key doesn't replace one that has it for the same EK: a visit that only proves that the TPM is
    there takes nothing away.
    """
    here = visits.get_open(db, visit)
    unit = here.joined()
    proven, before = from_json(transcript), of_unit(db, unit)
    if proven.key is None and before is not None:
        known = from_json(before)
        if known.key is not None and known.ek_public == proven.ek_public:
            return
    db.execute(
        "INSERT INTO attestations (unit, visit, recorded, transcript) VALUES (?, ?, ?, ?) ON CONFLICT (unit)"
        " DO UPDATE SET visit = excluded.visit, recorded = excluded.recorded, transcript = excluded.transcript",
        (unit, visit, now, transcript),
    )
    audit.append(
        db,
        now,
        "attested",
        unit=unit,
        visit=visit,
        nest=here.nest,
        fields={"device_key": proven.key is not None, "sha256": hashlib.sha256(transcript).hexdigest()},
    )


def of_unit(db: apsw.Connection, unit: str) -> bytes | None:
    found: bytes | None = db.execute("SELECT transcript FROM attestations WHERE unit = ?", (unit,)).get
    return found
