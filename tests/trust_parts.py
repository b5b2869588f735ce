"""TPM makers for tests: CAs, EK certificates in every encoding that the field has, revocation lists, bundles, EKs."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from asn1crypto import core
from asn1crypto import x509 as asn1
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from station.trust.bundle import FORMAT, Bundle, Vendor, crl_entry, entry
from station.trust.crl import read_crl
from station.trust.policy import CrlPolicy, EkPolicy, EkTrust

NOW: Final = dt.datetime.now(dt.UTC).replace(microsecond=0)
DAY: Final = dt.timedelta(days=1)
EK_USAGE: Final = x509.ObjectIdentifier("2.23.133.8.1")
TPM_SAN: Final = x509.SubjectAlternativeName(
    [
        x509.DirectoryName(
            x509.Name([x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), "id:00001014")])
        )
    ]
)
CA_USE: Final = x509.KeyUsage(*(index in (5, 6) for index in range(9)))  # keyCertSign, cRLSign
CRITICAL_POLICY: Final = x509.CertificatePolicies(
    [x509.PolicyInformation(x509.ObjectIdentifier("2.23.133.8.1"), None)]
)
RSA_ENCRYPTION: Final = bytes.fromhex("06092a864886f70d010101")
RSAES_OAEP: Final = bytes.fromhex("06092a864886f70d010107")
KINDS: Final = ("plain", "oaep", "critical-policy", "ber-boolean", "oaep critical-policy")
"""How EK certificates come; `cryptography` verifies the first two (whose key it can't read) and no others."""
STRICT: Final = KINDS[:2]


def policy(trust: str = "certificate", crl: str = "warn") -> EkPolicy:
    return EkPolicy(EkTrust(trust), CrlPolicy(crl))


class Maker:
    """A CA: certifies others, makes its list."""

    def __init__(self, text: str, key: ec.EllipticCurvePrivateKey | None = None) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def _certify(
        self, subject: x509.Name, public: Any, extensions: Sequence[tuple[Any, bool]], **dates: Any
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(dates.get("serial") or x509.random_serial_number())
            .not_valid_before(dates.get("start", NOW - 30 * DAY))
            .not_valid_after(dates.get("end", NOW + 300 * DAY))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())

    def ca(self, other: Maker, *, is_ca: bool = True, **dates: Any) -> bytes:
        extensions = [(x509.BasicConstraints(ca=is_ca, path_length=None), True), (CA_USE, True)]
        return self._certify(other.name, other.key.public_key(), extensions, **dates).public_bytes(
            Encoding.DER
        )

    def ek(self, public: Any, kind: str = "plain", **dates: Any) -> bytes:
        """An EK certificate as this maker makes them, in one of `KINDS`."""
        extensions: list[tuple[Any, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (TPM_SAN, True),
            (x509.KeyUsage(*(index == 2 for index in range(9))), True),
            (x509.ExtendedKeyUsage([EK_USAGE]), False),
        ]
        if "critical-policy" in kind:
            extensions.append((CRITICAL_POLICY, True))
        made = self._certify(x509.Name([]), public, extensions, **dates)
        body = made.tbs_certificate_bytes
        if "oaep" in kind:
            spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            body = body.replace(spki, spki.replace(RSA_ENCRYPTION, RSAES_OAEP))
        elif kind == "ber-boolean":
            body = body.replace(b"\x01\x01\xff", b"\x01\x01\x01")
        return made.public_bytes(Encoding.DER) if body == made.tbs_certificate_bytes else self._signed(body)

    def _signed(self, body: bytes) -> bytes:
        signature = self.key.sign(body, ec.ECDSA(hashes.SHA256()))
        algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
        inner = (
            body
            + algorithm
            + core.BitString.load(b"\x03" + bytes([len(signature) + 1]) + b"\0" + signature).dump()
        )
        made = b"\x30\x82" + len(inner).to_bytes(2, "big") + inner
        assert asn1.Certificate.load(made)["tbs_certificate"].dump() == body
        return made

    def crl(self, *serials: int, start: dt.datetime = NOW - DAY, end: dt.datetime = NOW + 20 * DAY) -> bytes:
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name)
        builder = builder.last_update(start).next_update(end)
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)


@functools.cache
def rsa_key(number: int = 0) -> rsa.RSAPublicKey:
    del number
    return rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()


def ek_public(key: rsa.RSAPublicKey, attributes: int = 0x000300B2) -> bytes:
    """TPM2B_PUBLIC of the TCG's L-1 template with that key (EK Credential Profile, B.3.3)."""
    authorization = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
    area = (
        bytes.fromhex("0001000b")
        + attributes.to_bytes(4, "big")
        + b"\0\x20"
        + authorization
        + bytes.fromhex("0006 0080 0043 0010 0800 00000000 0100")
        + key.public_numbers().n.to_bytes(256, "big")
    )
    return len(area).to_bytes(2, "big") + area


def ek_name(public: bytes) -> bytes:
    return b"\0\x0b" + hashlib.sha256(public[2:]).digest()


def bundle(
    serial: int = 1,
    roots: Sequence[bytes] = (),
    intermediates: Sequence[bytes] = (),
    crls: Sequence[bytes] = (),
) -> Bundle:
    vendor = Vendor(
        "Maker",
        [entry(der) for der in roots],
        [entry(der) for der in intermediates],
        [crl_entry(read_crl(der)) for der in crls],
    )
    return Bundle(FORMAT, serial, NOW, [vendor])


def key_pair(folder: Path, name: str, signers: Path) -> Path:
    """A signer's key file; its public half goes to `signers`."""
    key = Ed25519PrivateKey.generate()
    signers.mkdir(parents=True, exist_ok=True)
    (signers / f"{name}.pem").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    path = folder / f"{name}.key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path
