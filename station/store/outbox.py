"""The outbox: what sinks still have to be told, and what they answered. Rows are marked, never deleted here.

A row leaves 'queued' in one of three ways: acknowledged, parked (a person decides), superseded by newer content for the
same unit and sink. Who holds what right now is in `leases`, in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import apsw

from hal.errors import by_code, quote
from station.messages import Item, Outcome
from station.store import audit

ENROLLMENT: Final = "enrollment"
ARCHIVE: Final = "archive"
ARCHIVE_SINK: Final = "archive"
"""The sink name under which archive records are leased."""
BATCH_LIMIT: Final = 100
"""Items of one lease."""
BATCH_OCTETS: Final = 1 << 19
"""Octets of content in one lease: a frame has to hold it."""


@dataclass(frozen=True, slots=True)
class Due:
    """A row that may be leased. `key` is what only one lease at a time may hold: one unit's place in one sink."""

    item: Item
    key: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Depth:
    """Rows by state, the oldest that is queued and the last acknowledgement (Unix milliseconds)."""

    queued: int = 0
    parked: int = 0
    acknowledged: int = 0
    oldest: int | None = None
    last_upload: int | None = None


def put(db: apsw.Connection, now: int, unit: str, kind: str, sink: str, content: bytes) -> bool:
    """Queues `content` for a sink, in the place of what that has not got yet.

    The same as the newest that is there adds nothing and gives False.
    """
    digest = hashlib.sha256(content).digest()
    newest = db.execute(
        "SELECT digest FROM outbox WHERE (unit, kind, sink) = (?, ?, ?) ORDER BY seq DESC LIMIT 1",
        (unit, kind, sink),
    ).fetchone()
    if newest is not None and newest[0] == digest:
        return False
    db.execute(
        "UPDATE outbox SET state = 'superseded', closed = ?"
        " WHERE unit = ? AND kind = ? AND sink = ? AND state IN ('queued', 'parked')",
        (now, unit, kind, sink),
    )
    db.execute(
        "INSERT INTO outbox (kind, unit, sink, digest, content, queued) VALUES (?, ?, ?, ?, ?, ?)",
        (kind, unit, sink, digest, content, now),
    )
    return True


def due(db: apsw.Connection, sink: str, most: int, held: Collection[tuple[str, str]]) -> list[Due]:
    """At most `most` queued rows of a sink that nobody holds, least tried first, then oldest.

    What belongs to a unit in quarantine waits with it: its identity may be another's.
    """
    found: list[Due] = []
    octets = 0
    rows = db.execute(
        "SELECT seq, unit, registration_id, content, tries FROM outbox JOIN units USING (unit)"
        " WHERE sink = ? AND state = 'queued' AND quarantine IS NULL ORDER BY tries, seq LIMIT ?",
        (sink, len(held) + min(most, BATCH_LIMIT)),
    )
    for seq, unit, registration_id, content, tries in rows:
        octets += len(content)
        if len(found) == min(most, BATCH_LIMIT) or (found and octets > BATCH_OCTETS):
            break
        if (unit, sink) not in held:
            found.append(Due(Item(seq, registration_id, content, tries), (unit, sink)))
    return found


def report(db: apsw.Connection, now: int, outcomes: Sequence[Outcome]) -> None:
    """Records what became of items. A receipt counts whatever the row's state is; a problem only for a queued row."""
    for outcome in outcomes:
        row = db.execute("SELECT unit, sink, state FROM outbox WHERE seq = ?", (outcome.seq,)).fetchone()
        if row is None or row[2] == "acknowledged":
            continue
        unit, sink, state = row
        if outcome.problem is None:
            _acknowledge(db, now, unit, sink, outcome)
        elif state == "queued":
            _refuse(db, now, unit, sink, outcome)


def requeue(db: apsw.Connection, now: int, seq: int, by: str) -> None:
    """Makes a parked row due again. LookupError for a number that isn't parked."""
    row = db.execute("SELECT unit, sink FROM outbox WHERE seq = ? AND state = 'parked'", (seq,)).fetchone()
    if row is None:
        raise LookupError(f"outbox row {seq} isn't parked")
    db.execute("UPDATE outbox SET state = 'queued', closed = NULL, tries = 0 WHERE seq = ?", (seq,))
    audit.append(db, now, "requeued", unit=row[0], fields={"seq": seq, "sink": row[1], "by": by})


def depth(db: apsw.Connection, kind: str = ENROLLMENT) -> Depth:
    """From counters that triggers keep, and one index: constant time."""
    counts: dict[str, int] = {}
    latest: int | None = None
    for state, rows, last in db.execute(
        "SELECT state, sum(rows), max(latest) FROM outbox_depth WHERE kind = ? GROUP BY state", (kind,)
    ):
        counts[state] = rows
        latest = last if state == "acknowledged" else latest
    oldest = db.execute(
        "SELECT queued FROM outbox WHERE state = 'queued' AND kind = ? ORDER BY queued LIMIT 1", (kind,)
    ).get
    return Depth(
        counts.get("queued", 0), counts.get("parked", 0), counts.get("acknowledged", 0), oldest, latest
    )


def _acknowledge(db: apsw.Connection, now: int, unit: str, sink: str, outcome: Outcome) -> None:
    db.execute(
        "UPDATE outbox SET state = 'acknowledged', closed = ?, tries = tries + 1, etag = ?, existed = ?, sent = ?,"
        " code = NULL, message = NULL, hint = NULL WHERE seq = ?",
        (now, outcome.etag, outcome.existed, outcome.sent or None, outcome.seq),
    )
    fields: dict[str, audit.Value] = {"seq": outcome.seq, "sink": sink, "existed": outcome.existed}
    if outcome.etag is not None:
        fields["etag"] = quote(outcome.etag)
    audit.append(db, now, "uploaded", unit=unit, fields=fields)


def _refuse(db: apsw.Connection, now: int, unit: str, sink: str, outcome: Outcome) -> None:
    problem = outcome.problem
    assert problem is not None  # noqa: S101 - the caller has looked
    error = problem.error()
    kind = by_code().get(problem.code)
    parked = kind is None or not kind.retryable
    db.execute(
        "UPDATE outbox SET tries = tries + 1, state = ?, closed = ?, code = ?, message = ?, hint = ? WHERE seq = ?",
        (
            "parked" if parked else "queued",
            now if parked else None,
            problem.code[:64],
            str(error),
            error.hint,
            outcome.seq,
        ),
    )
    if parked:
        fields: dict[str, audit.Value] = {"seq": outcome.seq, "sink": sink, "code": problem.code}
        audit.append(db, now, "parked", unit=unit, fields=fields | {"message": str(error)})
