"""Sealed to one holder of a P-256 key: keys on their way to a board, or to the uploader.

HPKE (RFC 9180), base mode, one message: DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. Each seal has an
ephemeral key of its own. What it was made for is HPKE's `info`, so that nothing sealed for one end opens for another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from hal.errors import ConfigError, ProtocolViolation
from hal.secret import Secret
from hal.types import KeyPurpose, SealedKey, SymmetricKeyAttestation, delivery_info

SUITE: Final = Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
"""kem_id 0x0010, kdf_id 0x0001, aead_id 0x0002 (RFC 9180, 7)."""
POINT_LENGTH: Final = 65
"""Octets of an uncompressed point, which is also HPKE's `enc` for this KEM (RFC 9180, 7.1.1)."""
KEY_LENGTH: Final = 32
"""Octets of a device's symmetric key: what HMAC-SHA256 gives, and DPS takes (16 to 64)."""
UPLOAD_CREDENTIAL: Final = "upload-key"
"""The credential with the uploader's private key."""
MAKE_UPLOAD_KEY: Final = "Make the pair as docs/symmetric-keys.md tells, and run `hallmark check`."
UPLOAD_LENGTH: Final = POINT_LENGTH + 2 * KEY_LENGTH + 16


def read_point(point: bytes) -> ec.EllipticCurvePublicKey:
    """A P-256 key from its uncompressed point. ProtocolViolation for anything that is none."""
    try:
        if len(point) != POINT_LENGTH:
            raise ValueError
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise ProtocolViolation("the board's transport key is no uncompressed point of P-256") from None


def load_upload_key(path: Path) -> ec.EllipticCurvePublicKey:
    """The uploader's public key from a PEM file. ConfigError for anything but a P-256 public key."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"the upload key can't be read: {error.strerror}", file=str(path)) from error
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("expected a public key in PEM", file=str(path), hint=MAKE_UPLOAD_KEY) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError("expected a key on P-256", file=str(path), hint=MAKE_UPLOAD_KEY)
    return key


def read_upload_key(pem: Secret) -> ec.EllipticCurvePrivateKey:
    """The uploader's private key, PEM without a passphrase. ConfigError for anything but a P-256 private key."""
    try:
        key = serialization.load_pem_private_key(pem.reveal(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(
            "the uploader's private key can't be read; expected PEM without a passphrase",
            hint=MAKE_UPLOAD_KEY,
        ) from None  # the cause might quote it
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError("the uploader's private key is not on P-256", hint=MAKE_UPLOAD_KEY)
    return key


def seal_for_board(point: bytes, purpose: KeyPurpose, registration_id: str, key: Secret) -> SealedKey:
    """`key` for the board whose transport key is `point`."""
    sealed = SUITE.encrypt(key.reveal(), read_point(point), info=delivery_info(purpose, registration_id))
    return SealedKey(purpose, registration_id, sealed[:POINT_LENGTH], sealed[POINT_LENGTH:])


def seal_for_upload(
    uploader: ec.EllipticCurvePublicKey, registration_id: str, keys: SymmetricKeyAttestation
) -> bytes:
    """`enc`, then the ciphertext of both keys, primary first: for the uploader, and for this registration ID only."""
    plain = keys.primary.reveal() + keys.secondary.reveal()
    return SUITE.encrypt(plain, uploader, info=_upload_info(registration_id))


def open_upload(
    uploader: ec.EllipticCurvePrivateKey, registration_id: str, sealed: bytes
) -> SymmetricKeyAttestation | None:
    """The keys again; None when `sealed` was made for another key, another registration ID, or was changed."""
    if len(sealed) != UPLOAD_LENGTH:
        return None
    try:
        plain = SUITE.decrypt(sealed, uploader, info=_upload_info(registration_id))
    except (InvalidTag, ValueError):
        return None
    return SymmetricKeyAttestation(Secret(plain[:KEY_LENGTH]), Secret(plain[KEY_LENGTH:]))


def _upload_info(registration_id: str) -> bytes:
    return b"hallmark key upload 1\x00" + registration_id.encode()
