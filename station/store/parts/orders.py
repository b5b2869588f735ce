"""Work orders: what may be made, what was signed for under them, and units that came to nothing."""

from __future__ import annotations

from collections.abc import Sequence

from station.store import orders, scraps, signatures, signed_orders
from station.store.orders import WorkOrder
from station.store.part import Part
from station.store.scraps import Scrap
from station.store.signatures import Fates
from station.store.signed_orders import KeptOrder
from station.work_order import SignedOrder


class Orders(Part):
    """Orders of the configuration, signed orders, the signatures they paid for, scraps."""

    def load_work_orders(self, wanted: Sequence[tuple[str, str, int]]) -> None:
        """(id, SKU, quantity) from the configuration, in its order."""
        self._write(lambda db, _now: orders.load(db, wanted))

    def work_order_left(self, sku: str) -> WorkOrder | None:
        """The order the next unit counts against; its `left` is 0 when all are spent. None without any for the SKU."""
        return self._readers.read(lambda db: orders.left(db, sku))

    def work_orders(self) -> list[WorkOrder]:
        """Those that the configuration names now."""
        return self._readers.read(orders.active)

    def take_order(self, order: SignedOrder, by: str) -> bool:
        """Keeps a signed order. False when it is here already; OrderRefused for another one of its ID."""
        return self._write(signed_orders.take, order, by)

    def close_order(self, name: str, reason: str, by: str) -> None:
        """Ends a signed order early. LookupError for one that isn't there, or has ended."""
        self._write(signed_orders.close, name, reason, by)

    def kept_orders(self) -> list[KeptOrder]:
        """Every signed order that was ever imported, in order."""
        return self._readers.read(signed_orders.kept)

    def every_order(self) -> dict[str, WorkOrder]:
        """All there ever were, by ID."""
        return {order.id: order for order in self._readers.read(orders.every)}

    def ask_signature(self, visit: str) -> str | None:
        """The order to name to the signer; that it is asked is on record then."""
        return self._write(signatures.ask, visit)

    def fates(self, work_order: str) -> Fates:
        """What became of the units that were signed for under an order."""
        return self._readers.read(lambda db: signatures.fates(db, work_order))

    def scrap(self, unit: str, reason: str, by: str) -> Scrap:
        """A unit out for good; see `scraps`. LookupError for one that isn't there."""
        made, forgotten = self._write(scraps.scrap, unit, reason, by)
        if forgotten:
            self._writable.writer.scrub()
        return made

    def give_back(self, unit: str, proof: str) -> None:
        """The signer has confirmed that a scrapped unit's certificate counts no more."""
        self._write(scraps.give_back, unit, proof)

    def unproven_scraps(self) -> list[Scrap]:
        """Scrapped units that the signer hasn't confirmed yet."""
        return self._readers.read(scraps.unproven)
