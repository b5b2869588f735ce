"""Keys for the visit's unit: who asks is checked here, what is made and sealed is the signer's.

A worker may be in a hostile board's hands. Which key its unit gets is the recipe's word; and where the unit is known by
its board's own key, that key has to vouch for the transport key, over a nonce that only this visit knows: the signer
checks the signature, and that the unit's ID comes of that key.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Final

import structlog

from hal.errors import HallmarkError, PossessionUnproven, ProtocolViolation, quote
from hal.types import KeyPurpose
from station import messages
from station.recipe import Recipe
from station.signer_client import SignerClient
from station.store import Store

NONCE_LENGTH: Final = 32


class VisitKeys:
    """One visit's. Not for several threads."""

    def __init__(self, signer: SignerClient, recipe: Recipe) -> None:
        self._signer, self._recipe = signer, recipe
        self._nonce: bytes | None = None

    def challenge(self) -> messages.Challenged:
        self._nonce = os.urandom(NONCE_LENGTH)
        return messages.Challenged(self._nonce)

    def deliver(
        self, unit: messages.Unit, identity: str | None, asked: messages.DeliverKey
    ) -> messages.Delivered:
        """`identity`: SHA-256 (hex) of the key by which this visit has joined its unit, None for other identifiers."""
        options, nonce = self._options(asked.purpose), self._spent()
        signed = options.transport == "signed"
        if signed and (identity is None or hashlib.sha256(asked.identity).hexdigest() != identity):
            raise PossessionUnproven(
                "the transport key is not vouched for by the key that this unit is known by"
            )
        found = self._signer.seal_key(
            messages.SealKey(
                unit.unit,
                unit.registration_id,
                asked.purpose,
                asked.transport,
                group=options.group_key,
                identity=asked.identity if signed else b"",
                challenge=nonce if signed else b"",
                signature=asked.signature if signed else b"",
            )
        )
        return messages.Delivered(
            unit.registration_id, found.encapsulated, found.ciphertext, found.upload, found.spki
        )

    def prove(self, unit: messages.Unit, asked: messages.ProveKey) -> messages.Ok:
        self._signer.check_key(messages.CheckKey(unit.unit, self._spent(), asked.mac))
        return messages.Ok()

    def passed(self, unit: messages.Unit) -> None:
        """What the signer kept to deliver again can go. A signer that is away is told at the next start."""
        certificate = self._recipe.certificate()
        if self._recipe.symmetric_key() is None and (certificate is None or certificate.key_from != "token"):
            return
        try:
            self._signer.forget_keys([unit.unit])
        except HallmarkError as error:
            structlog.get_logger().warning("keys are not forgotten yet", unit=unit.unit, reason=str(error))

    def _options(self, purpose: str) -> Any:
        options = self._recipe.symmetric_key() if purpose == KeyPurpose.SYMMETRIC else None
        if options is None:
            raise ProtocolViolation(
                f"a worker asked for a {quote(purpose)} key, which its recipe does not name"
            )
        return options

    def _spent(self) -> bytes:
        nonce, self._nonce = self._nonce, None
        if nonce is None:
            raise ProtocolViolation("a worker answered a challenge that it had not asked for")
        return nonce


def forget_delivered(store: Store, signer: SignerClient) -> None:
    """At start: tells the signer to forget the keys of units that have passed, where a crash came in between."""
    passed = store.passed(signer.kept_keys())
    if passed:
        signer.forget_keys(passed)
