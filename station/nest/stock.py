"""A visit's certificate that is not issued here: drawn from a lot, found in the element, or made by the device itself.

Whatever a worker asks, the recipe of its visit says which source and which lot. What the worker is told is durable.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from hal.errors import CertificateUntrusted, ProtocolViolation, quote
from station import foreign, messages
from station.foreign import Terms
from station.store import Store
from station.store.stock import Drawn

POOL: Final = "pool"
PRELOADED: Final = "preloaded"
DEVICE: Final = "device"
NOTHING: Final = Terms((), 0)


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class VisitStock:
    """`options`: of the recipe's certificate step, None where it has none. `terms`: by source."""

    def __init__(
        self,
        store: Store,
        visit: str,
        options: Any,
        terms: Mapping[str, Terms],
        clock: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self._store, self._visit, self._options, self._terms = store, visit, options, terms
        self._clock = clock

    def draw(self, unit: messages.Unit, message: messages.Draw) -> messages.Drawn:
        return messages.Drawn(self.drawn(unit, message.key).chain)

    def drawn(self, unit: messages.Unit, key: bytes) -> Drawn:
        """The unit's of its recipe's lot, the same one each time. `key`: SPKI, empty where it comes out of the pool.

        Judged by the anchors of today: a PKI may have lost its place since the import.
        """
        options, terms = self._wanted(POOL), self._terms.get(POOL, NOTHING)
        if (options.key_from == "pool") == bool(key):
            raise ProtocolViolation("a worker asked for another kind of lot than its recipe draws from")
        digest = hashlib.sha256(key).digest() if key else b""
        name = unit.registration_id if options.subject == "registration-id" else ""
        found = self._store.draw(self._visit, options.lot, digest, name, terms.minimum_days)
        foreign.judge(found.chain, terms, self._clock())
        return found

    def adopt(self, unit: messages.Unit, message: messages.Adopt) -> messages.Ok:
        options = self._wanted(PRELOADED, DEVICE)
        terms = self._terms.get(options.source, NOTHING)
        if options.source == PRELOADED:
            leaf = foreign.judge(message.chain, terms, self._clock())
        else:
            leaf = foreign.judge_self_signed(message.chain, terms.minimum_days, self._clock())
        if options.subject == "registration-id" and leaf.common_name != unit.registration_id:
            raise CertificateUntrusted(
                f"the device's certificate is for {quote(leaf.common_name)}, and the unit's registration ID"
                f" is {unit.registration_id}",
                hint="An engineer has the name taken from the certificate (key-identity), or allows any subject.",
            )
        profile = f"{options.source}:{options.lot}" if options.lot else options.source
        self._store.adopt(self._visit, profile, message.chain, leaf.key, options.lot)
        return messages.Ok()

    def name(self, message: messages.StockName) -> messages.Named:
        """Asked before the unit is known: it tells whoever has the key only what its certificate is for."""
        self._wanted(POOL)
        found = self._store.stock_name(hashlib.sha256(message.key).digest())
        if found is None:
            raise CertificateUntrusted("no lot has a certificate for the key that is in this device")
        return messages.Named(found)

    def _wanted(self, *sources: str) -> Any:
        if self._options is None or self._options.source not in sources:
            named = " or ".join(sources)
            raise ProtocolViolation(
                f"a worker asked for a certificate of source {named}, its recipe has another"
            )
        return self._options
