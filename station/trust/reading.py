"""Certificates as TPM makers left them in the field, read for what they say: BER booleans, RSAES-OAEP keys and all.

Two readings of the same octets: asn1crypto's, which is patient, and `cryptography`'s where it can. Signatures are
always checked over the octets as they came. Whether a certificate is believed is decided in `chain`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from asn1crypto import x509 as asn1
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

LARGEST: Final = 16 * 1024
"""Octets of one certificate. TPM makers' have 1 to 2 KiB."""
RSA: Final = frozenset({"1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7"})
"""rsaEncryption, and id-RSAES-OAEP (RFC 4055, 4.1), which some makers write for a key that only decrypts."""
LEAST_RSA_BITS: Final = 2048
HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
"""What a signature may be made over. SHA-1's collisions can be made to order."""
OWN_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {"sha1": hashes.SHA1()}  # noqa: S303 - proves nothing here
"""In addition, what an old root may have signed itself with: it is believed for who gave it, not for that."""
SHORT: Final = {
    "2.5.4.3": "CN",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
}
TEXT_LIMIT: Final = 300
STRICT_ERRORS: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for certificates, or fields of them, that it does not take."""
_UNREADABLE: Final = (
    *STRICT_ERRORS,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
    struct.error,
)
"""What asn1crypto raises in addition, from wherever in a damaged structure it was."""

Key = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """One certificate. `subject` and `issuer` are for people, `subject_id` and `issuer_id` for comparing names as RFC
    5280, 7.1 says; `spki` is DER with rsaEncryption for every RSA key; `extensions`: dotted OID to critical and value.
    """

    der: bytes
    signed: bytes
    signature: bytes
    algorithm: Any
    """asn1crypto's SignedDigestAlgorithm."""
    subject: str
    issuer: str
    subject_id: str
    issuer_id: str
    serial: int
    key: Key
    spki: bytes
    start: dt.datetime
    end: dt.datetime
    extensions: Mapping[str, tuple[bool, bytes]]
    strict: x509.Certificate | None
    """As `cryptography` reads it; None when it doesn't."""
    vendor: str = ""
    """Whose it is, as the bundle says."""

    self_signed: bool = False
    """Made by its own key: what a root is. A self-issued certificate may be a CA's new key under its old one."""

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.der).digest()

    def valid_at(self, now: dt.datetime) -> bool:
        return self.start <= now <= self.end

    def authority(self) -> tuple[bool, int | None]:
        """Whether basic constraints say that it is a CA, and how many CAs may be below it."""
        found = self.extensions.get("2.5.29.19")
        if found is None:
            return False, None
        value = asn1.BasicConstraints.load(found[1], strict=True)
        return bool(value["ca"].native), value["path_len_constraint"].native

    def usage(self) -> frozenset[str] | None:
        """Key usage by asn1crypto's names (`key_cert_sign`, `crl_sign`); None when there is none."""
        found = self.extensions.get("2.5.29.15")
        return None if found is None else frozenset(asn1.KeyUsage.load(found[1], strict=True).native)

    def purposes(self) -> frozenset[str] | None:
        """Extended key usage as dotted OIDs; None when there is none."""
        found = self.extensions.get("2.5.29.37")
        if found is None:
            return None
        return frozenset(item.dotted for item in asn1.ExtKeyUsageSyntax.load(found[1], strict=True))

    def alternative_attributes(self) -> frozenset[str]:
        """Dotted OIDs of the attributes in the directory names of its subject alternative name."""
        found = self.extensions.get("2.5.29.17")
        if found is None:
            return frozenset()
        names = asn1.GeneralNames.load(found[1], strict=True)
        return frozenset(
            attribute["type"].dotted
            for name in names
            if name.name == "directory_name"
            for group in name.chosen.chosen
            for attribute in group
        )

    def issued_by(self, issuer: Certificate) -> bool:
        """Whether `issuer`'s name and key made this one, over the octets as they came."""
        if self.issuer_id != issuer.subject_id:
            return False
        try:
            return _holds(self, issuer.key)
        except (*_UNREADABLE, InvalidSignature):
            return False


def read_certificate(der: bytes) -> Certificate:
    """ValueError when `der` is no certificate, or none whose fields can be read."""
    if len(der) > LARGEST:
        raise ValueError(f"a certificate of {len(der)} octets")
    try:
        return _read(der)
    except _UNREADABLE as error:
        raise ValueError(str(error)[:TEXT_LIMIT]) from error


def _read(der: bytes) -> Certificate:
    whole = asn1.Certificate.load(der, strict=True)
    body = whole["tbs_certificate"]
    validity, key = body["validity"], _key(body["subject_public_key_info"])
    made = Certificate(
        der=der,
        signed=body.dump(),
        signature=whole["signature_value"].native,
        algorithm=whole["signature_algorithm"],
        subject=_text(body["subject"]),
        issuer=_text(body["issuer"]),
        subject_id=body["subject"].hashable,
        issuer_id=body["issuer"].hashable,
        serial=int(body["serial_number"].native),
        key=key,
        spki=key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        start=validity["not_before"].native,
        end=validity["not_after"].native,
        extensions=_extensions(body["extensions"]),
        strict=_strict(der),
    )
    if body["signature"].dump() != made.algorithm.dump():
        raise ValueError("names two signature algorithms")
    made = replace(made, self_signed=_is_self_signed(made))
    # Each is asked for once here, so that what can't be read is told now and not in the middle of a decision.
    made.authority(), made.usage(), made.purposes(), made.alternative_attributes()
    return made


def _key(info: Any) -> Key:
    if info["algorithm"]["algorithm"].dotted in RSA:
        numbers = info["public_key"].parsed
        public = rsa.RSAPublicNumbers(numbers["public_exponent"].native, numbers["modulus"].native)
        return public.public_key()
    key = load_der_public_key(info.dump())
    if not isinstance(key, Key):
        raise ValueError("has another kind of key than RSA and EC")  # noqa: TRY004 - the certificate's fault
    return key


def _extensions(items: Any) -> dict[str, tuple[bool, bytes]]:
    found: dict[str, tuple[bool, bytes]] = {}
    for item in items if items.native is not None else ():
        oid = item["extn_id"].dotted
        if oid in found:
            raise ValueError(f"has extension {oid} twice")
        found[oid] = bool(item["critical"].native), bytes(item["extn_value"])
    return found


def _strict(der: bytes) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(der)
    except STRICT_ERRORS:
        return None


def _text(name: Any) -> str:
    """RFC 4514's order, for people: never to be compared."""
    groups = [
        "+".join(
            f"{SHORT.get(item['type'].dotted, item['type'].dotted)}={item['value'].native}" for item in group
        )
        for group in name.chosen
    ]
    return ",".join(reversed(groups))[:TEXT_LIMIT]


def _is_self_signed(certificate: Certificate) -> bool:
    if certificate.subject_id != certificate.issuer_id:
        return False
    try:
        return _holds(certificate, certificate.key, {**HASHES, **OWN_HASHES})
    except (*_UNREADABLE, InvalidSignature):
        return False


def _holds(certificate: Certificate, key: Key, digests: Mapping[str, hashes.HashAlgorithm] = HASHES) -> bool:
    """Raises, or True: the signature over the certificate's body."""
    algorithm = certificate.algorithm
    digest = digests[algorithm.hash_algo]
    scheme = algorithm.signature_algo
    if isinstance(key, ec.EllipticCurvePublicKey) and scheme == "ecdsa":
        key.verify(certificate.signature, certificate.signed, ec.ECDSA(digest))
        return True
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < LEAST_RSA_BITS:
        return False
    if scheme == "rsassa_pkcs1v15":
        key.verify(certificate.signature, certificate.signed, padding.PKCS1v15(), digest)
        return True
    if scheme == "rsassa_pss":
        parameters = algorithm["parameters"]
        mask = HASHES[parameters["mask_gen_algorithm"]["parameters"]["algorithm"].native]
        pss = padding.PSS(padding.MGF1(mask), int(parameters["salt_length"].native))
        key.verify(certificate.signature, certificate.signed, pss, digest)
        return True
    return False
