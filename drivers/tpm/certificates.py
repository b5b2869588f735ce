"""EK certificates as TPM makers leave them in NV: wrapped, padded, or several in a row. Octets in, DER out.

Whether a certificate is to be trusted is decided elsewhere.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from drivers.tpm import public

TCG_FULL_CERTIFICATE: Final = bytes.fromhex("100100")
"""TCG PC Client Specific Implementation 1.2, 7.3.2: a structure tag of TPM 1.2 days, which some makers still write;
two octets of length follow, big-endian."""
SEQUENCE: Final = 0x30
RSA: Final = frozenset({"1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7"})
"""rsaEncryption, and id-RSAES-OAEP (RFC 4055, 4.1), which some makers write for a key that only decrypts."""
LARGEST: Final = 8192
"""Octets of one certificate at most."""


def sequence_length(data: bytes) -> int | None:
    """Octets of the DER SEQUENCE that `data` begins with, its header included; None when it doesn't hold one whole."""
    if len(data) < 2 or data[0] != SEQUENCE:
        return None
    length, header = data[1], 2
    if length >= 0x80:
        more = length & 0x7F
        if not 1 <= more <= 3 or len(data) < 2 + more:
            return None
        length, header = int.from_bytes(data[2 : 2 + more], "big"), 2 + more
    whole = header + length
    return whole if whole <= min(len(data), LARGEST) else None


def stripped(content: bytes) -> bytes | None:
    """The certificate in an NV index, without the wrapping before it and the padding behind it; None if there is none.

    Whether the certificate can be read is not looked at.
    """
    inner = content[5:] if content.startswith(TCG_FULL_CERTIFICATE) else content
    length = sequence_length(inner)
    return inner[:length] if length else None


def each(content: bytes) -> list[bytes]:
    """The certificates that stand one behind the other in `content`, up to what is no certificate."""
    found: list[bytes] = []
    rest = content
    while (one := stripped(rest)) is not None:
        found.append(one)
        skipped = 5 if rest.startswith(TCG_FULL_CERTIFICATE) else 0
        rest = rest[skipped + len(one) :]
    return found


def key_of(certificate: bytes) -> bytes | None:
    """DER SubjectPublicKeyInfo of the certificate's key, as `public.spki` writes it; None when it can't be read."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return _key_of_odd(certificate)
    return public.normalised(key) if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) else None


def _key_of_odd(certificate: bytes) -> bytes | None:
    """The same for certificates in encodings that cryptography does not take: RSAES-OAEP keys, BER booleans."""
    from asn1crypto import (
        x509 as patient,
    )  # half of a worker's start would be this import, and few TPMs need it

    try:
        info = patient.Certificate.load(certificate)["tbs_certificate"]["subject_public_key_info"]
        if info["algorithm"]["algorithm"].dotted not in RSA:
            key = load_der_public_key(info.dump())
        else:
            numbers = info["public_key"].parsed
            exponent, modulus = numbers["public_exponent"].native, numbers["modulus"].native
            key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, UnsupportedAlgorithm):
        return None
    return public.normalised(key) if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) else None
