"""What the CA's key was asked to sign, unit by unit, and what has become of each: the station's half of the reckoning.

A request is on record before it is made and answered in the transaction that records the certificate, so that none of
the token's signatures can be missing here without being missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from station.store import visits


@dataclass(frozen=True, slots=True)
class Fates:
    """The units of one order that have a certificate, by what they are now; each is in one of the first four.

    `asked`: requests whose answer never came in, because the station or the signer stopped; signed for or not.
    """

    shipped: int = 0
    scrapped: int = 0
    rework: int = 0
    """Neither passed nor scrapped, and in no nest: they wait to come back."""
    pending: int = 0
    """In a nest now."""
    asked: int = 0

    @property
    def recorded(self) -> int:
        return self.shipped + self.scrapped + self.rework + self.pending


def ask(db: apsw.Connection, now: int, visit: str) -> str | None:
    """The work order to name to the signer for the visit's unit; the request is on record from here on."""
    here = visits.get_open(db, visit)
    unit = here.joined()
    row = db.execute("SELECT work_order, signed FROM signatures WHERE unit = ?", (unit,)).fetchone()
    if row is not None and (row[1] is not None or here.work_order is None):
        return str(row[0]) if row[0] is not None else None
    db.execute(
        "INSERT INTO signatures (unit, work_order, asked) VALUES (?, ?, ?)"
        " ON CONFLICT (unit) DO UPDATE SET work_order = excluded.work_order, asked = excluded.asked",
        (unit, here.work_order, now),
    )
    return here.work_order


def answered(db: apsw.Connection, now: int, unit: str, work_order: str | None) -> None:
    """The signer has signed for the unit; `work_order` is what its own ledger says that it was for."""
    known = db.execute("SELECT 1 FROM work_orders WHERE id = ?", (work_order,)).get
    db.execute(
        "UPDATE signatures SET signed = coalesce(signed, ?), work_order = ? WHERE unit = ?",
        (now, work_order if known else None, unit),
    )


def fates(db: apsw.Connection, work_order: str) -> Fates:
    """Where the units are that were signed for under this order."""
    row = db.execute(
        """
        SELECT coalesce(sum(scraps.unit IS NULL AND passed IS NOT NULL), 0),
               coalesce(sum(scraps.unit IS NOT NULL), 0),
               coalesce(sum(scraps.unit IS NULL AND passed IS NULL AND visit IS NULL), 0),
               coalesce(sum(scraps.unit IS NULL AND passed IS NULL AND visit IS NOT NULL), 0)
          FROM signatures JOIN units USING (unit) LEFT JOIN scraps USING (unit)
               LEFT JOIN visits ON visits.unit = signatures.unit AND closed IS NULL
         WHERE signatures.work_order = ? AND signed IS NOT NULL
        """,
        (work_order,),
    ).fetchone()
    asked = db.execute(
        "SELECT count(*) FROM signatures WHERE work_order = ? AND signed IS NULL", (work_order,)
    ).get
    shipped, scrapped, rework, pending = row or (0, 0, 0, 0)
    return Fates(shipped, scrapped, rework, pending, asked)
