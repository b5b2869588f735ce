"""A PKI that is not the station's, devices with keys of their own, and lots: for certificates made elsewhere."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any, Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from station.foreign import Terms, read_leaf
from station.store.stock import CERTIFICATES, KEYS, PRELOADED, Entry, Lot

DER: Final = serialization.Encoding.DER
NOW: Final = dt.datetime.now(dt.UTC)
Key = ec.EllipticCurvePrivateKey


class HasPublicKey(Protocol):
    def public_key(self) -> ec.EllipticCurvePublicKey: ...


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def spki(key: Key) -> bytes:
    return key.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def digest(key: Key) -> bytes:
    return hashlib.sha256(spki(key)).digest()


class Pki:
    """A root, and an issuing CA below it. `terms`: what a station that trusts it asks of its certificates."""

    def __init__(self, title: str = "Third-party") -> None:
        self.root_key, self.key = new_key(), new_key()
        self.root = self._ca(f"{title} root", self.root_key, f"{title} root", self.root_key)
        self.issuing = self._ca(f"{title} issuing", self.key, f"{title} root", self.root_key)
        self.title = title

    @property
    def terms(self) -> Terms:
        return Terms((self.root.public_bytes(DER),), 545)

    def _ca(self, subject: str, key: Key, issuer: str, signer: Key) -> x509.Certificate:
        return (
            _begun(name(subject), name(issuer), key, 7300)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(signer, hashes.SHA256())
        )

    def leaf(self, common_name: str, key: HasPublicKey, **changed: Any) -> bytes:
        """A device certificate, but for what is `changed`: days, start, ca, purposes, signer."""
        builder = _begun(
            name(common_name), self.issuing.subject, key, changed.get("days", 3650), changed.get("start", 1)
        ).add_extension(x509.BasicConstraints(ca=changed.get("ca", False), path_length=None), critical=True)
        purposes = changed.get("purposes", [ExtendedKeyUsageOID.CLIENT_AUTH])
        if purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        return builder.sign(changed.get("signer", self.key), hashes.SHA256()).public_bytes(DER)

    def chain(self, common_name: str, key: HasPublicKey, **changed: Any) -> list[bytes]:
        return [self.leaf(common_name, key, **changed), self.issuing.public_bytes(DER)]


def _begun(
    subject: x509.Name, issuer: x509.Name, key: HasPublicKey, days: int, start: int = 1
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - dt.timedelta(days=start))
        .not_valid_after(NOW + dt.timedelta(days=days))
    )


def self_signed(common_name: str, key: Key, **changed: Any) -> bytes:
    """As a device makes it for itself."""
    subject = name(common_name)
    issuer = name(changed.get("issuer", common_name))
    builder = _begun(subject, issuer, key, changed.get("days", 800))
    signature = changed.get("signature", hashes.SHA256())
    return builder.sign(changed.get("signer", key), signature).public_bytes(DER)


def entry(chain: list[bytes], wrapped: bytes = b"") -> Entry:
    leaf = read_leaf(chain[0])
    return Entry(
        leaf.key,
        hashlib.sha256(leaf.der).digest(),
        leaf.issuer,
        leaf.serial,
        leaf.common_name,
        int(leaf.certificate.not_valid_after_utc.timestamp() * 1000),
        chain,
        wrapped,
    )


def preloaded_entry(key: Key, leaf: bytes = b"") -> Entry:
    return Entry(digest(key), hashlib.sha256(leaf).digest() if leaf else b"")


def lot(title: str, kind: str = CERTIFICATES) -> Lot:
    assert kind in (KEYS, CERTIFICATES, PRELOADED)
    return Lot(title, kind, "a test", hashlib.sha256(title.encode()).digest(), None)
