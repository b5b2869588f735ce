"""Units that are scrapped: out for good, their secrets gone, what isn't uploaded yet never is; on record with a reason.

The order's share comes back only with proof: when the signer has recorded that this unit's certificate counts no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import apsw
import msgspec

from hal.errors import StationError
from station.store import audit, escrow, identity

SCRAPPED: Final = "scrapped: "
"""How a scrapped unit's `retired` begins; no decision's does."""
_names: Final[msgspec.msgpack.Decoder[list[str]]] = msgspec.msgpack.Decoder(list[str])


@dataclass(frozen=True, slots=True)
class Scrap:
    """`serial` of the unit's certificate in hex, None without one; `sinks` have its enrollment already.

    `given_back` (Unix milliseconds) and `proof` once the signer has confirmed it.
    """

    unit: str
    at: int
    by: str
    reason: str
    serial: str | None
    sinks: tuple[str, ...]
    given_back: int | None
    proof: str | None


def scrap(db: apsw.Connection, now: int, unit: str, reason: str, by: str) -> tuple[Scrap, bool]:
    """The record, and whether a copy of secrets was deleted. The same again gives the first one.

    LookupError for a unit that isn't there; StationError for one that is in a nest.
    """
    name = identity.unit_of(db, unit)
    if name is None:
        raise LookupError(f"there is no unit {unit}")
    if (known := of_unit(db, name)) is not None:
        return known, False
    nest = db.execute("SELECT nest FROM visits WHERE unit = ? AND closed IS NULL", (name,)).get
    if nest is not None:
        raise StationError(
            f"the unit is in nest {nest} right now", hint="Take the board out, then scrap the unit."
        )
    serial = db.execute("SELECT serial FROM certificates WHERE unit = ?", (name,)).get
    sinks = [
        sink
        for (sink,) in db.execute(
            "SELECT DISTINCT sink FROM outbox WHERE unit = ? AND kind = 'enrollment' AND state = 'acknowledged'",
            (name,),
        )
    ]
    db.execute(
        "UPDATE outbox SET state = 'superseded', closed = ?"
        " WHERE unit = ? AND kind = 'enrollment' AND state IN ('queued', 'parked')",
        (now, name),
    )
    db.execute(
        "UPDATE units SET retired = coalesce(retired, ?) WHERE unit = ?", (f"{SCRAPPED}{reason}", name)
    )
    db.execute(
        "INSERT INTO scraps (unit, at, by, reason, serial, sinks) VALUES (?, ?, ?, ?, ?, ?)",
        (name, now, by, reason, serial, msgspec.msgpack.encode(sinks)),
    )
    forgotten = escrow.forget(db, name)
    audit.append(
        db,
        now,
        "scrapped",
        unit=name,
        fields={"reason": reason, "by": by, "serial": serial, "enrolled_at": ", ".join(sinks)},
    )
    signed = db.execute("SELECT signed FROM signatures WHERE unit = ?", (name,)).get
    if serial is None or signed is None:
        give_back(db, now, name, "this station's CA has issued no certificate for it")
    made = of_unit(db, name)
    assert made is not None  # noqa: S101 - inserted above
    return made, forgotten


def give_back(db: apsw.Connection, now: int, unit: str, proof: str) -> None:
    """The order gets the unit's share back; once. `proof`: what the signer recorded."""
    db.execute(
        "UPDATE scraps SET given_back = ?, proof = ? WHERE unit = ? AND given_back IS NULL",
        (now, proof, unit),
    )
    if db.changes() == 0:
        return
    order = db.execute("SELECT work_order FROM units WHERE unit = ?", (unit,)).get
    if order is not None:
        db.execute("UPDATE work_orders SET given_back = given_back + 1 WHERE id = ?", (order,))
    audit.append(db, now, "given-back", unit=unit, fields={"order": order, "proof": proof})


def of_unit(db: apsw.Connection, unit: str) -> Scrap | None:
    """The unit's scrap record, None when it isn't scrapped."""
    row = db.execute(
        "SELECT unit, at, by, reason, serial, sinks, given_back, proof FROM scraps WHERE unit = ?", (unit,)
    ).fetchone()
    if row is None:
        return None
    name, at, by, reason, serial, sinks, given_back, proof = row
    return Scrap(name, at, by, reason, serial, tuple(_names.decode(sinks)), given_back, proof)


def unproven(db: apsw.Connection) -> list[Scrap]:
    """Those that the signer hasn't confirmed yet: it wasn't there when they were scrapped."""
    rows = list(db.execute("SELECT unit FROM scraps WHERE given_back IS NULL ORDER BY at"))
    return [found for (unit,) in rows if (found := of_unit(db, unit)) is not None]
