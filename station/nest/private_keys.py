"""Private keys on their way to the joined unit's board: made in the CA token, or the pool's. Ciphertext only.

Whose key it is, is durable before the board gets it; the same key comes again after a crash, until the unit has passed.
"""

from __future__ import annotations

import hashlib
from typing import Any

from hal.errors import ProtocolViolation, StationError
from hal.types import KeyPurpose
from station import messages
from station.nest.stock import VisitStock
from station.signer_client import SignerClient
from station.stock_import import pool_context
from station.store import Store


class PrivateKeys:
    """`options`: of the recipe's certificate step, None where it has none."""

    def __init__(
        self, store: Store, signer: SignerClient, visit: str, options: Any, stock: VisitStock
    ) -> None:
        self._store, self._signer, self._visit = store, signer, visit
        self._options, self._stock = options, stock

    def deliver(self, unit: messages.Unit, asked: messages.DeliverKey) -> messages.Delivered:
        origin = self._options.key_from if self._options is not None else "device"
        if origin == "device":
            raise ProtocolViolation(
                "a worker asked for a private key, and its recipe has the device make one"
            )
        if origin == "token":
            found = self._signer.seal_key(
                messages.SealKey(
                    unit.unit,
                    unit.registration_id,
                    KeyPurpose.PRIVATE.value,
                    asked.transport,
                    key_type=self._options.key,
                )
            )
            self._store.claim_key(self._visit, hashlib.sha256(found.spki).digest())
        else:
            found = self._pooled(unit, asked.transport)
        return messages.Delivered(unit.registration_id, found.encapsulated, found.ciphertext, b"", found.spki)

    def _pooled(self, unit: messages.Unit, transport: bytes) -> messages.KeyForBoard:
        drawn = self._stock.drawn(unit, b"")
        if not drawn.wrapped:
            raise StationError(
                "the private key of this unit's certificate is not kept any more: the unit had it, and passed",
                hint="Set the board aside: it lost its key. An engineer decides on a new identity.",
            )
        found = self._signer.seal_key(
            messages.SealWrapped(unit.registration_id, transport, pool_context(drawn.key), drawn.wrapped)
        )
        if hashlib.sha256(found.spki).digest() != drawn.key:
            raise StationError("the pool's private key is not the one of its certificate")
        return found
