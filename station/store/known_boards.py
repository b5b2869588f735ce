"""Boards whose identity is in doubt: both sides are put aside, a person is asked, the answer is carried out.

A known board with another EK or key, with another serial, one that shows two units' parts, one identity in two nests.
None of these is decided here: a replaced part, a cloned TPM and a mistake look the same from a station.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import apsw
import msgspec

from hal.errors import IdentityConflict, StationError
from station.store import audit, decisions, escrow
from station.store.decisions import Decision

Claim = tuple[str, str]
Effects = Mapping[tuple[str, str], Callable[[apsw.Connection, int, Decision], None]]
"""What the answers to each kind of question bring about, in the answer's transaction."""

ANOTHER_EK: Final = "another-ek"
"""A board that claims a known unit's serial or MAC shows another EK or key. `other` is the unit it claims to be."""
ANOTHER_SERIAL: Final = "another-serial"
"""A known EK or key comes on a board with other claims: a changed part, or a clone."""
SHARED_CLAIM: Final = "shared-claim"
"""A known unit's board claims what is on record for another known unit (`other`)."""
TWO_NESTS: Final = "two-nests"
"""One identity is in two nests at once."""

REPLACED, TWO_BOARDS, REJECT = "replaced", "two-boards", "reject"
SAME_BOARD, CLONE, MOVED = "same-board", "clone", "moved"
CHOICES: Final = {
    ANOTHER_EK: {
        REPLACED: "the TPM (or key) of that board was replaced: the old unit is retired, the new one goes on",
        TWO_BOARDS: "these are two boards with one serial or MAC: both go on",
        REJECT: "the newcomer is retired, the known unit goes on",
    },
    ANOTHER_SERIAL: {
        SAME_BOARD: "it is the same board with a changed part or label: its new claims are recorded",
        CLONE: "two boards share this identity: it is retired, set both boards aside",
    },
    SHARED_CLAIM: {
        MOVED: "the part or label moved to this board: the claim is its own now",
        TWO_BOARDS: "these are two boards with one serial or MAC: both go on",
        REJECT: "this unit is retired, the other goes on",
    },
    TWO_NESTS: {
        SAME_BOARD: "it was one board, moved while its visit was open: it goes on",
        CLONE: "two boards share this identity: it is retired, set both boards aside",
    },
}
"""The answers to each kind of question, with what they mean."""
WAITS_FOR: Final = "decision "
"""How a quarantine begins that a question's answer ends; its number follows."""
HINT: Final = "Set the board aside: both units wait for an engineer, see `hallmark decisions`."

_claims: Final[msgspec.json.Decoder[list[Claim]]] = msgspec.json.Decoder(list[Claim])


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a board can't simply be the unit that it seems to be. `other`: whom it contradicts."""

    kind: str
    message: str
    unit: str | None
    other: str | None = None
    claim: Claim | None = None


def set_aside(
    db: apsw.Connection, now: int, doubt: Doubt, unit: str, claims: Sequence[Claim], visit: str, nest: str
) -> IdentityConflict:
    """Puts `unit` and the one that it contradicts into quarantine and asks; the error that the technician sees."""
    subject = unit if doubt.other is None else f"{unit} {doubt.other}"
    kind, value = doubt.claim or ("", "")
    asked = decisions.ask(
        db,
        now,
        doubt.kind,
        subject,
        doubt.message,
        list(CHOICES[doubt.kind]),
        unit=unit,
        details={
            "unit": unit,
            "other": doubt.other or "",
            "claim_kind": kind,
            "claim_value": value,
            "claims": msgspec.json.encode(list(claims)).decode(),
        },
        visit=visit,
        nest=nest,
    )
    for name in filter(None, (unit, doubt.other)):
        quarantine(db, now, name, asked)
    return IdentityConflict(doubt.message, hint=f"{HINT} This is number {asked.id}.")


def check_free(db: apsw.Connection, unit: str) -> None:
    """StationError while an open question holds the unit: only its answer releases it."""
    number = db.execute("SELECT id FROM decisions WHERE unit = ? AND answered IS NULL", (unit,)).get
    reason = db.execute("SELECT quarantine FROM units WHERE unit = ?", (unit,)).get or ""
    if number is None and reason.startswith(WAITS_FOR):
        text = reason.removeprefix(WAITS_FOR).split(":", 1)[0]
        found = decisions.get(db, int(text)) if text.isdigit() else None
        number = found.id if found is not None and found.answer is None else None
    if number is not None:
        raise StationError(
            f"the unit waits for decision {number}",
            hint=f"An engineer answers it: `hallmark decisions answer {number} ANSWER --reason TEXT`.",
        )


def decide(
    db: apsw.Connection,
    now: int,
    number: int,
    choice: str,
    reason: str,
    by: str,
    effects: Effects | None = None,
) -> Decision:
    """Records the answer and carries it out, in the caller's transaction. See `decisions.answer` for what it raises.

    `effects` are those of other rooms' questions.
    """
    made = decisions.answer(db, now, number, choice, reason, by)
    carry_out = {**EFFECTS, **(effects or {})}.get((made.kind, choice))
    if carry_out is not None:
        carry_out(db, now, made)
    return made


# --- what answers bring about ----------------------------------------------------------------------------------


def _replaced(db: apsw.Connection, now: int, made: Decision) -> None:
    unit, other = made.details["unit"], made.details["other"]
    db.execute("UPDATE identifiers SET unit = ? WHERE unit = ? AND strong = 0", (unit, other))
    retire(db, now, other, made, f"its TPM or key was replaced; the board is unit {_name(db, unit)} now")
    release(db, now, unit, made)


def _two_boards(db: apsw.Connection, now: int, made: Decision) -> None:
    unit, other = made.details["unit"], made.details["other"]
    db.execute(
        "INSERT INTO allowed_claims (kind, value, unit, decision) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (made.details["claim_kind"], made.details["claim_value"], unit, made.id),
    )
    release(db, now, unit, made)
    release(db, now, other, made)


def _reject(db: apsw.Connection, now: int, made: Decision) -> None:
    retire(db, now, made.details["unit"], made, "rejected")
    release(db, now, made.details["other"], made)


def _moved(db: apsw.Connection, now: int, made: Decision) -> None:
    unit, kind, value = (made.details[key] for key in ("unit", "claim_kind", "claim_value"))
    db.execute("UPDATE identifiers SET unit = ? WHERE kind = ? AND value = ?", (unit, kind, value))
    release(db, now, unit, made)
    release(db, now, made.details["other"], made)


def _same_board(db: apsw.Connection, now: int, made: Decision) -> None:
    unit, claims = made.details["unit"], _claims.decode(made.details["claims"])
    for kind in {kind for kind, _ in claims}:
        db.execute("DELETE FROM identifiers WHERE unit = ? AND kind = ? AND strong = 0", (unit, kind))
    visit = db.execute("SELECT visit FROM identifiers WHERE unit = ? AND strong = 1", (unit,)).get
    for kind, value in claims:
        db.execute(
            "INSERT INTO identifiers (kind, value, unit, strong, visit, recorded) VALUES (?, ?, ?, 0, ?, ?)"
            " ON CONFLICT (kind, value) DO NOTHING",
            (kind, value, unit, visit, now),
        )
    release(db, now, unit, made)


def _moved_between_nests(db: apsw.Connection, now: int, made: Decision) -> None:
    release(db, now, made.details["unit"], made)


def _clone(db: apsw.Connection, now: int, made: Decision) -> None:
    retire(db, now, made.details["unit"], made, "two boards show its identity")


EFFECTS: Final[Effects] = {
    (ANOTHER_EK, REPLACED): _replaced,
    (ANOTHER_EK, TWO_BOARDS): _two_boards,
    (ANOTHER_EK, REJECT): _reject,
    (ANOTHER_SERIAL, SAME_BOARD): _same_board,
    (ANOTHER_SERIAL, CLONE): _clone,
    (SHARED_CLAIM, MOVED): _moved,
    (SHARED_CLAIM, TWO_BOARDS): _two_boards,
    (SHARED_CLAIM, REJECT): _reject,
    (TWO_NESTS, SAME_BOARD): _moved_between_nests,
    (TWO_NESTS, CLONE): _clone,
}


def quarantine(db: apsw.Connection, now: int, unit: str, asked: Decision) -> None:
    """A unit that is aside already stays so for its first reason."""
    reason = f"{WAITS_FOR}{asked.id}: {asked.question}"
    db.execute("UPDATE units SET quarantine = ? WHERE unit = ? AND quarantine IS NULL", (reason, unit))
    if db.changes():
        audit.append(db, now, "quarantined", unit=unit, fields={"reason": reason, "by": "station"})


def release(db: apsw.Connection, now: int, unit: str, made: Decision) -> None:
    """Ends the quarantine that this question began, and no other."""
    db.execute(
        "UPDATE units SET quarantine = NULL WHERE unit = ? AND quarantine = ?",
        (unit, f"{WAITS_FOR}{made.id}: {made.question}"),
    )
    if db.changes():
        audit.append(db, now, "released", unit=unit, fields={"reason": made.reason, "by": made.by})


def retire(db: apsw.Connection, now: int, unit: str, made: Decision, why: str) -> None:
    """Out for good. What is queued for it isn't sent any more; what a service took already is named for a person."""
    text = f"{why} (decision {made.id})"
    escrow.forget(db, unit)
    db.execute(
        "UPDATE units SET retired = coalesce(retired, ?), quarantine = NULL WHERE unit = ?", (text, unit)
    )
    db.execute(
        "UPDATE outbox SET state = 'superseded', closed = ?"
        " WHERE unit = ? AND kind = 'enrollment' AND state IN ('queued', 'parked')",
        (now, unit),
    )
    taken = [
        str(sink)
        for (sink,) in db.execute(
            "SELECT DISTINCT sink FROM outbox WHERE unit = ? AND kind = 'enrollment' AND state = 'acknowledged'",
            (unit,),
        )
    ]
    fields = {"reason": text, "by": made.by, "to_withdraw_at": ", ".join(taken) or None}
    audit.append(db, now, "retired", unit=unit, fields=fields)


def _name(db: apsw.Connection, unit: str) -> str:
    return str(db.execute("SELECT registration_id FROM units WHERE unit = ?", (unit,)).get)
