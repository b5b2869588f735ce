"""A device's certificate request (PKCS#10, RFC 2986), read with distrust: every octet of it is the device's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from hal.errors import CsrRejected, quote
from hal.types import KeyType

CSR_LIMIT: Final = 8192
"""Octets. An RSA-4096 request with many extensions has some 2,000."""
HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
F4: Final = 65537
"""The only public exponent that every verifier takes (CA/B Forum Baseline Requirements, 6.1.6, wants it or larger)."""

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose own signature holds. `key_type` is None for a key that no profile takes."""

    public_key: PublicKey
    spki: bytes
    key_type: KeyType | None


def read_csr(der: bytes, registration_id: str) -> Request:
    """`der` checked: well-formed, signed by its own key, and for this registration ID when it names one.

    Attributes and requested extensions are not looked at: the profile alone says what a certificate has.
    """
    if len(der) > CSR_LIMIT:
        message = f"a certificate request of {len(der)} octets; at most {CSR_LIMIT}"
        raise CsrRejected(message)
    try:
        csr = x509.load_der_x509_csr(der)
        key = csr.public_key()
        names = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        algorithm = csr.signature_hash_algorithm
        signed = csr.is_signature_valid
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm, InvalidSignature) as error:
        message = f"a certificate request that can't be read: {quote(str(error))}"
        raise CsrRejected(message) from error
    if not isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)):
        message = "a certificate request whose key is neither EC nor RSA"
        raise CsrRejected(message)
    if not isinstance(algorithm, HASHES) or not signed:
        message = "a certificate request whose own signature does not hold"
        raise CsrRejected(message)
    if any(name.value != registration_id for name in names):
        found = ", ".join(quote(str(name.value)) for name in names[:2])
        message = f"a certificate request for {found} from the unit {quote(registration_id)}"
        raise CsrRejected(message)
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Request(key, encoded, key_type_of(key))


def key_type_of(key: PublicKey) -> KeyType | None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return {"secp256r1": KeyType.P256, "secp384r1": KeyType.P384}.get(key.curve.name)
    if key.public_numbers().e != F4:
        return None
    return {2048: KeyType.RSA2048, 3072: KeyType.RSA3072}.get(key.key_size)
