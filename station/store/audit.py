"""The audit trail: one row for each thing that happened, numbered without gaps, never changed, never deleted.

Rows are written in the same transaction as what they tell of, with their leaf hash. The tree over them is `audit_tree`.
Secrets and device text without bounds don't come in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import apsw
import msgspec

from hal.errors import MESSAGE_LIMIT
from station.audit import record
from station.audit.tree import leaf_hash
from station.status.view import PAGE_LIMIT, EventView
from station.store import audit_tree

Value = record.Value
Shown = str | int | float | bool | None
FIELDS_LIMIT: Final = 32
"""Fields of one event."""

_decoder: Final[msgspec.json.Decoder[dict[str, Shown]]] = msgspec.json.Decoder(dict[str, Shown])


def append(
    db: apsw.Connection,
    now: int,
    kind: str,
    *,
    unit: str | None = None,
    visit: str | None = None,
    nest: str | None = None,
    step: str | None = None,
    fields: Mapping[str, Value] | None = None,
) -> int:
    """Adds an event, in the caller's transaction, and gives its number."""
    bounded = {
        name: value[:MESSAGE_LIMIT] if isinstance(value, str) else value
        for name, value in list((fields or {}).items())[:FIELDS_LIMIT]
    }
    # Not max(seq) + 1: where somebody has taken rows away at the end, that would hide it.
    seq = 1 + int(db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'audit'").get)
    encoded = record.encode_fields(bounded)
    leaf = leaf_hash(record.canonical(seq, now, kind, unit, visit, nest, step, encoded))
    db.execute(
        "INSERT INTO audit (seq, at, kind, unit, visit, nest, step, fields, leaf) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (seq, now, kind, unit, visit, nest, step, encoded.decode(), leaf),
    )
    audit_tree.grown(db, seq)
    return seq


def last(db: apsw.Connection) -> int:
    """The highest number there is, 0 before the first."""
    return int(db.execute("SELECT coalesce(max(seq), 0) FROM audit").get)


def events(db: apsw.Connection, since: int, limit: int) -> list[EventView]:
    """Those with a number over `since`, in order, at most `limit`."""
    rows = db.execute(
        "SELECT seq, at, kind, unit, nest, step, fields FROM audit WHERE seq > ? ORDER BY seq LIMIT ?",
        (since, _bounded(limit)),
    )
    return [_view(*row) for row in rows]


def events_of(db: apsw.Connection, unit: str, limit: int) -> list[EventView]:
    """The newest `limit` events of one unit, in order."""
    rows = db.execute(
        "SELECT seq, at, kind, unit, nest, step, fields FROM audit WHERE unit = ? ORDER BY seq DESC LIMIT ?",
        (unit, _bounded(limit)),
    )
    return [_view(*row) for row in rows][::-1]


def _bounded(limit: int) -> int:
    return max(0, min(limit, PAGE_LIMIT))


def _view(
    seq: int, at: int, kind: str, unit: str | None, nest: str | None, step: str | None, fields: str
) -> EventView:
    return EventView(seq, at / 1000, kind, unit or "", nest or "", step or "", _decoder.decode(fields))
