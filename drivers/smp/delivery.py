"""KeyDelivery over the vendor group: a key that was made elsewhere, sealed from its maker to the board.

What passes here is ciphertext and proofs. Nothing is opened, and no key is made.
"""

from __future__ import annotations

from typing import Final

from drivers.smp import vendor
from drivers.smp.messages import BoardError
from drivers.smp.transactions import Transactions
from hal.call import Call
from hal.errors import DeviceRefused, KeyConflict, ProtocolViolation
from hal.types import SEALED_LIMIT, KeyPurpose, SealedKey, TransportKey

_LEAST_NONCE: Final = 16


class SmpKeyDelivery:
    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def transport_key(self, call: Call, challenge: bytes) -> TransportKey:
        if len(challenge) != vendor.CHALLENGE_LENGTH:
            problem = (
                f"a challenge of {len(challenge)} octets; a transport key takes {vendor.CHALLENGE_LENGTH}"
            )
            raise DeviceRefused(problem)
        result = self._transactions.run(call, vendor.Command.TRANSPORT_KEY, challenge)
        try:
            return TransportKey(*vendor.unpack_transport_key(result))
        except ValueError as exc:
            problem = f"what the board gave as its transport key can't be used: {exc}"
            raise ProtocolViolation(problem) from None

    def install_key(self, call: Call, sealed: SealedKey) -> bytes:
        if len(sealed.ciphertext) > SEALED_LIMIT:
            problem = f"a sealed key of {len(sealed.ciphertext)} octets; boards take {SEALED_LIMIT}"
            raise DeviceRefused(problem)
        argument = vendor.pack_install(
            sealed.purpose.value, sealed.registration_id, sealed.encapsulated, sealed.ciphertext
        )
        try:
            spki = self._transactions.run(call, vendor.Command.INSTALL_KEY, argument)
        except BoardError as exc:
            if exc.is_of(vendor.GROUP, vendor.Err.KEY_EXISTS):
                problem = f"the board has another {sealed.purpose} key already and doesn't replace it"
                raise KeyConflict(problem) from exc
            if exc.is_of(vendor.GROUP, vendor.Err.NOT_OPENED):
                problem = (
                    "the board can't open the key: it was reset in between, or the key was changed on its way"
                )
                raise ProtocolViolation(problem) from exc
            raise
        if bool(spki) != (sealed.purpose is KeyPurpose.PRIVATE):
            problem = "the board's answer to a key is not one for a key of its kind"
            raise ProtocolViolation(problem)
        return spki

    def prove_secret(self, call: Call, nonce: bytes) -> bytes | None:
        if not _LEAST_NONCE <= len(nonce) <= vendor.NONCE_LIMIT:
            problem = (
                f"a nonce of {len(nonce)} octets proves nothing; {_LEAST_NONCE} to {vendor.NONCE_LIMIT} do"
            )
            raise DeviceRefused(problem)
        try:
            mac = self._transactions.run(call, vendor.Command.PROVE_SECRET, nonce)
        except BoardError as exc:
            if exc.is_of(vendor.GROUP, vendor.Err.NO_KEY):
                return None
            raise
        if len(mac) != vendor.MAC_LENGTH:
            problem = f"the board's proof has {len(mac)} octets, not {vendor.MAC_LENGTH}"
            raise ProtocolViolation(problem)
        return mac
