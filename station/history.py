"""A unit's whole file, the device history record: who it is, what was done to it when, what was trusted, and proofs.

Made from the store alone; nothing in it is secret (escrow is told of, not opened). How it looks on paper is
`history_page`'s matter.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from msgspec import Struct

from hal.errors import StationError, quote
from station.audit.proof import UnitProof
from station.audit.record import Record, read
from station.store import Store
from station.store.decisions import Decision
from station.store.records import (
    DoneAction,
    IdentifierRecord,
    OutboxRecord,
    UnitRecord,
    UnitSummary,
    VisitRecord,
)
from station.trail import unit_proof
from station.trust.verdict import Verdict

VERSION: Final = 1
JSON_FILE, PAGE_FILE = "history.json", "history.html"


class CertificateFact(Struct, frozen=True):
    """One certificate of the chain. Texts are RFC 4514; digests are hex. `unreadable`: why no more is said of it."""

    sha256: str
    der: bytes
    subject: str = ""
    issuer: str = ""
    serial: str = ""
    not_before: str = ""
    not_after: str = ""
    spki_sha256: str = ""
    unreadable: str = ""


class EscrowFact(Struct, frozen=True):
    """That there is an escrow, and of what; the sealed octets are in `escrow.p7m` beside."""

    ek_name: str
    generation: int
    hierarchies: list[str]
    recorded_at: float
    sealed_sha256: str


class EnrollmentFact(Struct, frozen=True):
    sink: str
    state: str
    tries: int
    queued_at: float
    closed_at: float | None
    etag: str | None
    existed: bool
    code: str | None
    message: str | None
    sent_sha256: str


class History(Struct, frozen=True):
    """`hallmark_history`: the format's version. `trail`: the audit trail's origin, empty while it has no checkpoint.

    `records`: every audit record of the unit; `audit` proves those that the newest checkpoint covers. Times of the
    records are Unix milliseconds, all others Unix seconds.
    """

    hallmark_history: int
    made_at: float
    trail: str
    summary: UnitSummary
    work_order: str | None
    identifiers: list[IdentifierRecord]
    visits: list[VisitRecord]
    actions: list[DoneAction]
    profile: str
    certificates: list[CertificateFact]
    ek_verdict: Verdict | None
    escrows: list[EscrowFact]
    enrollments: list[EnrollmentFact]
    decisions: list[Decision]
    records: list[Record]
    audit: UnitProof | None

    @property
    def outcome(self) -> str:
        """The word for the top of the page: PASS once it passed, else how its last visit ended, or OPEN."""
        return "PASS" if self.summary.passed_at is not None else self.summary.outcome or "OPEN"


def history(store: Store, unit: str) -> History:
    """The unit's file as the store has it now. StationError when there is no such unit."""
    found = store.whole_unit(unit)
    if found is None:
        raise StationError(f"there is no unit {quote(unit)}", hint="See `hallmark units`.")
    record, actions = found
    signed = store.audit_checkpoint() is not None
    return History(
        hallmark_history=VERSION,
        made_at=dt.datetime.now(dt.UTC).timestamp(),
        trail=store.audit_known_origin() or "",
        summary=record.summary,
        work_order=record.work_order,
        identifiers=record.identifiers,
        visits=record.visits,
        actions=actions,
        profile=record.certificate.profile if record.certificate else "",
        certificates=[certificate(der) for der in record.certificate.chain] if record.certificate else [],
        ek_verdict=record.ek_verdict,
        escrows=_escrows(record),
        enrollments=[_enrollment(item) for item in record.outbox if item.kind == "enrollment"],
        decisions=record.decisions,
        records=_records(store, record.summary.unit),
        audit=unit_proof(store, record.summary.unit) if signed else None,
    )


def encode(made: History) -> bytes:
    """JSON, for machines and archives; octets as base64."""
    return msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n"


def certificate(der: bytes) -> CertificateFact:
    """What a certificate says of itself. One that can't be read is told as such: it may be a vendor's."""
    digest = hashlib.sha256(der).hexdigest()
    try:
        found = x509.load_der_x509_certificate(der)
        spki = found.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return CertificateFact(
            digest,
            der,
            subject=found.subject.rfc4514_string(),
            issuer=found.issuer.rfc4514_string(),
            serial=f"{found.serial_number:x}",
            not_before=f"{found.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}",
            not_after=f"{found.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
            spki_sha256=hashlib.sha256(spki).hexdigest(),
        )
    except ValueError as error:
        return CertificateFact(digest, der, unreadable=quote(str(error)))


def _escrows(record: UnitRecord) -> list[EscrowFact]:
    return [
        EscrowFact(
            item.ek_name.hex(),
            item.generation,
            item.hierarchies,
            item.recorded_at,
            hashlib.sha256(item.sealed).hexdigest(),
        )
        for item in record.escrows
    ]


def _enrollment(item: OutboxRecord) -> EnrollmentFact:
    return EnrollmentFact(
        item.sink,
        item.state,
        item.tries,
        item.queued_at,
        item.closed_at,
        item.etag,
        item.existed,
        item.code,
        item.message,
        hashlib.sha256(item.sent).hexdigest() if item.sent else "",
    )


def _records(store: Store, unit: str) -> list[Record]:
    found: list[Record] = []
    since = 0
    while page := store.audit_leaves_of(unit, since):
        found += [read(leaf.record) for leaf in page]
        since = page[-1].seq
    return found
