"""Reads units, their whole records and outbox rows, as `records` shapes them. Nothing is written here.

Each question is bounded by a limit. Times leave as Unix seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import apsw
import msgspec

from station.status.view import PAGE_LIMIT
from station.store import (
    attestations,
    audit,
    certificates,
    decisions,
    escrow,
    identity,
    scraps,
    trust,
    visits,
)
from station.store.records import (
    ActionRecord,
    CertificateRecord,
    DoneAction,
    EscrowRecord,
    IdentifierRecord,
    OutboxRecord,
    ScrapRecord,
    UnitRecord,
    UnitSummary,
    VisitRecord,
)

ALL: Final = 1_000_000
"""Rows of a part: more than any unit has."""
PART_LIMIT: Final = 200
"""Rows of each part (actions, visits, events ...) of one unit's record: the newest."""
LAST_CHARACTER: Final = "\U0010ffff"
"""Sorts behind every continuation of a prefix."""
_SUMMARY: Final = """
SELECT units.unit, registration_id, units.sku, created, passed, quarantine, last.outcome, last.visit, retired
  FROM units LEFT JOIN visits AS last ON last.rowid =
       (SELECT rowid FROM visits WHERE unit = units.unit ORDER BY opened DESC, rowid DESC LIMIT 1)
"""
_MATCHES: Final = """
      SELECT unit FROM units WHERE registration_id BETWEEN ?1 AND ?2
UNION SELECT unit FROM units WHERE unit BETWEEN ?1 AND ?2
UNION SELECT unit FROM identifiers WHERE value BETWEEN ?1 AND ?2
"""
_OUTBOX: Final = """
seq, kind, outbox.unit, registration_id, sink, state, tries, outbox.queued, closed, code, message, hint, etag, existed
"""
_names: Final[msgspec.msgpack.Decoder[list[str]]] = msgspec.msgpack.Decoder(list[str])


def units(db: apsw.Connection, limit: int, after: str | None, query: str | None) -> list[UnitSummary]:
    """Newest first, beginning behind the unit `after`; `query` is the beginning of an ID or another identifier."""
    before = db.execute("SELECT id FROM units WHERE unit = ? OR registration_id = ?", (after, after)).get
    bound = before if before is not None else (1 << 62)
    limit = max(0, min(limit, PAGE_LIMIT))
    if not query:
        rows = db.execute(f"{_SUMMARY} WHERE units.id < ? ORDER BY units.id DESC LIMIT ?", (bound, limit))
    else:
        end = query + LAST_CHARACTER
        rows = db.execute(
            f"{_SUMMARY} WHERE units.id < ?3 AND units.unit IN ({_MATCHES}) ORDER BY units.id DESC LIMIT ?4",
            (query, end, bound, limit),
        )
    return [_summary(*row) for row in rows]


def passed(db: apsw.Connection, units: Sequence[str]) -> list[str]:
    """Those of `units` that have passed, in their order."""
    return [
        unit
        for unit in units
        if db.execute("SELECT 1 FROM units WHERE unit = ? AND passed IS NOT NULL", (unit,)).fetchone()
    ]


def unit(db: apsw.Connection, name: str, part: int = PART_LIMIT) -> UnitRecord | None:
    """The whole record by unit ID or registration ID, None where there is none. `part`: rows of each of its parts."""
    found = identity.unit_of(db, name)
    if found is None:
        return None
    return UnitRecord(
        summary=_summary(*next(db.execute(f"{_SUMMARY} WHERE units.unit = ?", (found,)))),
        work_order=db.execute("SELECT work_order FROM units WHERE unit = ?", (found,)).get,
        identifiers=_identifiers(db, found),
        facts=visits.facts_of(db, found),
        intents=visits.intents_of(db, found),
        actions=_actions(db, found, part),
        visits=_visits(db, found, part),
        certificate=_certificate(db, found),
        escrows=_escrows(db, found, part),
        outbox=_outbox_of(db, found, part),
        decisions=decisions.of_unit(db, found),
        events=audit.events_of(db, found, part),
        ek_verdict=trust.verdict_of(db, found),
        attestation=attestations.of_unit(db, found),
        scrap=_scrap(db, found),
    )


def actions_of(db: apsw.Connection, name: str) -> list[DoneAction]:
    """Every action of the unit's visits, in order, those before the board was known among them."""
    rows = db.execute(
        "SELECT actions.visit, actions.step, actions.action, begun, done, found, facts FROM actions"
        " JOIN visits ON visits.visit = actions.visit WHERE visits.unit = ? ORDER BY visits.opened, actions.id",
        (name,),
    )
    return [
        DoneAction(
            visit, step, action, _seconds(begun), _seconds(done), bool(was), facts and visits.unpack(facts)
        )
        for visit, step, action, begun, done, was, facts in rows
    ]


def outbox_items(db: apsw.Connection, limit: int, after: int, state: str | None) -> list[OutboxRecord]:
    """Rows with a number over `after`, in order, of one state or all; without content."""
    limit = max(0, min(limit, PAGE_LIMIT))
    # Spelled out, so that the partial indexes serve: a parameter would make it read a million acknowledged rows.
    where = (
        f"AND state = '{state}'"
        if state in {"queued", "parked", "superseded"}
        else "AND (?2 IS NULL OR state = ?2)"
    )
    rows = db.execute(
        f"SELECT {_OUTBOX} FROM outbox JOIN units USING (unit) WHERE seq > ?1 {where} ORDER BY seq LIMIT ?3",  # noqa: S608 - constants
        (after, state, limit),
    )
    return [_outbox(*row) for row in rows]


def _summary(
    name: str,
    registration_id: str,
    sku: str,
    created: int,
    passed: int | None,
    quarantine: str | None,
    outcome: str | None,
    visit: str | None,
    retired: str | None,
) -> UnitSummary:
    out = "scrapped" if (retired or "").startswith(scraps.SCRAPPED) else "retired"
    aside = out if retired is not None else "quarantined" if quarantine is not None else None
    state = aside or ("passed" if passed is not None else "open")
    return UnitSummary(
        name,
        registration_id,
        sku,
        state,
        created / 1000,
        _seconds(passed),
        quarantine,
        outcome,
        visit,
        retired,
    )


def _identifiers(db: apsw.Connection, name: str) -> list[IdentifierRecord]:
    rows = db.execute(
        "SELECT kind, value, strong FROM identifiers WHERE unit = ? ORDER BY strong DESC, kind, value",
        (name,),
    )
    return [IdentifierRecord(kind, value, bool(strong)) for kind, value, strong in rows]


def _actions(db: apsw.Connection, name: str, part: int) -> list[ActionRecord]:
    rows = list(
        db.execute(
            "SELECT visit, step, action, begun, done, found FROM actions WHERE unit = ? ORDER BY id DESC LIMIT ?",
            (name, part),
        )
    )
    return [
        ActionRecord(visit, step, action, _seconds(begun), _seconds(done), bool(found))
        for visit, step, action, begun, done, found in reversed(rows)
    ]


def _visits(db: apsw.Connection, name: str, part: int) -> list[VisitRecord]:
    rows = list(
        db.execute(
            "SELECT visit, nest, place, recipe_pass, recipe_digest, opened / 1000.0, closed / 1000.0, outcome, step,"
            " action, code, message, hint, configuration FROM visits WHERE unit = ?"
            " ORDER BY opened DESC, rowid DESC LIMIT ?",
            (name, part),
        )
    )
    return [VisitRecord(*row) for row in reversed(rows)]


def _certificate(db: apsw.Connection, name: str) -> CertificateRecord | None:
    row = db.execute("SELECT profile, serial, not_after FROM certificates WHERE unit = ?", (name,)).fetchone()
    if row is None:
        return None
    return CertificateRecord(row[0], row[1], row[2] / 1000, certificates.of_unit(db, name) or [])


def _scrap(db: apsw.Connection, name: str) -> ScrapRecord | None:
    made = scraps.of_unit(db, name)
    if made is None:
        return None
    given_back = _seconds(made.given_back)
    return ScrapRecord(
        made.at / 1000, made.by, made.reason, made.serial, list(made.sinks), given_back, made.proof
    )


def _escrows(db: apsw.Connection, name: str, part: int) -> list[EscrowRecord]:
    rows = list(
        db.execute(
            "SELECT ek_name, generation, hierarchies, sealed, recorded FROM escrows WHERE unit = ?"
            " ORDER BY generation DESC LIMIT ?",
            (name, part),
        )
    )
    return [
        EscrowRecord(
            ek_name,
            generation,
            _names.decode(hierarchies),
            sealed,
            recorded / 1000,
            escrow.places(db, ek_name, generation),
        )
        for ek_name, generation, hierarchies, sealed, recorded in reversed(rows)
    ]


def _outbox_of(db: apsw.Connection, name: str, part: int) -> list[OutboxRecord]:
    rows = list(
        db.execute(
            f"SELECT {_OUTBOX}, content, coalesce(sent, x'') FROM outbox JOIN units USING (unit)"  # noqa: S608 - a constant
            " WHERE outbox.unit = ? ORDER BY seq DESC LIMIT ?",
            (name, part),
        )
    )
    return [_outbox(*row) for row in reversed(rows)]


def _outbox(
    seq: int,
    kind: str,
    name: str,
    registration_id: str,
    sink: str,
    state: str,
    tries: int,
    queued: int,
    closed: int | None,
    code: str | None,
    message: str | None,
    hint: str | None,
    etag: str | None,
    existed: int,
    content: bytes = b"",
    sent: bytes = b"",
) -> OutboxRecord:
    return OutboxRecord(
        seq,
        kind,
        name,
        registration_id,
        sink,
        state,
        tries,
        queued / 1000,
        _seconds(closed),
        code,
        message,
        hint,
        etag,
        bool(existed),
        content,
        sent,
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
