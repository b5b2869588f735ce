"""Certificates that were not issued here: what is asked of them before a unit may have one.

A pool's and a preloaded one lead to anchors that the station trusts for just that; one that the device made itself
leads nowhere, and is judged by what it says. Whose it is, and whether it was seen before, the store knows.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import VerificationError

from hal.errors import CertificateUntrusted, CredentialError, quote
from station.path_verifier import path_verifier
from station.signature import spki

T = TypeVar("T", bound=x509.ExtensionType)
CHAIN_LIMIT: Final = 8
CERTIFICATE_LIMIT: Final = 16 * 1024
"""Octets of one certificate."""
DEPTH: Final = 6
"""CAs between a leaf and its anchor."""
LEAST_RSA_BITS: Final = 2048
CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
UNREADABLE: Final = (
    ValueError,
    TypeError,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)
"""What `cryptography` raises for a certificate that it can't read, some of it only when a part is looked at."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate that a device may have. `key`: SHA-256 of its SPKI; `issuer`: DER Name; `serial`: hex."""

    der: bytes
    certificate: x509.Certificate
    spki: bytes
    key: bytes
    common_name: str
    issuer: bytes
    serial: str


@dataclass(frozen=True, slots=True)
class Terms:
    """`anchors`: DER, each trusted as it stands. `minimum_days`: how long a leaf has to last: warehouse time."""

    anchors: tuple[bytes, ...]
    minimum_days: int
    client_auth: bool = True
    """Whether the leaf has to say that it is for TLS clients; else it may keep silent."""


def read_leaf(der: bytes) -> Leaf:
    """CertificateUntrusted when it can't be read or its key is weak; nothing else is judged."""
    if len(der) > CERTIFICATE_LIMIT:
        raise CertificateUntrusted(f"a certificate of {len(der)} octets; at most {CERTIFICATE_LIMIT}")
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        encoded, issuer = spki(key), certificate.issuer.public_bytes()
    except (*UNREADABLE, CredentialError) as error:
        raise CertificateUntrusted(f"the certificate can't be read: {quote(error)}") from error
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < LEAST_RSA_BITS:
        raise CertificateUntrusted(f"its RSA key has {key.key_size} bits; expected {LEAST_RSA_BITS} or more")
    if isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, CURVES):
        raise CertificateUntrusted(f"its key is on {quote(key.curve.name)}; expected P-256, P-384 or P-521")
    if len(names) != 1:
        raise CertificateUntrusted(f"its subject has {len(names)} common names; expected one")
    name = names[0].value
    return Leaf(
        der,
        certificate,
        encoded,
        hashlib.sha256(encoded).digest(),
        name if isinstance(name, str) else name.decode("ascii", "backslashreplace"),
        issuer,
        f"{certificate.serial_number:x}",
    )


def judge(chain: Sequence[bytes], terms: Terms, now: dt.datetime) -> Leaf:
    """The leaf of a chain (DER, leaf first) that leads to an anchor; CertificateUntrusted says what is wrong."""
    if not 0 < len(chain) <= CHAIN_LIMIT:
        raise CertificateUntrusted(f"a chain of {len(chain)} certificates; expected 1 to {CHAIN_LIMIT}")
    leaf = read_leaf(chain[0])
    if not terms.anchors:
        raise CertificateUntrusted(
            "there is no anchor that such certificates could lead to",
            hint="An engineer puts the CA's certificates into the trust folder that docs/configuration.md names.",
        )
    try:
        anchors = [x509.load_der_x509_certificate(der) for der in terms.anchors]
        between = [x509.load_der_x509_certificate(der) for der in chain[1:]]
        path_verifier(anchors, now, DEPTH).verify(leaf.certificate, between)
    except (VerificationError, *UNREADABLE) as error:
        issuer = quote(leaf.certificate.issuer.rfc4514_string())
        raise CertificateUntrusted(
            f"the certificate of {quote(leaf.common_name)}, issued by {issuer}, leads to no anchor: {quote(error, 200)}"
        ) from error
    _check_purpose(leaf, client_auth=terms.client_auth)
    _check_time(leaf, terms.minimum_days, now)
    return leaf


def judge_self_signed(chain: Sequence[bytes], minimum_days: int, now: dt.datetime) -> Leaf:
    """A certificate that the device made: alone, signed by its own key, and in time."""
    if len(chain) != 1:
        raise CertificateUntrusted(
            f"the device shows {len(chain)} certificates; expected the one that it made itself"
        )
    leaf = read_leaf(chain[0])
    if leaf.certificate.subject != leaf.certificate.issuer:
        raise CertificateUntrusted(
            "the device's certificate was issued by somebody else; expected a self-signed one"
        )
    try:
        leaf.certificate.verify_directly_issued_by(leaf.certificate)
    except (*UNREADABLE, InvalidSignature) as error:
        raise CertificateUntrusted("the device's certificate is not signed by its own key") from error
    if not isinstance(leaf.certificate.signature_hash_algorithm, HASHES):
        raise CertificateUntrusted(
            "the device's certificate is signed with a weak digest; expected SHA-256 or better"
        )
    _check_time(leaf, minimum_days, now)
    return leaf


def _check_purpose(leaf: Leaf, *, client_auth: bool) -> None:
    """No CA, and for TLS clients: RFC 5280, 4.2.1.3, 4.2.1.9 and 4.2.1.12."""
    try:
        extensions = leaf.certificate.extensions
        constraints = _value(extensions, x509.BasicConstraints)
        usage = _value(extensions, x509.KeyUsage)
        purposes = _value(extensions, x509.ExtendedKeyUsage)
    except UNREADABLE as error:
        raise CertificateUntrusted(f"its extensions can't be read: {quote(error)}") from error
    if constraints is not None and constraints.ca:
        raise CertificateUntrusted("it is a CA's certificate, not a device's")
    if usage is not None and not usage.digital_signature:
        raise CertificateUntrusted("its key usage does not allow signing, which TLS clients do")
    if purposes is None and client_auth:
        raise CertificateUntrusted("it has no extended key usage; expected clientAuth")
    if purposes is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
        raise CertificateUntrusted("its extended key usage does not allow clientAuth")


def _check_time(leaf: Leaf, minimum_days: int, now: dt.datetime) -> None:
    start, end = leaf.certificate.not_valid_before_utc, leaf.certificate.not_valid_after_utc
    if not start <= now:
        raise CertificateUntrusted(f"it is valid from {start:%Y-%m-%d} on only; check the station's clock")
    if end < now + dt.timedelta(days=minimum_days):
        raise CertificateUntrusted(
            f"it ends on {end:%Y-%m-%d}: fewer than {minimum_days} days, which a unit may lie in a warehouse"
        )


def _value(extensions: x509.Extensions, kind: type[T]) -> T | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def digest(der: bytes) -> bytes:
    """SHA-256, by which a certificate is listed."""
    return hashlib.sha256(der).digest()
