"""Making the issuing CA: its keys in the token, the request for its certificate, and the bench's own root.

Done by a person, for each generation of the CA. The bench root is a file, so that a bench needs no
second token: production never takes what it has signed (`Authority.bench`).
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from hal.call import Call
from hal.errors import ConfigError, KeyMissing
from hal.interfaces import CaToken, SecretWrap
from hal.secret import Secret
from hal.types import KeyType
from station.signer import durable
from station.signer.authority import BENCH_UNIT, Authority, pem, spki_of
from station.signer.token_key import signature_hash, token_key

CALL_SECONDS: Final = 600.0
"""For one token call here: old chips make an RSA key in minutes."""
BENCH_FOLDER: Final = "bench-root"
ROOT_KEY, ROOT_CERTIFICATE = "root.key", "root.pem"
KEY_LIMIT: Final = 16 * 1024
ROOT_DAYS: Final = 20 * 365
ISSUING_DAYS: Final = 15 * 365
"""Longer than any profile, so that leaves have their full validity."""
BACKDATE: Final = dt.timedelta(hours=1)
RSA_EXPONENT: Final = 65537

RootKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
CA_USAGE: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def make_keys(
    token: CaToken,
    wrap: SecretWrap,
    ca_key: str,
    canary_key: str,
    wrap_key: str,
    audit_key: str,
    key_type: KeyType,
) -> bytes:
    """Makes those keys that aren't there yet; the CA key's SubjectPublicKeyInfo. A key that is there stays."""
    spki = key_pair(Call.lasting(CALL_SECONDS), token, ca_key, key_type)
    # Keys of their own: nothing but certificates is ever signed with the CA's.
    key_pair(Call.lasting(CALL_SECONDS), token, canary_key, KeyType.P256)
    key_pair(Call.lasting(CALL_SECONDS), token, audit_key, KeyType.P256)
    context = b"hallmark ca init"
    sealed = wrap.wrap(Call.lasting(CALL_SECONDS), wrap_key, context, Secret(context))
    if wrap.unwrap(Call.lasting(CALL_SECONDS), wrap_key, context, sealed) != Secret(context):
        message = f"the token does not give back what its key {wrap_key!r} has wrapped"
        raise KeyMissing(message)
    token.canary(Call.lasting(CALL_SECONDS))
    return spki


def key_pair(call: Call, token: CaToken, label: str, key_type: KeyType) -> bytes:
    """The SubjectPublicKeyInfo of the key `label`, which is made when it isn't there."""
    try:
        return token.public_key(call, label)
    except KeyMissing:
        return token.make_key(call, label, key_type)


def named(common_name: str, organization: str | None) -> x509.Name:
    """A CA's subject; ConfigError when X.509 can't hold it."""
    return _name(common_name, organization, None)


def request(call: Call, token: CaToken, label: str, subject: x509.Name) -> bytes:
    """PKCS#10 (PEM) for the token's CA key, asking for a CA certificate with pathlen 0; signed in the token."""
    spki = token.public_key(call, label)
    key = token_key(spki, lambda data: token.sign(call, label, data))
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(CA_USAGE, critical=True)
        .sign(key, signature_hash(key))
    )
    if not csr.is_signature_valid:
        message = "the token's signature over the request does not verify"
        raise KeyMissing(message)
    return csr.public_bytes(serialization.Encoding.PEM)


def bench_authority(folder: Path, spki: bytes, key_type: KeyType, now: dt.datetime) -> Authority:
    """A certificate for the key `spki` by the bench root in `folder`, which is made when it isn't there."""
    key, root = _bench_root(folder, key_type, now)
    issuing = (
        _ca_builder(spki, _bench_name("issuing CA"), root.subject, now, ISSUING_DAYS, path_length=0)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return Authority((issuing,), root)


def _bench_root(folder: Path, key_type: KeyType, now: dt.datetime) -> tuple[RootKey, x509.Certificate]:
    durable.make_folder(folder)
    stored = durable.read(folder / ROOT_KEY, KEY_LIMIT)
    certificate = durable.read(folder / ROOT_CERTIFICATE, KEY_LIMIT)
    if stored is not None and certificate is not None:
        key = serialization.load_pem_private_key(stored, password=None)
        root = x509.load_pem_x509_certificate(certificate)
        if isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)) and _fits(key, root):
            return key, root
        message = "the bench root's key and certificate do not fit"
        raise ConfigError(message, file=str(folder), hint="Remove the folder and make a new bench CA.")
    made = _new_key(key_type)
    spki = made.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    name = _bench_name("root CA")
    root = _ca_builder(spki, name, name, now, ROOT_DAYS, path_length=1).sign(made, hashes.SHA256())
    # Unencrypted on purpose: a bench key that protects nothing. A passphrase beside it would only look like more.
    unencrypted = serialization.NoEncryption()
    durable.write(
        folder / ROOT_KEY,
        made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unencrypted),
    )
    durable.write(folder / ROOT_CERTIFICATE, pem([root]), mode=0o644)
    return made, root


def _new_key(key_type: KeyType) -> RootKey:
    if key_type is KeyType.P256:
        return ec.generate_private_key(ec.SECP256R1())
    if key_type is KeyType.P384:
        return ec.generate_private_key(ec.SECP384R1())
    return rsa.generate_private_key(RSA_EXPONENT, 3072 if key_type is KeyType.RSA3072 else 2048)


def _fits(key: RootKey, root: x509.Certificate) -> bool:
    return spki_of(root) == key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _ca_builder(
    spki: bytes, subject: x509.Name, issuer: x509.Name, now: dt.datetime, days: int, path_length: int
) -> x509.CertificateBuilder:
    public = token_key(spki, lambda data: data).public_key()
    start = (now - BACKDATE).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _bench_name(common_name: str) -> x509.Name:
    return _name(f"Hallmark bench {common_name}", "Hallmark bench", BENCH_UNIT)


def _name(common_name: str, organization: str | None, unit: str | None) -> x509.Name:
    wanted = (
        (NameOID.ORGANIZATION_NAME, organization),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
        (NameOID.COMMON_NAME, common_name),
    )
    try:
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in wanted if value])
    except ValueError as error:
        message = f"the subject can't be used: {error}"
        raise ConfigError(message) from error
