"""What is remembered of trust: the verdict on each visit's EK, and the newest bundle that ever took effect.

The verdicts are made elsewhere; here they are kept, and an older bundle than one before is recognised.
"""

from __future__ import annotations

from typing import Final

import apsw
import msgspec

from hal.errors import ConfigError
from station.store import audit, visits
from station.trust.verdict import Verdict

_encoder: Final = msgspec.json.Encoder(order="sorted")
_decoder: Final[msgspec.json.Decoder[Verdict]] = msgspec.json.Decoder(Verdict)


def record_verdict(db: apsw.Connection, now: int, visit: str, ek_name: bytes, verdict: Verdict) -> None:
    """Keeps the verdict with its open visit; asked again in one visit, the last one counts."""
    here = visits.get_open(db, visit)
    db.execute(
        "INSERT INTO ek_verdicts (visit, ek_name, recorded, verdict) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (visit, ek_name) DO UPDATE SET recorded = excluded.recorded, verdict = excluded.verdict",
        (visit, ek_name, now, _encoder.encode(verdict).decode()),
    )
    audit.append(
        db,
        now,
        "ek-judged",
        visit=visit,
        nest=here.nest,
        fields={
            "ek_name": ek_name.hex(),
            "trust": verdict.trust,
            "anchor": verdict.anchor_sha256,
            "lot": verdict.lot,
            "bundle": verdict.bundle_serial,
            "crl": verdict.crl,
        },
    )


def verdict_of(db: apsw.Connection, unit: str) -> Verdict | None:
    """The latest verdict on the unit's own EK."""
    text = db.execute(
        "SELECT verdict FROM ek_verdicts JOIN visits USING (visit) JOIN identifiers ON identifiers.unit = visits.unit"
        " WHERE visits.unit = ? AND kind = 'ek-name' AND strong = 1 AND value = lower(hex(ek_name))"
        " ORDER BY ek_verdicts.recorded DESC, ek_verdicts.rowid DESC LIMIT 1",
        (unit,),
    ).get
    return None if text is None else _decoder.decode(text)


def newest_bundle(db: apsw.Connection) -> tuple[int, bytes] | None:
    """Serial number and digest of the newest bundle that took effect here."""
    row = db.execute("SELECT serial, sha256 FROM trust_bundles ORDER BY serial DESC LIMIT 1").fetchone()
    return None if row is None else (row[0], row[1])


def take_bundle(db: apsw.Connection, now: int, serial: int, sha256: bytes, signer: str) -> bool:
    """The bundle takes effect; False when it had before. ConfigError for one that is older than one before it."""
    known = newest_bundle(db)
    if known == (serial, sha256):
        return False
    if known is not None and serial <= known[0]:
        raise ConfigError(
            f"trust bundle {serial} is older than bundle {known[0]}, which this station has had"
            if serial < known[0]
            else f"there are two trust bundles with the number {serial}",
            hint="An engineer imports the newest bundle: `hallmark trust import`.",
        )
    db.execute(
        "INSERT INTO trust_bundles (serial, sha256, signer, installed) VALUES (?, ?, ?, ?)",
        (serial, sha256, signer, now),
    )
    audit.append(
        db,
        now,
        "trust-bundle-taken",
        fields={
            "serial": serial,
            "sha256": sha256.hex(),
            "signer": signer,
            "before": known[0] if known else 0,
        },
    )
    return True
