"""Keys and signatures between PKCS#11's encodings and those of X.509. Pure: nothing here calls a token."""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from hal.errors import TokenError
from hal.secret import Secret
from hal.types import KeyType

CURVES: Final[dict[KeyType, type[ec.EllipticCurve]]] = {
    KeyType.P256: ec.SECP256R1,
    KeyType.P384: ec.SECP384R1,
}
RSA_BITS: Final[dict[KeyType, int]] = {KeyType.RSA2048: 2048, KeyType.RSA3072: 3072}
CURVE_NAMES: Final[dict[KeyType, str]] = {KeyType.P256: "secp256r1", KeyType.P384: "secp384r1"}
"""As asn1crypto calls them."""
CURVE_OIDS: Final[dict[bytes, type[ec.EllipticCurve]]] = {
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1,
    bytes.fromhex("06052b81040022"): ec.SECP384R1,
}
"""CKA_EC_PARAMS of named curves: the DER OBJECT IDENTIFIER (RFC 5480, 2.1.1.1)."""

DIGEST_INFO_SHA256: Final = bytes.fromhex("3031300d060960864801650304020105000420")
"""RFC 8017, 9.2, note 1: what CKM_RSA_PKCS wants before a SHA-256 digest."""

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def ec_public_key(params: bytes, point: bytes) -> ec.EllipticCurvePublicKey:
    """From CKA_EC_PARAMS and CKA_EC_POINT. The standard wraps the point in an OCTET STRING; some modules don't."""
    curve = CURVE_OIDS.get(params)
    if curve is None:
        message = f"a key on a curve that isn't P-256 or P-384 (CKA_EC_PARAMS {params.hex()[:60]})"
        raise TokenError(message)
    size = 1 + 2 * ((curve().key_size + 7) // 8)
    if len(point) == size + 2 and point[:2] == bytes((0x04, size)):
        point = point[2:]
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve(), point)
    except ValueError as error:
        message = f"CKA_EC_POINT of {len(point)} octets is no point of {curve.name}"
        raise TokenError(message) from error


def rsa_public_key(modulus: bytes, exponent: bytes) -> rsa.RSAPublicKey:
    """From CKA_MODULUS and CKA_PUBLIC_EXPONENT, big-endian."""
    numbers = rsa.RSAPublicNumbers(int.from_bytes(exponent), int.from_bytes(modulus))
    try:
        return numbers.public_key()
    except ValueError as error:
        message = f"the token's RSA key can't be used: {error}"
        raise TokenError(message) from error


def spki(key: PublicKey) -> bytes:
    """DER SubjectPublicKeyInfo (RFC 5280, 4.1.2.7)."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def ec_pkcs8(public: ec.EllipticCurvePublicKey, value: bytes) -> Secret:
    """PrivateKeyInfo (DER) from CKA_VALUE, the private number big-endian. TokenError when it isn't `public`'s."""
    return _pkcs8(ec.EllipticCurvePrivateNumbers(int.from_bytes(value), public.public_numbers()))


def rsa_pkcs8(public: rsa.RSAPublicKey, prime1: bytes, prime2: bytes) -> Secret:
    """PrivateKeyInfo (DER) from CKA_PRIME_1 and CKA_PRIME_2. TokenError when they aren't `public`'s."""
    numbers, p, q = public.public_numbers(), int.from_bytes(prime1), int.from_bytes(prime2)
    if p * q != numbers.n or not {p, q}.isdisjoint({0, 1}):
        message = "the token gave primes that are not those of the key it made"
        raise TokenError(message)
    d = rsa.rsa_recover_private_exponent(numbers.e, p, q)
    private = rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q), numbers
    )
    return _pkcs8(private)


def _pkcs8(private: ec.EllipticCurvePrivateNumbers | rsa.RSAPrivateNumbers) -> Secret:
    try:
        key = private.private_key()
    except ValueError:
        message = "the token gave a private key that does not go with the public one it made"
        raise TokenError(message) from None  # the cause might quote numbers
    return Secret(
        key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def to_be_signed(key: PublicKey, data: bytes) -> bytes:
    """What the token's mechanism takes: the digest for CKM_ECDSA, a DigestInfo for CKM_RSA_PKCS.

    Hashed here: SoftHSM has no ECDSA mechanism that hashes, and real tokens have slow links.
    """
    if isinstance(key, rsa.RSAPublicKey):
        return DIGEST_INFO_SHA256 + hashlib.sha256(data).digest()
    return hashlib.new(_hash(key).name, data).digest()


def from_token(key: PublicKey, signature: bytes) -> bytes:
    """The signature as X.509 wants it: ECDSA-Sig-Value (RFC 3279, 2.2.3) from the token's r and s side by side."""
    if isinstance(key, rsa.RSAPublicKey):
        return signature
    half = (key.curve.key_size + 7) // 8
    if len(signature) != 2 * half:
        message = f"the token gave an ECDSA signature of {len(signature)} octets; expected {2 * half}"
        raise TokenError(message)
    return utils.encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))


def check_signature(key: PublicKey, signature: bytes, data: bytes) -> None:
    """TokenError when `signature` (as X.509 wants it) is not over `data`."""
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, data, ec.ECDSA(_hash(key)))
    except InvalidSignature as error:
        message = "the token gave a signature that doesn't verify"
        raise TokenError(message) from error


def _hash(key: ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    return hashes.SHA384() if isinstance(key.curve, ec.SECP384R1) else hashes.SHA256()
