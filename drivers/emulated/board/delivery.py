"""Keys that the board takes from elsewhere, by the vendor group: its transport key, what is sealed to it, proofs.

HPKE (RFC 9180) opens them. What a key is for, and where it is kept, is the key store's and the secret store's matter.
"""

from __future__ import annotations

import hmac
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from drivers.emulated.board import storage
from drivers.emulated.board.server import Refusal
from drivers.emulated.board.storage import KeyStore, SecretStore
from drivers.smp import vendor
from drivers.smp.vendor import Err
from hal.types import KeyPurpose, delivery_info, transport_message

SUITE: Final = Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
PROOF_LABEL: Final = b"hallmark key proof 1"
SECRET_LENGTH: Final = 32
NONCE_LEAST: Final = 16


class Delivery:
    """The transport key is in RAM only: a reset, another one, or its one use ends it."""

    def __init__(self, keys: KeyStore, secret: SecretStore) -> None:
        self._keys, self._secret = keys, secret
        self._transport: ec.EllipticCurvePrivateKey | None = None

    def transport_key(self, challenge: bytes) -> bytes:
        if len(challenge) != vendor.CHALLENGE_LENGTH:
            _refuse(Err.BAD_ARGUMENT)
        self._transport = ec.generate_private_key(ec.SECP256R1())
        point = self._transport.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        own = self._keys.key()
        signature = storage.sign(own, transport_message(challenge, point)) if own else b""
        return vendor.pack_transport_key(point, signature)

    def install(self, argument: bytes) -> bytes:
        try:
            purpose, registration_id, encapsulated, ciphertext = vendor.unpack_install(argument)
            kind = KeyPurpose(purpose)
        except ValueError:
            _refuse(Err.BAD_ARGUMENT)
        transport = self._transport
        if transport is None:
            _refuse(Err.NOT_OPENED)
        try:
            key = SUITE.decrypt(
                encapsulated + ciphertext, transport, info=delivery_info(kind, registration_id)
            )
        except (InvalidTag, ValueError):
            _refuse(Err.NOT_OPENED)
        self._transport = None
        return self._keep_secret(key) if kind is KeyPurpose.SYMMETRIC else self._keep_private(key)

    def prove(self, nonce: bytes) -> bytes:
        if not NONCE_LEAST <= len(nonce) <= vendor.NONCE_LIMIT:
            _refuse(Err.BAD_ARGUMENT)
        key = self._secret.read()
        if key is None:
            _refuse(Err.NO_KEY)
        return hmac.digest(hmac.digest(key, PROOF_LABEL, "sha256"), nonce, "sha256")

    def _keep_secret(self, key: bytes) -> bytes:
        if len(key) != SECRET_LENGTH:
            _refuse(Err.BAD_ARGUMENT)
        there = self._secret.read()
        if there is None:
            self._secret.write(key)
        elif not hmac.compare_digest(there, key):
            _refuse(Err.KEY_EXISTS)
        return b""

    def _keep_private(self, pkcs8: bytes) -> bytes:
        try:
            key = serialization.load_der_private_key(pkcs8, password=None)
        except (ValueError, TypeError):
            _refuse(Err.BAD_ARGUMENT)
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            _refuse(Err.BAD_ARGUMENT)
        there = self._keys.key()
        if there is None:
            self._keys.keep(key)
        elif storage.spki(there) != storage.spki(key):
            _refuse(Err.KEY_EXISTS)
        return storage.spki(key)


def _refuse(rc: Err) -> NoReturn:
    raise Refusal(rc, vendor.GROUP)
