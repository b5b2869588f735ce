"""Certificates made elsewhere: lots of the pool, vendors' manifests, and what units take of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import apsw

from station.store import certificates, stock
from station.store.part import Part

DAY: Final = 86_400_000
"""Milliseconds."""


class Stock(Part):
    """Lots, and whose their certificates are."""

    def add_lot(self, lot: stock.Lot, entries: Sequence[stock.Entry], by: str = "") -> bool:
        """All of a lot, or nothing. False when the same one is there; DuplicateKey for what is known from before."""
        return self._write(stock.add_lot, lot, entries, by)

    def draw(self, visit: str, lot: str, key: bytes, name: str, minimum_days: int) -> stock.Drawn:
        """The unit's certificate of a lot, its own for good from now on: see `stock.draw`."""

        def draw(db: apsw.Connection, now: int) -> stock.Drawn:
            return stock.draw(db, now, visit, lot, key, name, now + minimum_days * DAY)

        return self._write(draw)

    def adopt(self, visit: str, profile: str, chain: Sequence[bytes], key: bytes, lot: str = "") -> None:
        """The chain that the device came with is the unit's, if nobody else has its key. `lot`: a vendor's manifest."""

        def adopt(db: apsw.Connection, now: int) -> None:
            if lot:
                stock.adopt(db, now, visit, lot, key, stock.digest_of(chain))
            certificates.record(db, now, visit, profile, chain)

        self._write(adopt)

    def lots(self) -> list[stock.LotView]:
        """Lots of the pool and vendors' manifests, with what is left of each."""
        return self._readers.read(stock.lots)

    def stock_name(self, key: bytes) -> str | None:
        """The common name that a lot's certificate has for this key (SHA-256 of its SPKI)."""
        return self._readers.read(lambda db: stock.name_of(db, key))

    def free_chains(self, lot: str, limit: int) -> list[list[bytes]]:
        """Chains of a lot that no unit has yet."""
        return self._readers.read(lambda db: stock.free_chains(db, lot, limit))
