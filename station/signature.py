"""Checks what devices sign: the one place where `KeyPlace.prove`'s answers are believed or not."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from hal.errors import CredentialError, PossessionUnproven


def verify_signature(key: object, signature: bytes, data: bytes) -> None:
    """SHA-256 signature as `KeyPlace.prove` gives it; PossessionUnproven when it doesn't hold."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            raise PossessionUnproven("the device's key is neither ECDSA nor RSA")
    except InvalidSignature as error:
        raise PossessionUnproven("the device's signature over a nonce does not hold") from error


def spki(key: object) -> bytes:
    """DER SubjectPublicKeyInfo of an ECDSA or RSA public key; CredentialError for others."""
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise CredentialError("the key is neither ECDSA nor RSA")
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
