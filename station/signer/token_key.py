"""A key in the CA token as a `cryptography` private key, for that library's builders; and certificates put together.

`cryptography` 50 takes subclasses of its key classes in builders and calls `sign` with the bytes that the certificate
will carry. It checks neither the signature nor that key and issuer fit: `issuing` does, before anything leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, NoReturn, Self, TypeVar

from asn1crypto import x509 as asn1_x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.utils import Buffer

from hal.errors import KeyMissing

Sign = Callable[[bytes], bytes]
"""Data to signature: ECDSA-Sig-Value or PKCS#1 v1.5, with SHA-256 (P-384: SHA-384), as `CaToken.sign` gives it."""

PLACEHOLDER_INTEGER: Final = 1
"""r and s of the signature that stands in while only the bytes to be signed are wanted."""

P = TypeVar("P", bound=ec.EllipticCurvePublicKey | rsa.RSAPublicKey)


def _refuse() -> NoReturn:
    message = "the key is in the token: it signs, and does nothing else"
    raise TypeError(message)


class _InToken(Generic[P]):
    """What keys in a token have in common, before the library's abstract class in the order of resolution."""

    def __init__(self, public: P, sign: Sign) -> None:
        self._public, self._sign = public, sign

    def public_key(self) -> P:
        return self._public

    @property
    def key_size(self) -> int:
        return self._public.key_size

    def private_numbers(self) -> NoReturn:
        _refuse()

    def private_bytes(self, *_args: object, **_named: object) -> NoReturn:
        _refuse()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


class EcTokenKey(_InToken[ec.EllipticCurvePublicKey], ec.EllipticCurvePrivateKey):
    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        del signature_algorithm  # `signature_hash` chose it, as the token does
        return self._sign(bytes(data))

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public.curve

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        del algorithm, peer_public_key
        _refuse()


class RsaTokenKey(_InToken[rsa.RSAPublicKey], rsa.RSAPrivateKey):
    def sign(
        self,
        data: Buffer,
        padding: padding.AsymmetricPadding,
        algorithm: utils.Prehashed | hashes.HashAlgorithm | utils.NoDigestInfo,
    ) -> bytes:
        del padding, algorithm  # the builder's default, PKCS#1 v1.5, and `signature_hash`: as the token does
        return self._sign(bytes(data))

    def decrypt(self, ciphertext: bytes, padding: padding.AsymmetricPadding) -> bytes:
        del ciphertext, padding
        _refuse()


TokenKey = EcTokenKey | RsaTokenKey


def token_key(spki: bytes, sign: Sign) -> TokenKey:
    """The key whose public part is `spki` (DER) and whose signatures `sign` makes."""
    public = serialization.load_der_public_key(spki)
    if isinstance(public, ec.EllipticCurvePublicKey):
        return EcTokenKey(public, sign)
    if isinstance(public, rsa.RSAPublicKey):
        return RsaTokenKey(public, sign)
    message = "the CA key is neither an EC nor an RSA key"
    raise KeyMissing(message)


def signature_hash(
    key: TokenKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> hashes.SHA256 | hashes.SHA384:
    """What `CaToken.sign` hashes with."""
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1):
        return hashes.SHA384()
    return hashes.SHA256()


def bytes_to_be_signed(spki: bytes, build: Callable[[TokenKey], object]) -> bytes:
    """The TBSCertificate that `build` gives its key to sign. Nothing is signed; the token isn't asked."""
    seen: list[bytes] = []

    def note(data: bytes) -> bytes:
        seen.append(data)
        return utils.encode_dss_signature(PLACEHOLDER_INTEGER, PLACEHOLDER_INTEGER)

    build(token_key(spki, note))
    (tbs,) = seen
    return tbs


def put_together(tbs: bytes, signature: bytes) -> bytes:
    """Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue } (RFC 5280, 4.1), DER."""
    to_be_signed = asn1_x509.TbsCertificate.load(tbs, strict=True)
    certificate = asn1_x509.Certificate(
        {
            "tbs_certificate": to_be_signed,
            "signature_algorithm": to_be_signed["signature"],
            "signature_value": signature,
        }
    )
    return bytes(certificate.dump())
