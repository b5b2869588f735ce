"""What people and scripts are given of the store: units, their whole records, outbox rows. Types only, no SQL.

Times are Unix seconds; octets are as they are (msgspec writes base64 into JSON). Read by `record_reads`.
"""

from __future__ import annotations

from msgspec import Struct

from station.messages import Facts
from station.status.view import EventView
from station.store.decisions import Decision
from station.trust.verdict import Verdict


class UnitSummary(Struct, frozen=True):
    """One line of the list. `state`: open, passed, quarantined, retired or scrapped; `outcome` of its last visit."""

    unit: str
    registration_id: str
    sku: str
    state: str
    created_at: float
    passed_at: float | None
    quarantine: str | None
    outcome: str | None
    visit: str | None
    retired: str | None = None
    """Why it is out for good."""


class IdentifierRecord(Struct, frozen=True):
    kind: str
    value: str
    strong: bool


class ActionRecord(Struct, frozen=True):
    visit: str
    step: str
    action: str
    begun_at: float | None
    done_at: float | None
    found: bool


class DoneAction(Struct, frozen=True):
    """An action with what it gave, as its visit left it. `facts` is None while it has no result."""

    visit: str
    step: str
    action: str
    begun_at: float | None
    done_at: float | None
    found: bool
    facts: Facts | None


class VisitRecord(Struct, frozen=True):
    visit: str
    nest: str
    place: str
    recipe_pass: str
    recipe_digest: bytes
    opened_at: float
    closed_at: float | None
    outcome: str | None
    step: str | None
    action: str | None
    code: str | None
    message: str | None
    hint: str | None
    configuration: bytes | None = None
    """SHA-256 of the signed configuration set that it was made with."""


class CertificateRecord(Struct, frozen=True):
    profile: str
    serial: str
    not_after: float
    chain: list[bytes]


class EscrowRecord(Struct, frozen=True):
    ek_name: bytes
    generation: int
    hierarchies: list[str]
    sealed: bytes
    recorded_at: float
    places: list[str] = []
    """Where else the record is durable: second media."""


class OutboxRecord(Struct, frozen=True):
    """`content` is what was queued, `sent` the same as the sink received it; both empty in lists."""

    seq: int
    kind: str
    unit: str
    registration_id: str
    sink: str
    state: str
    tries: int
    queued_at: float
    closed_at: float | None
    code: str | None
    message: str | None
    hint: str | None
    etag: str | None
    existed: bool
    content: bytes = b""
    sent: bytes = b""


class ScrapRecord(Struct, frozen=True):
    """`sinks` had its enrollment when it was scrapped; `proof`: what the signer recorded, None until it did."""

    at: float
    by: str
    reason: str
    serial: str | None
    sinks: list[str]
    given_back_at: float | None
    proof: str | None


class UnitRecord(Struct, frozen=True):
    """All that is known of a unit."""

    summary: UnitSummary
    work_order: str | None
    identifiers: list[IdentifierRecord]
    facts: dict[str, Facts]
    intents: list[str]
    actions: list[ActionRecord]
    visits: list[VisitRecord]
    certificate: CertificateRecord | None
    escrows: list[EscrowRecord]
    outbox: list[OutboxRecord]
    events: list[EventView]
    ek_verdict: Verdict | None = None
    """What vouches for its EK, as its latest visit found."""
    scrap: ScrapRecord | None = None
    decisions: list[Decision] = []
    """Questions about this unit that a person was asked, and the answers."""
    attestation: bytes | None = None
    """JSON of `station.attestation.Transcript`: what was proven of its TPM keys."""
