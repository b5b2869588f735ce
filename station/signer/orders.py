"""The signer's own view of work orders: it verifies each one itself, and counts what it signs for it.

The station judges first and knows more (firmware, what became of units). This is what holds if the station doesn't: no
more certificates than the order says, for its station, SKU, recipe and time.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import apsw

from hal.errors import OrderRefused, QuotaSpent, quote
from station.messages import GiveBack, GivenBack, OrderState, SignRequest
from station.signed import Signer
from station.signer.ledger import Ledger
from station.work_order import SignedOrder, check_order, verify_order


@dataclass(frozen=True, slots=True)
class Share:
    """One certificate of an order: taken in the transaction that makes its intent durable, or not at all."""

    order: SignedOrder

    @property
    def name(self) -> str:
        return self.order.file.id

    def take(self, db: apsw.Connection, now: int) -> None:
        order = self.order
        db.execute(
            "INSERT INTO work_orders (id, data, signature, first_seen) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (self.name, order.data, order.signature, now),
        )
        data, intended, given_back = next(
            db.execute("SELECT data, intended, given_back FROM work_orders WHERE id = ?", (self.name,))
        )
        if hashlib.sha256(data).digest() != order.digest:
            raise OrderRefused(
                f"the signer knows another work order {self.name}: an order never changes",
                hint="Whoever plans production gives the new order an ID of its own.",
            )
        used, most = intended - given_back, order.file.most_signatures
        if used >= most:
            raise QuotaSpent(
                f"work order {self.name} permits {most} certificates, and {used} are signed for units not scrapped",
                hint="Finish the units in rework, scrap those that are lost, or import the next order.",
            )
        db.execute("UPDATE work_orders SET intended = intended + 1 WHERE id = ?", (self.name,))


class Orders:
    """`station`: this station's name; `keys`: who may sign orders; without `required` a request may do without one."""

    def __init__(self, ledger: Ledger, station: str, keys: Sequence[Signer], *, required: bool) -> None:
        self._ledger, self._station, self._keys, self._required = ledger, station, tuple(keys), required

    def share(self, asked: SignRequest, now: dt.datetime) -> Share | None:
        """What the request may take of its order; None without one, where none is required. Else OrderRefused."""
        if not asked.order:
            if self._required:
                raise OrderRefused("this station's signer signs only for a work order, and none was named")
            return None
        order = verify_order(asked.order, asked.order_signature, self._keys)
        check_order(order.file, sku=asked.sku, station=self._station, recipe=asked.recipe, now=now)
        return Share(order)

    def of_unit(self, unit: str) -> str:
        """The order that the unit's certificate was counted against; empty without one."""
        with self._ledger.using() as db:
            found: str | None = db.execute(
                "SELECT work_order FROM origins JOIN certificates USING (id) WHERE unit = ?", (unit,)
            ).get
        return found or ""

    def counts(self, work_order: str) -> OrderState:
        with self._ledger.using() as db:
            signed, pending = next(
                db.execute(
                    "SELECT coalesce(sum(certificate IS NOT NULL), 0), coalesce(sum(certificate IS NULL), 0)"
                    " FROM origins JOIN certificates USING (id) WHERE work_order = ?",
                    (work_order,),
                )
            )
            given_back = db.execute("SELECT given_back FROM work_orders WHERE id = ?", (work_order,)).get
        return OrderState(work_order, signed, pending, given_back or 0)

    def give_back(self, asked: GiveBack, now: dt.datetime) -> GivenBack:
        """The unit's certificate counts no more against its order; once, and only a revoked one. Else OrderRefused."""
        with self._ledger.using() as db, db:
            row = db.execute(
                "SELECT certificates.id, serial, work_order, revoked_at FROM certificates LEFT JOIN origins USING (id)"
                " LEFT JOIN revocations ON entry = certificates.id WHERE unit = ? AND certificate IS NOT NULL",
                (asked.unit,),
            ).fetchone()
            if row is None or int.from_bytes(row[1]) != _number(asked.serial):
                raise OrderRefused(
                    f"the signer's ledger has no certificate {quote(asked.serial)} of unit {quote(asked.unit)}",
                    hint="Nothing was given back. An engineer compares the station's records with the ledger.",
                )
            number, _, work_order, revoked_at = row
            if revoked_at is None:
                raise OrderRefused(
                    f"the certificate of unit {quote(asked.unit)} still stands: what isn't revoked isn't given back",
                    hint="Revoke it first: `hallmark ca revoke`.",
                )
            db.execute(
                "INSERT INTO scraps (id, at, by, reason) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (number, int(now.timestamp()), asked.by, asked.reason),
            )
            if db.changes() and work_order is not None:
                db.execute("UPDATE work_orders SET given_back = given_back + 1 WHERE id = ?", (work_order,))
        when = dt.datetime.fromtimestamp(revoked_at, dt.UTC)
        of = f" of work order {work_order}" if work_order else ""
        shown = f"certificate {asked.serial}{of}, revoked {when:%Y-%m-%dT%H:%M:%SZ}, counts no more"
        return GivenBack(f"signer's ledger, entry {number}: {shown}")


def _number(serial: str) -> int | None:
    try:
        return int(serial, 16)
    except ValueError:
        return None
