"""Which token key wraps the copies for resume: one for each work order, or each day where there is none.

A key's row is durable before the token makes it. It is retired once nothing is wrapped under it any more and its order
or day is over, is never used again from then on, and is then destroyed in the token: asked for until that is done.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

import apsw

from hal.errors import PeerUnavailable
from station.store import audit, visits

ORDER: Final = "order-"
DAY: Final = "day-"


def current(db: apsw.Connection, now: int, visit: str) -> str:
    """The key for secrets of this visit's unit, made known here when it is the first of its order or day."""
    order = visits.get_open(db, visit).work_order
    scope = f"{ORDER}{order}" if order is not None else _day(now)
    known = db.execute("SELECT key FROM wrap_keys WHERE scope = ? AND retired IS NULL", (scope,)).get
    if known is not None:
        return str(known)
    before = int(db.execute("SELECT count(*) FROM wrap_keys WHERE scope = ?", (scope,)).get)
    key = f"{scope}.{before + 1}"
    db.execute("INSERT INTO wrap_keys (key, scope, made) VALUES (?, ?, ?)", (key, scope, now))
    return key


def note(db: apsw.Connection, ek_name: bytes, generation: int, key: str) -> None:
    """Ties a copy to the key that it was wrapped under. PeerUnavailable when that was retired meanwhile."""
    found = db.execute("SELECT retired FROM wrap_keys WHERE key = ?", (key,)).fetchone()
    if found is None or found[0] is not None:
        raise PeerUnavailable("the token key that wrapped this copy was just retired: it is wrapped anew")
    db.execute(
        "INSERT INTO resume_keys (ek_name, generation, key) VALUES (?, ?, ?)", (ek_name, generation, key)
    )


def of_copy(db: apsw.Connection, ek_name: bytes, generation: int) -> str:
    """The key of a copy; empty for one that an older release has wrapped."""
    found = db.execute(
        "SELECT key FROM resume_keys WHERE (ek_name, generation) = (?, ?)", (ek_name, generation)
    ).get
    return "" if found is None else str(found)


def spent(db: apsw.Connection, now: int) -> list[str]:
    """Keys that wrap nothing and whose order or day is over, and those that were retired but not yet destroyed."""
    rows = list(
        db.execute(
            "SELECT key, scope, retired, EXISTS (SELECT 1 FROM resume_keys AS copy WHERE copy.key = wrap_keys.key)"
            " FROM wrap_keys WHERE destroyed IS NULL ORDER BY made"
        )
    )
    return [
        str(key)
        for key, scope, retired, used in rows
        if retired is not None or (not used and not _is_current(db, now, str(scope)))
    ]


def retire(db: apsw.Connection, now: int) -> list[str]:
    """Retires what is spent, and gives all keys that the token still has to destroy."""
    found = spent(db, now)
    for key in found:
        db.execute("UPDATE wrap_keys SET retired = ? WHERE key = ? AND retired IS NULL", (now, key))
    return found


def destroyed(db: apsw.Connection, now: int, key: str) -> None:
    """The token has it no more."""
    db.execute("UPDATE wrap_keys SET destroyed = ? WHERE key = ? AND destroyed IS NULL", (now, key))
    if db.changes():
        audit.append(db, now, "wrap-key-destroyed", fields={"key": key})


def _is_current(db: apsw.Connection, now: int, scope: str) -> bool:
    if scope.startswith(DAY):
        return scope == _day(now)
    room = db.execute(
        "SELECT 1 FROM work_orders WHERE id = ? AND active = 1 AND passed < quantity",
        (scope.removeprefix(ORDER),),
    ).get
    return room is not None


def _day(now: int) -> str:
    return f"{DAY}{dt.datetime.fromtimestamp(now / 1000, dt.UTC):%Y%m%d}"
