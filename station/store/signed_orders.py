"""Signed work orders as they were imported: kept for good, never changed, ended early by a person.

Signatures are checked before they come here and again whenever they are used; how much of an order is used up is in
`orders`.
"""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from hal.errors import OrderRefused
from station.store import audit
from station.work_order import SignedOrder


@dataclass(frozen=True, slots=True)
class KeptOrder:
    """`data` and `signature` as they were imported; `closed` (Unix milliseconds) when a person ended it early."""

    id: str
    data: bytes
    signature: bytes
    imported: int
    by: str
    closed: int | None
    reason: str | None


def take(db: apsw.Connection, now: int, order: SignedOrder, by: str) -> bool:
    """Imports an order whose signature was checked. False when it is here; OrderRefused for another of its ID."""
    name = order.file.id
    known = db.execute("SELECT data FROM signed_orders WHERE id = ?", (name,)).get
    if known is not None and known == order.data:
        return False
    if db.execute("SELECT 1 FROM work_orders WHERE id = ?", (name,)).get is not None:
        raise OrderRefused(
            f"there is another work order {name} already: an order never changes",
            hint="Whoever plans production gives the new order an ID of its own.",
        )
    db.execute(
        "INSERT INTO work_orders (id, sku, quantity, position, active)"
        " VALUES (?, ?, ?, (SELECT 1 + coalesce(max(position), 0) FROM work_orders), 1)",
        (name, order.file.sku, order.file.quantity),
    )
    db.execute(
        "INSERT INTO signed_orders (id, data, signature, imported, by) VALUES (?, ?, ?, ?, ?)",
        (name, order.data, order.signature, now, by),
    )
    audit.append(
        db,
        now,
        "order-imported",
        fields={
            "order": name,
            "sku": order.file.sku,
            "quantity": order.file.quantity,
            "sha256": order.digest.hex(),
            "signer": order.signer,
            "by": by,
        },
    )
    return True


def close(db: apsw.Connection, now: int, name: str, reason: str, by: str) -> None:
    """Ends an order early: nothing new is begun for it. LookupError for one that isn't there, or has ended."""
    row = db.execute("SELECT closed FROM signed_orders WHERE id = ?", (name,)).fetchone()
    if row is None or row[0] is not None:
        raise LookupError(f"there is no open work order {name}")
    db.execute("UPDATE signed_orders SET closed = ?, reason = ? WHERE id = ?", (now, reason, name))
    db.execute("UPDATE work_orders SET active = 0 WHERE id = ?", (name,))
    audit.append(db, now, "order-closed", fields={"order": name, "reason": reason, "by": by})


def kept(db: apsw.Connection) -> list[KeptOrder]:
    """All of them, as they came in."""
    return [
        KeptOrder(*row)
        for row in db.execute(
            "SELECT signed_orders.id, data, signature, imported, by, closed, reason"
            " FROM signed_orders JOIN work_orders USING (id) ORDER BY position"
        )
    ]
