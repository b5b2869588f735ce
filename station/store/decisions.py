"""Questions that only a permitted person may answer, and their answers: asked once, answered once, never deleted.

A question stands for its (kind, subject) until it is answered; who asks decides what waits meanwhile. The answer, its
reason and who gave it are on the audit trail. What an answer brings about is in the room of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import apsw
import msgspec
from msgspec import Struct

from station.status.view import PAGE_LIMIT
from station.store import audit

REASON_LIMIT: Final = 500
"""Characters of the reason that goes with an answer."""


class Decision(Struct, frozen=True):
    """One question. `answer` is one of `choices`, None while it waits; `used_at`: when what it permits was done."""

    id: int
    kind: str
    subject: str
    unit: str | None
    question: str
    choices: list[str]
    details: dict[str, str]
    asked_at: float
    answered_at: float | None
    answer: str | None
    reason: str | None
    by: str | None
    used_at: float | None


_COLUMNS: Final = (
    "id, kind, subject, unit, question, choices, details, asked, answered, answer, reason, by, used"
)
_words: Final[msgspec.msgpack.Decoder[list[str]]] = msgspec.msgpack.Decoder(list[str])
_texts: Final[msgspec.msgpack.Decoder[dict[str, str]]] = msgspec.msgpack.Decoder(dict[str, str])


def ask(
    db: apsw.Connection,
    now: int,
    kind: str,
    subject: str,
    question: str,
    choices: Sequence[str],
    *,
    unit: str | None = None,
    details: dict[str, str] | None = None,
    visit: str | None = None,
    nest: str | None = None,
) -> Decision:
    """The open question of this kind and subject, asked now where there is none."""
    standing = latest(db, kind, subject)
    if standing is not None and standing.answer is None:
        return standing
    db.execute(
        "INSERT INTO decisions (kind, subject, unit, question, choices, details, asked) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            kind,
            subject,
            unit,
            question,
            msgspec.msgpack.encode(list(choices)),
            msgspec.msgpack.encode(details or {}),
            now,
        ),
    )
    asked = get(db, db.last_insert_rowid())
    audit.append(
        db,
        now,
        "decision-asked",
        unit=unit,
        visit=visit,
        nest=nest,
        fields={"decision": asked.id, "kind": kind, "subject": subject, "question": question},
    )
    return asked


def answer(db: apsw.Connection, now: int, number: int, choice: str, reason: str, by: str) -> Decision:
    """Answers it, once. LookupError for a number without open question, ValueError for a word that is no choice."""
    found = get(db, number)
    if found.answer is not None:
        raise LookupError(f"decision {number} was answered already: {found.answer}")
    if choice not in found.choices:
        raise ValueError(f"{choice!a} is no answer to decision {number}; expected {', '.join(found.choices)}")
    if not reason.strip() or len(reason) > REASON_LIMIT:
        raise ValueError(f"a decision needs a reason of 1 to {REASON_LIMIT} characters")
    db.execute(
        "UPDATE decisions SET answered = ?, answer = ?, reason = ?, by = ? WHERE id = ?",
        (now, choice, reason, by, number),
    )
    audit.append(
        db,
        now,
        "decision-answered",
        unit=found.unit,
        fields={"decision": number, "kind": found.kind, "answer": choice, "reason": reason, "by": by},
    )
    return get(db, number)


def use(db: apsw.Connection, now: int, number: int) -> Decision:
    """Marks what an answer permits as done. LookupError when it was used before, or isn't answered."""
    found = get(db, number)
    if found.answer is None or found.used_at is not None:
        raise LookupError(f"decision {number} can't be used (again)")
    db.execute("UPDATE decisions SET used = ? WHERE id = ?", (now, number))
    audit.append(db, now, "decision-used", unit=found.unit, fields={"decision": number, "kind": found.kind})
    return get(db, number)


def latest(db: apsw.Connection, kind: str, subject: str) -> Decision | None:
    """The newest question of this kind and subject, answered or not."""
    row = db.execute(
        f"SELECT {_COLUMNS} FROM decisions WHERE kind = ? AND subject = ? ORDER BY id DESC LIMIT 1",  # noqa: S608 - constants
        (kind, subject),
    ).fetchone()
    return _decision(*row) if row else None


def get(db: apsw.Connection, number: int) -> Decision:
    """LookupError for a number that isn't there."""
    row = db.execute(f"SELECT {_COLUMNS} FROM decisions WHERE id = ?", (number,)).fetchone()  # noqa: S608 - constants
    if row is None:
        raise LookupError(f"there is no decision {number}")
    return _decision(*row)


def listed(db: apsw.Connection, limit: int, after: int, *, waiting: bool) -> list[Decision]:
    """Those with a number over `after`, in order; with `waiting` only those without an answer."""
    where = "AND answered IS NULL" if waiting else ""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM decisions WHERE id > ? {where} ORDER BY id LIMIT ?",  # noqa: S608 - constants
        (after, max(0, min(limit, PAGE_LIMIT))),
    )
    return [_decision(*row) for row in rows]


def of_unit(db: apsw.Connection, unit: str) -> list[Decision]:
    """All that concern a unit, in order."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM decisions WHERE unit = ? ORDER BY id LIMIT ?",  # noqa: S608 - constants
        (unit, PAGE_LIMIT),
    )
    return [_decision(*row) for row in rows]


def waiting(db: apsw.Connection) -> int:
    """How many questions wait for an answer."""
    return int(db.execute("SELECT count(*) FROM decisions WHERE answered IS NULL").get)


def _decision(
    number: int,
    kind: str,
    subject: str,
    unit: str | None,
    question: str,
    choices: bytes,
    details: bytes,
    asked: int,
    answered: int | None,
    answer: str | None,
    reason: str | None,
    by: str | None,
    used: int | None,
) -> Decision:
    return Decision(
        number,
        kind,
        subject,
        unit,
        question,
        _words.decode(choices),
        _texts.decode(details),
        asked / 1000,
        None if answered is None else answered / 1000,
        answer,
        reason,
        by,
        None if used is None else used / 1000,
    )
