"""Visits: from plug-in to verdict. And their journal: for each action the intent before, the result after.

Each function works inside the caller's transaction. Who the board is, is decided in `identity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import apsw
import msgspec

from hal.errors import (
    MESSAGE_LIMIT,
    Aborted,
    Outcome,
    PassMissing,
    ProtocolViolation,
    Quarantined,
    StationError,
    quote,
)
from station.messages import Facts
from station.store import audit, orders

BOOT_LENGTH: Final = 12
"""Characters of the kernel's boot ID that name a visit: enough to tell this station's boots apart."""

_pack: Final = msgspec.msgpack.Encoder(order="sorted")
_unpack: Final[msgspec.msgpack.Decoder[Facts]] = msgspec.msgpack.Decoder(Facts)
FACTS_LIMIT: Final = 128 * 1024
"""Octets of one action's facts: certificates and TPM structures, no images."""


@dataclass(frozen=True, slots=True)
class OpenVisit:
    """The columns of an open visit that decisions need."""

    visit: str
    nest: str
    sku: str
    unit: str | None
    work_order: str | None

    def joined(self) -> str:
        """Its unit; StationError while the board isn't known yet."""
        if self.unit is None:
            raise StationError(f"visit {self.visit} has joined no unit yet")
        return self.unit


def open_visit(
    db: apsw.Connection,
    now: int,
    nest: str,
    place: str,
    sku: str,
    recipe_pass: str,
    recipe_digest: bytes,
    boot_id: str,
    configuration: bytes | None = None,
    permitted: Sequence[str] | None = None,
) -> str:
    """Opens a visit and names it by nest, boot and number. One that is still open in this nest is ABORTED."""
    for (left_open,) in list(
        db.execute("SELECT visit FROM visits WHERE nest = ? AND closed IS NULL", (nest,))
    ):
        _abort(db, now, left_open, "another board came into the nest")
    boot = boot_id.replace("-", "")[:BOOT_LENGTH]
    number = db.execute(
        "SELECT 1 + coalesce(max(number), 0) FROM visits WHERE nest = ? AND boot = ?", (nest, boot)
    ).get
    visit = f"{nest}.{boot}.{number}"
    order = orders.reserve(db, sku, permitted)
    db.execute(
        "INSERT INTO visits (visit, nest, boot, number, place, sku, recipe_pass, recipe_digest, work_order, opened,"
        " configuration) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (visit, nest, boot, number, place, sku, recipe_pass, recipe_digest, order, now, configuration),
    )
    fields: dict[str, audit.Value] = {
        "place": place,
        "sku": sku,
        "pass": recipe_pass,
        "recipe": recipe_digest.hex(),
    }
    if configuration is not None:
        fields["configuration"] = configuration.hex()
    audit.append(
        db,
        now,
        "visit-opened",
        visit=visit,
        nest=nest,
        fields=fields,
    )
    return visit


def get_open(db: apsw.Connection, visit: str) -> OpenVisit:
    """The open visit of that name; StationError when it is closed or was never there."""
    row = db.execute(
        "SELECT visit, nest, sku, unit, work_order FROM visits WHERE visit = ? AND closed IS NULL", (visit,)
    ).fetchone()
    if row is None:
        raise StationError(f"visit {visit} isn't open")
    return OpenVisit(*row)


def begin(db: apsw.Connection, now: int, visit: str, step: str, action: str) -> None:
    """The intent to do an action. Again in the same visit: the earlier result no longer counts."""
    here = get_open(db, visit)
    if here.unit is not None:
        check_wanted(db, here.unit)
    db.execute(
        "INSERT INTO actions (visit, unit, step, action, begun) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (visit, step, action) DO UPDATE"
        " SET begun = excluded.begun, done = NULL, facts = NULL, found = 0",
        (visit, here.unit, step, action, now),
    )


def check_wanted(db: apsw.Connection, unit: str) -> None:
    """Quarantined when the unit was put aside since its visit began: nothing more is done to it."""
    aside, retired = next(db.execute("SELECT quarantine, retired FROM units WHERE unit = ?", (unit,)))
    if aside is not None or retired is not None:
        raise Quarantined(f"the unit was put aside: {retired or aside}")


def done(
    db: apsw.Connection, now: int, visit: str, step: str, action: str, facts: Facts, *, found: bool
) -> None:
    """An action's result. `found`: it was done before, and probing saw that."""
    here = get_open(db, visit)
    packed = _packed(facts)
    db.execute(
        "INSERT INTO actions (visit, unit, step, action, done, found, facts) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (visit, step, action) DO UPDATE"
        " SET done = excluded.done, found = excluded.found, facts = excluded.facts",
        (visit, here.unit, step, action, now, found, packed),
    )
    audit.append(
        db,
        now,
        "done",
        unit=here.unit,
        visit=visit,
        nest=here.nest,
        step=step,
        fields={"action": action, "found": found},
    )


def _packed(facts: Facts) -> bytes:
    """Facts as they are kept. ProtocolViolation for values of other types, or too many octets."""
    for name, value in facts.items():
        plain = value is None or isinstance(value, str | int | bytes)
        if not plain and not (
            isinstance(value, list)
            and (
                all(isinstance(part, str) for part in value) or all(isinstance(part, bytes) for part in value)
            )
        ):
            raise ProtocolViolation(f"fact {quote(name)} is of a type that can't be kept")
    packed = _pack.encode(facts)
    if len(packed) > FACTS_LIMIT:
        raise ProtocolViolation(f"facts of {len(packed)} octets are over the limit of {FACTS_LIMIT}")
    return packed


def require_pass(db: apsw.Connection, kind: str, value: str, sku: str, wanted: str) -> None:
    """PassMissing unless the unit with this strong identifier has a visit of that pass that ended in PASS."""
    found = db.execute(
        "SELECT 1 FROM identifiers JOIN visits USING (unit)"
        " WHERE kind = ? AND value = ? AND strong = 1 AND sku = ? AND recipe_pass = ? AND outcome = 'PASS'",
        (kind, value, sku, wanted),
    ).get
    if found is None:
        raise PassMissing(
            f"this board ({kind} {value[:20]}...) is not on record as having passed {quote(wanted)}, which this recipe"
            " comes after"
        )


def unpack(packed: bytes) -> Facts:
    """Facts as they came in."""
    return _unpack.decode(packed)


def facts_of(db: apsw.Connection, unit: str) -> dict[str, Facts]:
    """The facts on record by `step.action`: of each action its last result."""
    rows = db.execute(
        "SELECT step, action, facts, max(id) FROM actions WHERE unit = ? AND done IS NOT NULL GROUP BY step, action",
        (unit,),
    )
    return {f"{step}.{action}": _unpack.decode(facts) for step, action, facts, _ in rows}


def intents_of(db: apsw.Connection, unit: str) -> list[str]:
    """`step.action` whose last intent has no result: the device may or may not have done it."""
    rows = db.execute(
        "SELECT step, action, done, max(id) FROM actions WHERE unit = ? GROUP BY step, action", (unit,)
    )
    return [f"{step}.{action}" for step, action, result, _ in rows if result is None]


def close(
    db: apsw.Connection,
    now: int,
    visit: str,
    step: str | None,
    action: str | None,
    outcome: Outcome,
    code: str | None,
    message: str | None,
    hint: str | None,
) -> bool:
    """Ends a visit with its verdict. False, and nothing changes, when it has one."""
    row = db.execute("SELECT nest, unit, closed, work_order FROM visits WHERE visit = ?", (visit,)).fetchone()
    if row is None:
        raise StationError(f"there is no visit {visit}")
    nest, unit, closed, order = row
    if closed is not None:
        return False
    message = message and message[:MESSAGE_LIMIT]
    db.execute(
        "UPDATE visits SET closed = ?, outcome = ?, step = ?, action = ?, code = ?, message = ?, hint = ?"
        " WHERE visit = ?",
        (now, outcome, step, action, code, message, hint and hint[:MESSAGE_LIMIT], visit),
    )
    orders.count_attempt(db, order)
    fields: dict[str, audit.Value] = {"outcome": outcome}
    if code is not None:
        fields |= {"action": action, "code": code, "message": message}
    audit.append(db, now, "visit-closed", unit=unit, visit=visit, nest=nest, step=step, fields=fields)
    return True


def recover(db: apsw.Connection, now: int) -> list[str]:
    """Closes the visits that a crash left open, as ABORTED: their units go on when they come back."""
    left_open = [visit for (visit,) in list(db.execute("SELECT visit FROM visits WHERE closed IS NULL"))]
    for visit in left_open:
        _abort(db, now, visit, "the station stopped during this visit")
    return left_open


def _abort(db: apsw.Connection, now: int, visit: str, message: str) -> None:
    error = Aborted(message)
    close(db, now, visit, None, None, error.outcome, error.code, message, error.hint)
