"""A unit's files, from its record alone: certificate, EK, enrollment, escrow, and a summary for scripts.

Names and contents are a contract (the design's "Command line and files"). Each file appears whole or not at all.
No path comes from a text that a device or network made, unless it has the form of a registration ID.
"""

from __future__ import annotations

import base64
import hashlib
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from hal.errors import StationError, quote
from station.messages import Fact
from station.store.database import fsync_directory
from station.store.identity import REGISTRATION_ID
from station.store.records import UnitRecord
from station.whole_file import replace_file

PEM_WIDTH: Final = 64
"""Characters of a line, RFC 7468."""


def export(record: UnitRecord, out: Path, more: Mapping[str, bytes] | None = None) -> Path:
    """Writes the unit's files, and `more` by name, into `out`/REGISTRATION-ID/, replacing older ones, and gives that
    folder.
    """
    name = record.summary.registration_id
    if not REGISTRATION_ID.fullmatch(name):
        raise StationError(f"{quote(name)} is no registration ID: nothing is written under such a name")
    folder = out / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in (files(record) | dict(more or {})).items():
            replace_file(folder / file, data)
        fsync_directory(folder)
        fsync_directory(out)
    except OSError as error:
        raise StationError(f"{folder} can't be written: {os.strerror(error.errno or 0)}") from error
    return folder


def files(record: UnitRecord) -> dict[str, bytes]:
    """The files by name. What the unit has not got yet is left out."""
    found: dict[str, bytes] = {"unit.json": _json(_summary(record))}
    if record.certificate is not None and record.certificate.chain:
        found["device.pem"] = _pem(record.certificate.chain[0])
        found["chain.pem"] = b"".join(_pem(certificate) for certificate in record.certificate.chain)
    if isinstance(ek := _fact(record, "ek_public"), bytes):
        found["ek.pub"] = ek
    if record.escrows:
        found["escrow.p7m"] = record.escrows[-1].sealed
        # Where ownership was begun anew, the values before may still be what the TPM has.
        for escrow in record.escrows[:-1]:
            found[f"escrow-{escrow.ek_name.hex()[:16]}-{escrow.generation}.p7m"] = escrow.sealed
    if record.attestation is not None:
        found["attestation.json"] = record.attestation
    for item in record.outbox:
        if item.kind == "enrollment" and item.sent:
            found["enrollment.json"] = item.sent
    return found


def _summary(record: UnitRecord) -> dict[str, object]:
    summary, certificate = record.summary, record.certificate
    ek_name = next((item.value for item in record.identifiers if item.kind == "ek-name"), None)
    auths = _fact(record, "auths")
    return {
        "unit": summary.unit,
        "registration_id": summary.registration_id,
        "sku": summary.sku,
        "state": summary.state,
        "outcome": "PASS" if summary.passed_at is not None else summary.outcome,
        "created_at": summary.created_at,
        "passed_at": summary.passed_at,
        "quarantine": summary.quarantine,
        "retired": summary.retired,
        "decisions": [
            {
                "number": item.id,
                "kind": item.kind,
                "answer": item.answer,
                "reason": item.reason,
                "by": item.by,
            }
            for item in record.decisions
        ],
        "work_order": record.work_order,
        "configuration": record.visits[-1].configuration.hex()
        if record.visits and record.visits[-1].configuration
        else None,
        "scrap": record.scrap
        and {
            "at": record.scrap.at,
            "by": record.scrap.by,
            "reason": record.scrap.reason,
            "given_back_at": record.scrap.given_back_at,
            "proof": record.scrap.proof,
        },
        "identifiers": [{"kind": item.kind, "value": item.value} for item in record.identifiers],
        "ek_name": ek_name,
        "tpm": tpm_of(record),
        "key": key_of(record),
        "ek_trust": record.ek_verdict and msgspec.to_builtins(record.ek_verdict),
        "ownership": {"auths": auths if isinstance(auths, list) else []},
        "custody": {
            "platform": _fact(record, "platform"),
            "platform_waiver": _fact(record, "platform_waiver"),
            "field_client_knows": _fact(record, "field_client_knows"),
            "warnings": _fact(record, "ownership_warnings"),
        },
        "escrow": [
            {
                "generation": item.generation,
                "hierarchies": item.hierarchies,
                "ek_name": item.ek_name.hex(),
                "places": item.places,
            }
            for item in record.escrows
        ],
        "certificate": certificate
        and {
            "profile": certificate.profile,
            "serial": certificate.serial,
            "not_after": certificate.not_after,
            "sha256": hashlib.sha256(certificate.chain[0]).hexdigest(),
        },
        "enrollments": [
            {"sink": item.sink, "state": item.state, "etag": item.etag, "existed": item.existed}
            for item in record.outbox
            if item.kind == "enrollment" and item.state != "superseded"
        ],
    }


def ek_candidates(record: UnitRecord) -> list[str]:
    """The endorsement keys that were looked at, each with what became of it."""
    lines = _fact(record, "ek_candidates")
    return [line for line in lines if isinstance(line, str)] if isinstance(lines, list) else []


def tpm_of(record: UnitRecord) -> dict[str, object] | None:
    """What its TPM says it is, and whether that is a software TPM, which only a bench takes."""
    says = _fact(record, "tpm")
    return None if says is None else {"says": says, "software": _fact(record, "tpm_software") is True}


def key_of(record: UnitRecord) -> dict[str, object] | None:
    """Where the key of its certificate is kept, and how well; for a unit without one yet, the key it is known by."""
    facts = record.facts.get("certificate.key")
    if facts is not None and "key_protection" in facts:
        override = facts.get("key_override")
        return {
            "place": facts.get("key_place"),
            "protection": facts["key_protection"],
            **({"override": override} if override else {}),
        }
    facts = record.facts.get("key-identity.join", {})
    if "identity_protection" not in facts:
        return None
    return {"place": facts.get("identity_place"), "protection": facts["identity_protection"]}


def _fact(record: UnitRecord, name: str) -> Fact:
    """The fact of that name, whichever step of the recipe gave it."""
    return next((facts[name] for facts in record.facts.values() if name in facts), None)


def _pem(der: bytes) -> bytes:
    lines = textwrap.wrap(base64.b64encode(der).decode(), PEM_WIDTH)
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""]).encode()


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
