"""Work orders: how many units may be made. A unit counts once, attempts and successes apart.

Which order a SKU uses is decided here; what a spent order means for a board is said by `QuotaSpent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import apsw

from hal.errors import ConfigError, QuotaSpent


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """`passed` units of `quantity` are made; `reserved` are in nests now; `attempts` counts visits that ended.

    `given_back`: passed, then scrapped with proof.
    """

    id: str
    sku: str
    quantity: int
    attempts: int = 0
    passed: int = 0
    reserved: int = 0
    given_back: int = 0

    @property
    def left(self) -> int:
        """Units that may still be begun."""
        return max(0, self.quantity - self.passed + self.given_back - self.reserved)


_SELECT = """
SELECT id, sku, quantity, attempts, passed,
       (SELECT count(*) FROM visits LEFT JOIN units USING (unit)
         WHERE visits.work_order = work_orders.id AND visits.closed IS NULL AND units.work_order IS NULL),
       given_back
  FROM work_orders
"""


def load(db: apsw.Connection, wanted: Sequence[tuple[str, str, int]]) -> None:
    """Takes over (id, SKU, quantity) from the configuration, in its order. Orders that it no longer names rest.

    Signed orders are none of the configuration's: they stay as they are.
    """
    db.execute("UPDATE work_orders SET active = 0 WHERE id NOT IN (SELECT id FROM signed_orders)")
    for position, (name, sku, quantity) in enumerate(wanted):
        known = db.execute("SELECT sku FROM work_orders WHERE id = ?", (name,)).get
        if known is not None and known != sku:
            raise ConfigError(
                f"work order {name} was for SKU {known} before; a new order needs a new id", key="work_order"
            )
        if db.execute("SELECT 1 FROM signed_orders WHERE id = ?", (name,)).get is not None:
            raise ConfigError(f"there is a signed work order {name}; expected another id", key="work_order")
        db.execute(
            "INSERT INTO work_orders (id, sku, quantity, position, active) VALUES (?, ?, ?, ?, 1)"
            " ON CONFLICT (id) DO UPDATE SET quantity = excluded.quantity, position = excluded.position, active = 1",
            (name, sku, quantity, position),
        )


def active(db: apsw.Connection, sku: str | None = None) -> list[WorkOrder]:
    """The orders that the configuration names now, of one SKU or all, in its order."""
    where = "WHERE active = 1 AND sku = ?" if sku is not None else "WHERE active = 1 AND ? IS NULL"
    return [WorkOrder(*row) for row in db.execute(f"{_SELECT} {where} ORDER BY position", (sku,))]


def every(db: apsw.Connection) -> list[WorkOrder]:
    """All there ever were."""
    return [WorkOrder(*row) for row in db.execute(f"{_SELECT} ORDER BY position")]


def left(db: apsw.Connection, sku: str) -> WorkOrder | None:
    """The order that the next unit of this SKU counts against: the first with units left, else the last, spent.

    None when no order names the SKU.
    """
    found = active(db, sku)
    return next((order for order in found if order.left), found[-1] if found else None)


def reserve(db: apsw.Connection, sku: str, among: Sequence[str] | None = None) -> str | None:
    """The order that a new visit is made for, None when there is none or all are spent.

    `among`: those that permit it, None for all of the SKU's.
    """
    found = (order for order in active(db, sku) if among is None or order.id in among)
    return next((order.id for order in found if order.left), None)


def check(db: apsw.Connection, sku: str, reserved: str | None, counted: str | None) -> None:
    """QuotaSpent for a unit that was never counted and whose visit got no share of an order."""
    if reserved is None and counted is None and (order := left(db, sku)) is not None:
        raise QuotaSpent(f"work order {order.id} for {order.quantity} of {sku} is used up")


def count(db: apsw.Connection, unit: str, name: str) -> None:
    """Counts a unit that passes against an order, once in its life. QuotaSpent when the order has no room."""
    if db.execute("SELECT work_order FROM units WHERE unit = ?", (unit,)).get is not None:
        return
    row = db.execute("SELECT quantity, passed - given_back FROM work_orders WHERE id = ?", (name,)).fetchone()
    if row is None:
        raise ConfigError(f"there is no work order {name}", key="work_order")
    quantity, passed = row
    if passed >= quantity:
        raise QuotaSpent(f"work order {name} for {quantity} units is used up")
    db.execute("UPDATE work_orders SET passed = passed + 1 WHERE id = ?", (name,))
    db.execute("UPDATE units SET work_order = ? WHERE unit = ?", (name, unit))


def count_attempt(db: apsw.Connection, name: str | None) -> None:
    """One more visit for this order has ended, whatever came of it."""
    if name is not None:
        db.execute("UPDATE work_orders SET attempts = attempts + 1 WHERE id = ?", (name,))
