"""Which unit a board is. The rules that keep two boards from being one unit, and one board from being two.

A strong identifier (EK Name; a key's digest for boards without a TPM) names the unit. What a board merely claims
(serial, MAC) is recorded and compared, but never makes it another unit, nor takes anything from the unit it names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import apsw

from hal.errors import IdentityConflict, ProtocolViolation, Quarantined, quote
from station.messages import Unit
from station.store import audit, escrow, keys, orders, owned_tpms, visits
from station.store.known_boards import (
    ANOTHER_EK,
    ANOTHER_SERIAL,
    SHARED_CLAIM,
    TWO_NESTS,
    Claim,
    Doubt,
    check_free,
    set_aside,
)
from station.unit_id import unit_id

STRONG: Final = {"ek-name": re.compile(r"[0-9a-f]{44,132}"), "key": re.compile(r"[0-9a-f]{64}")}
"""Strong identifiers in lower-case hex: a TPM Name (2 octets of algorithm and a digest), SHA-256 of an SPKI."""
MANY_VALUED: Final = frozenset({"mac"})
"""Claims of which a board has several, and newer firmware may know more. Of any other kind a unit has one."""
REGISTRATION_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9:._-]{0,126}[a-z0-9])?")
CLAIM_LIMIT: Final = 32
TEXT_LIMIT: Final = 128


def join(
    db: apsw.Connection,
    now: int,
    visit: str,
    kind: str,
    value: str,
    registration_id: str,
    claims: Sequence[Claim],
) -> Unit | IdentityConflict:
    """Ties a visit to the unit with this strong identifier, making it at its first visit.

    A conflict is returned, not raised: it is on the audit trail then, and the caller's transaction has to keep that.
    A board whose identity is in doubt, and the unit that it contradicts, are put aside until a person has decided.
    """
    _check_form(kind, value, registration_id, claims)
    here = visits.get_open(db, visit)
    known = db.execute("SELECT unit FROM identifiers WHERE kind = ? AND value = ?", (kind, value)).get
    conflict = _conflict(db, here, known, kind, registration_id, claims)
    if isinstance(conflict, Doubt):
        conflict = _put_aside(db, now, here, conflict, (kind, value), registration_id, claims)
    if conflict is not None:
        audit.append(
            db,
            now,
            "quarantine-refused" if isinstance(conflict, Quarantined) else "identity-conflict",
            unit=known,
            visit=visit,
            nest=here.nest,
            fields={"kind": kind, "value": value, "message": str(conflict)},
        )
        return conflict
    counted = db.execute("SELECT work_order FROM units WHERE unit = ?", (known,)).get if known else None
    orders.check(db, here.sku, here.work_order, counted)
    unit = known or _create(db, now, here, kind, value, registration_id)
    if kind == "key":
        keys.claim(db, now, unit, bytes.fromhex(value), keys.IDENTITY, visit)
    for claimed_kind, claimed in claims:
        if claimed_kind == "ek-key":
            keys.claim(db, now, unit, bytes.fromhex(claimed), keys.ENDORSEMENT, visit)
        db.execute(
            "INSERT INTO identifiers (kind, value, unit, strong, visit, recorded) VALUES (?, ?, ?, 0, ?, ?)"
            " ON CONFLICT (kind, value) DO NOTHING",
            (claimed_kind, claimed, unit, visit, now),
        )
    db.execute("UPDATE visits SET unit = ? WHERE visit = ?", (unit, visit))
    db.execute("UPDATE actions SET unit = ? WHERE visit = ?", (unit, visit))
    audit.append(
        db,
        now,
        "joined",
        unit=unit,
        visit=visit,
        nest=here.nest,
        fields={
            "kind": kind,
            "value": value,
            "returning": known is not None,
            "registration_id": registration_id,
        },
    )
    return describe(db, unit, returning=known is not None)


def _put_aside(
    db: apsw.Connection,
    now: int,
    here: visits.OpenVisit,
    doubt: Doubt,
    strong: Claim,
    registration_id: str,
    claims: Sequence[Claim],
) -> IdentityConflict:
    """A newcomer gets a record of its own, so that there is something to decide about."""
    unit = doubt.unit or _create(db, now, here, *strong, registration_id)
    if doubt.kind != TWO_NESTS:
        db.execute("UPDATE visits SET unit = ? WHERE visit = ?", (unit, here.visit))
        db.execute("UPDATE actions SET unit = ? WHERE visit = ?", (unit, here.visit))
    return set_aside(db, now, doubt, unit, claims, here.visit, here.nest)


def open_elsewhere(db: apsw.Connection, visit: str, kind: str, value: str) -> bool:
    """Whether the unit of this strong identifier has an open visit other than `visit`."""
    found = db.execute(
        "SELECT 1 FROM visits JOIN identifiers USING (unit)"
        " WHERE identifiers.kind = ? AND identifiers.value = ? AND closed IS NULL AND visits.visit <> ?",
        (kind, value, visit),
    ).get
    return found is not None


def describe(db: apsw.Connection, unit: str, *, returning: bool) -> Unit:
    """What is on record for a unit, as the worker needs it."""
    registration_id = db.execute("SELECT registration_id FROM units WHERE unit = ?", (unit,)).get
    hierarchies, resumable = escrow.standing(db, unit)
    return Unit(
        unit=unit,
        registration_id=registration_id,
        returning=returning,
        facts=visits.facts_of(db, unit),
        escrowed=hierarchies,
        resumable=resumable,
        intents=visits.intents_of(db, unit),
        may_clear=owned_tpms.permitted(db, unit) is not None,
    )


def unit_of(db: apsw.Connection, name: str) -> str | None:
    """The unit ID for a unit ID or a registration ID, None where there is none."""
    found: str | None = db.execute(
        "SELECT unit FROM units WHERE unit = ?1 OR registration_id = ?1", (name,)
    ).get
    return found


def set_quarantine(db: apsw.Connection, now: int, unit: str, reason: str | None, by: str) -> None:
    """Puts a unit aside, or with no reason releases it. LookupError for one that isn't there, or isn't aside."""
    name = unit_of(db, unit)
    if name is None:
        raise LookupError(f"there is no unit {unit}")
    was = db.execute("SELECT quarantine FROM units WHERE unit = ?", (name,)).get
    if reason is None and was is None:
        raise LookupError(f"unit {unit} isn't in quarantine")
    if reason is None:
        check_free(db, name)
    db.execute("UPDATE units SET quarantine = ? WHERE unit = ?", (reason, name))
    kind = "released" if reason is None else "quarantined"
    audit.append(db, now, kind, unit=name, fields={"reason": reason or was, "by": by})


def _check_form(kind: str, value: str, registration_id: str, claims: Sequence[Claim]) -> None:
    form = STRONG.get(kind)
    if form is None or not form.fullmatch(value):
        raise ProtocolViolation(f"{quote(kind)} {quote(value)} is no strong identifier")
    if not REGISTRATION_ID.fullmatch(registration_id):
        raise ProtocolViolation(f"{quote(registration_id)} is no registration ID")
    if len(claims) > CLAIM_LIMIT:
        raise ProtocolViolation(f"a board that claims {len(claims)} identifiers")
    for claimed_kind, claimed in claims:
        if claimed_kind in STRONG or not claimed_kind or not claimed or len(claimed) > TEXT_LIMIT:
            raise ProtocolViolation(f"{quote(claimed_kind)} {quote(claimed)} is no claim a board can make")


def _create(
    db: apsw.Connection, now: int, here: visits.OpenVisit, kind: str, value: str, registration_id: str
) -> str:
    unit = unit_id(kind, value)
    db.execute(
        "INSERT INTO units (unit, registration_id, sku, created) VALUES (?, ?, ?, ?)",
        (unit, registration_id, here.sku, now),
    )
    db.execute(
        "INSERT INTO identifiers (kind, value, unit, strong, visit, recorded) VALUES (?, ?, ?, 1, ?, ?)",
        (kind, value, unit, here.visit, now),
    )
    return unit


def _conflict(
    db: apsw.Connection,
    here: visits.OpenVisit,
    known: str | None,
    kind: str,
    registration_id: str,
    claims: Sequence[Claim],
) -> IdentityConflict | Doubt | None:
    if here.unit is not None and here.unit != known:
        return IdentityConflict(
            f"another board is in the nest than the one that this visit began with, {_name(db, here.unit)}"
        )
    if known is not None and (conflict := _conflict_with_record(db, here, known, registration_id, claims)):
        return conflict
    owner = db.execute("SELECT unit FROM units WHERE registration_id = ?", (registration_id,)).get
    if owner is not None and owner != known:
        return IdentityConflict(f"the registration ID {registration_id} is {_name(db, owner)}'s")
    for claim in claims:
        owner = db.execute("SELECT unit FROM identifiers WHERE kind = ? AND value = ?", claim).get
        if owner is not None and owner != known and not _allowed(db, known, claim):
            return _claim_of_another(db, known, owner, kind, claim)
    return None


def _allowed(db: apsw.Connection, unit: str | None, claim: Claim) -> bool:
    """Whether a person has decided that this unit, too, may claim this."""
    found = db.execute(
        "SELECT 1 FROM allowed_claims WHERE (kind, value, unit) = (?, ?, ?)", (*claim, unit)
    ).get
    return found is not None


def _conflict_with_record(
    db: apsw.Connection, here: visits.OpenVisit, unit: str, registration_id: str, claims: Sequence[Claim]
) -> IdentityConflict | Doubt | None:
    recorded_id, sku, quarantine, retired = next(
        db.execute("SELECT registration_id, sku, quarantine, retired FROM units WHERE unit = ?", (unit,))
    )
    name = _name(db, unit)
    if retired is not None:
        return Quarantined(
            f"{name} is out for good: {retired}", hint="Set the board aside as scrap; it is never made again."
        )
    if quarantine is not None:
        return Quarantined(f"{name} is in quarantine: {quarantine}")
    nest = db.execute(
        "SELECT nest FROM visits WHERE unit = ? AND closed IS NULL AND visit <> ?", (unit, here.visit)
    ).get
    if nest is not None:
        message = f"{name} is in nest {nest} right now: a board with the same identity is here too"
        return Doubt(TWO_NESTS, message, unit)
    if sku != here.sku:
        return IdentityConflict(
            f"{name} is a {sku}, this nest makes {here.sku}",
            hint="Put the board into a nest for its own SKU.",
        )
    if recorded_id != registration_id:
        return IdentityConflict(
            f"{name} is on record with that registration ID, and now has {registration_id}"
        )
    for claimed_kind in sorted({claimed_kind for claimed_kind, _ in claims}):
        claimed = {value for other, value in claims if other == claimed_kind}
        recorded = {
            value
            for (value,) in db.execute(
                "SELECT value FROM identifiers WHERE unit = ?1 AND kind = ?2"
                " UNION SELECT value FROM allowed_claims WHERE unit = ?1 AND kind = ?2",
                (unit, claimed_kind),
            )
        }
        same = claimed & recorded if claimed_kind in MANY_VALUED else claimed <= recorded
        if recorded and not same:
            message = (
                f"{name} is on record with {claimed_kind} {_list(recorded)}, this board says {_list(claimed)}:"
                " a cloned identity, or a swapped part"
            )
            return Doubt(ANOTHER_SERIAL, message, unit)
    return None


def _claim_of_another(db: apsw.Connection, known: str | None, owner: str, kind: str, claim: Claim) -> Doubt:
    said = f"its {claim[0]} {quote(claim[1])} is {_name(db, owner)}'s"
    if known is not None:
        return Doubt(SHARED_CLAIM, f"this board is {_name(db, known)}, but {said}", known, owner, claim)
    what = "EK" if kind == "ek-name" else "key"
    return Doubt(ANOTHER_EK, f"known board with another {what}: {said}", None, owner, claim)


def _name(db: apsw.Connection, unit: str) -> str:
    registration_id = db.execute("SELECT registration_id FROM units WHERE unit = ?", (unit,)).get
    return f"unit {registration_id}"


def _list(values: set[str]) -> str:
    return ", ".join(quote(value, 40) for value in sorted(values)[:3])
