"""The signed checkpoints of the audit trail, and which trail this store's is. Append-only, like the records.

Each function works inside the caller's transaction.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import apsw

from hal.errors import StationError
from station.store import audit, audit_tree

PAGE = 500
ID_OCTETS = 8


@dataclass(frozen=True, slots=True)
class Signed:
    """`note` over the first `size` records, whose root is `root`; `key`: DER SubjectPublicKeyInfo. Milliseconds."""

    size: int
    root: bytes
    note: bytes
    key: bytes
    signed_at: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Records that no checkpoint covers yet: how many, and whether a visit's end is among them."""

    records: int
    closed: bool


def origin(db: apsw.Connection, now: int, base: str) -> str:
    """The current trail's name. The first time it is made of `base` and the trail's random ID; then it stays."""
    del now
    number, trail, known = _current(db)
    if known is not None:
        return known
    made = f"{base}/{trail}"
    db.execute("UPDATE audit_trails SET origin = ? WHERE number = ?", (made, number))
    return made


def known_origin(db: apsw.Connection) -> str | None:
    """The current trail's name, None while it has no checkpoint."""
    return _current(db)[2]


def keep(db: apsw.Connection, now: int, size: int, root: bytes, note: bytes, key: bytes) -> Signed:
    """Adds a checkpoint of the current trail. The same one again changes nothing."""
    db.execute(
        "INSERT INTO audit_checkpoints (trail, size, root, note, key, signed_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (_current(db)[0], size, root, note, key, now),
    )
    return Signed(size, root, note, key, now)


def newest(db: apsw.Connection) -> Signed | None:
    """The current trail's last checkpoint."""
    row = db.execute(
        "SELECT size, root, note, key, signed_at FROM audit_checkpoints WHERE trail = ? ORDER BY size DESC LIMIT 1",
        (_current(db)[0],),
    ).fetchone()
    return None if row is None else Signed(*row)


def keys(db: apsw.Connection) -> list[bytes]:
    """DER SubjectPublicKeyInfo of each key that signed the current trail, the last one first."""
    rows = db.execute(
        "SELECT key FROM audit_checkpoints WHERE trail = ? GROUP BY key ORDER BY max(size) DESC",
        (_current(db)[0],),
    )
    return [row[0] for row in rows]


def after(db: apsw.Connection, size: int, limit: int = PAGE) -> list[Signed]:
    """Those of the current trail over more than `size` records, in order."""
    rows = db.execute(
        "SELECT size, root, note, key, signed_at FROM audit_checkpoints WHERE trail = ? AND size > ?"
        " ORDER BY size LIMIT ?",
        (_current(db)[0], size, max(0, min(limit, PAGE))),
    )
    return [Signed(*row) for row in rows]


def waiting(db: apsw.Connection) -> Waiting:
    """What came after the last checkpoint."""
    last = newest(db)
    since = last.size if last else 0
    closed = db.execute("SELECT 1 FROM audit WHERE seq > ? AND kind = 'visit-closed' LIMIT 1", (since,)).get
    return Waiting(audit_tree.size(db) - since, closed is not None)


def begin_trail(db: apsw.Connection, now: int, reason: str, by: str) -> None:
    """Another trail over the same records, because the signer can't follow the one until now."""
    number, _, known = _current(db)
    if known is not None:  # else it is new already
        number += 1
        db.execute("INSERT INTO audit_trails (id, begun) VALUES (?, ?)", (secrets.token_hex(ID_OCTETS), now))
    fields: dict[str, audit.Value] = {"reason": reason, "by": by, "before": known, "number": number}
    audit.append(db, now, "audit-trail-begun", fields=fields)


def _current(db: apsw.Connection) -> tuple[int, str, str | None]:
    row = db.execute("SELECT number, id, origin FROM audit_trails ORDER BY number DESC LIMIT 1").fetchone()
    if row is None:
        raise StationError("the store has no audit trail")
    return row[0], row[1], row[2]
