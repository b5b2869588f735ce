"""What a PKI or an element's vendor hands over, read with distrust: certificates, private keys, a signed manifest.

Files are bounded, parsed strictly, and paired by key, never by name. A private key is a Secret from here on. Whether a
certificate may be a device's is for `foreign`; what goes into the store for `stock_import`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from msgspec import Meta, Struct

from hal.errors import ConfigError, quote
from hal.secret import Secret
from station.signature import spki
from station.signed import SUFFIX, Signer, read_bounded, read_signed

T = TypeVar("T")
MANIFEST: Final = "pool.json"
FILE_LIMIT: Final = 32 << 20
MANIFEST_LIMIT: Final = 64 << 20
FILES_LIMIT: Final = 200_000
CHAIN_LIMIT: Final = 8
CERTIFICATES: Final = frozenset({".pem", ".crt", ".cer", ".der"})
KEYS: Final = frozenset({".key"})
BUNDLES: Final = frozenset({".p12", ".pfx"})
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.UnsupportedGeneralNameType,
    x509.DuplicateExtension,
)

Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
LotName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class PoolManifest(Struct, frozen=True, forbid_unknown_fields=True):
    """`certificates`: SHA-256 (hex) of each leaf's DER: all of them and no others."""

    lot: LotName
    certificates: list[Digest]


class Element(Struct, frozen=True, forbid_unknown_fields=True):
    """`key`: SHA-256 (hex) of the SubjectPublicKeyInfo; `certificate`: of the leaf's DER, where the vendor says it."""

    key: Digest
    certificate: Digest | None = None


class VendorManifest(Struct, frozen=True, forbid_unknown_fields=True):
    lot: LotName
    vendor: Annotated[str, Meta(min_length=1, max_length=128)]
    elements: Annotated[list[Element], Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class Made:
    """One device certificate (DER, leaf first, issuers as far as they came along), and its private key as PKCS#8."""

    chain: list[bytes]
    key: Secret | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """All of a lot. `sha256`: of the manifest, or over the leaves' digests; `signer`: None where it is not signed."""

    lot: str
    made: list[Made]
    sha256: bytes
    signer: str | None


def read_pool(
    path: Path, lot: str, password: Secret | None, signers: Sequence[Signer], *, unsigned: bool
) -> Delivery:
    """A folder, or one file of it. `unsigned`: a lot without a manifest is taken (a bench's); else it has to be signed.

    ConfigError names the file and what is wrong with it.
    """
    made = _paired(path, password)
    digests = sorted(hashlib.sha256(item.chain[0]).digest() for item in made)
    manifest = path / MANIFEST if path.is_dir() else path.with_name(path.name + ".manifest.json")
    if not manifest.exists():
        if not unsigned:
            raise ConfigError(
                f"there is no {manifest.name} that says what belongs to the lot; expected it, with its signature",
                hint="Whoever made the certificates signs their list: see docs/keys-and-certificates.md.",
                file=str(path),
            )
        return Delivery(lot, made, hashlib.sha256(b"".join(digests)).digest(), None)
    data, signer = _read_manifest(manifest, signers, unsigned=unsigned)
    said = _decoded(manifest, data, PoolManifest)
    if said.lot != lot:
        raise ConfigError(f"is of lot {quote(said.lot)}; expected {quote(lot)}", file=str(manifest))
    listed = sorted(bytes.fromhex(text) for text in said.certificates)
    if listed != digests:
        missing, extra = len(set(listed) - set(digests)), len(set(digests) - set(listed))
        raise ConfigError(
            f"and the files differ: {missing} certificates are missing, {extra} are not listed",
            file=str(manifest),
        )
    return Delivery(lot, made, hashlib.sha256(data).digest(), signer)


def read_vendor_manifest(
    path: Path, signers: Sequence[Signer], *, unsigned: bool
) -> tuple[VendorManifest, bytes, str | None]:
    """The manifest, its SHA-256, and who signed it. ConfigError, with the file's name."""
    data, signer = _read_manifest(path, signers, unsigned=unsigned)
    manifest = _decoded(path, data, VendorManifest)
    keys = [element.key for element in manifest.elements]
    if len(set(keys)) != len(keys):
        raise ConfigError("lists a key twice: no two elements may have one", file=str(path))
    return manifest, hashlib.sha256(data).digest(), signer


def _read_manifest(path: Path, signers: Sequence[Signer], *, unsigned: bool) -> tuple[bytes, str | None]:
    if unsigned and not path.with_name(path.name + SUFFIX).exists():
        return read_bounded(path, MANIFEST_LIMIT, ConfigError), None
    signed = read_signed(path, signers, limit=MANIFEST_LIMIT)
    return signed.data, signed.signer.name


def _decoded(path: Path, data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"can't be read: {error}", file=str(path)) from error


def _paired(path: Path, password: Secret | None) -> list[Made]:
    leaves: dict[bytes, tuple[Path, x509.Certificate]] = {}
    issuers: list[x509.Certificate] = []
    keys: dict[bytes, Secret] = {}
    for file in _files(path):
        certificates, private = _read(file, password)
        for certificate in certificates:
            if _is_ca(file, certificate):
                issuers.append(certificate)
                continue
            identity = _identity(file, certificate)
            if identity in leaves:
                raise ConfigError(f"has the same key as {leaves[identity][0].name}", file=str(file))
            leaves[identity] = (file, certificate)
        for key in private:
            keys[hashlib.sha256(spki(key.public_key())).digest()] = _pkcs8(key)
    if not leaves:
        raise ConfigError("holds no device certificate", file=str(path))
    if keys and set(keys) != set(leaves):
        lonely, strange = len(set(leaves) - set(keys)), len(set(keys) - set(leaves))
        raise ConfigError(
            f"{lonely} certificates have no private key here, {strange} private keys no certificate;"
            " expected all of a lot to come with their keys, or none",
            file=str(path),
        )
    return [
        Made([_der(leaf), *(_der(issuer) for issuer in _issuers(leaf, issuers))], keys.get(identity))
        for identity, (_, leaf) in leaves.items()
    ]


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    try:
        found = sorted(file for file in path.iterdir() if file.is_file())
    except OSError as error:
        raise ConfigError(f"can't be read ({error.strerror})", file=str(path)) from error
    if len(found) > FILES_LIMIT:
        raise ConfigError(f"holds more than {FILES_LIMIT} files", file=str(path))
    yield from (file for file in found if file.suffix.lower() in CERTIFICATES | KEYS | BUNDLES)


def _read(file: Path, password: Secret | None) -> tuple[list[x509.Certificate], list[PrivateKey]]:
    data = read_bounded(file, FILE_LIMIT, ConfigError)
    secret = password.reveal() if password else None
    try:
        if file.suffix.lower() in BUNDLES:
            bundle = pkcs12.load_pkcs12(data, secret)
            own = [bundle.cert.certificate] if bundle.cert else []
            key = [_device_key(file, bundle.key)] if bundle.key else []
            return [*own, *(item.certificate for item in bundle.additional_certs)], key
        if b"PRIVATE KEY-----" in data:
            encrypted = b"ENCRYPTED" in data
            key = [_device_key(file, serialization.load_pem_private_key(data, secret if encrypted else None))]
            return (x509.load_pem_x509_certificates(data) if b"-----BEGIN CERT" in data else []), key
        if file.suffix.lower() in KEYS:
            return [], [_device_key(file, serialization.load_der_private_key(data, None))]
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificates(data), []
        return [x509.load_der_x509_certificate(data)], []
    except UNREADABLE:
        # Not the cause: a parser's text might quote what it read.
        raise ConfigError(
            "can't be read; expected certificates (PEM, DER), a private key, or PKCS#12 with the right password",
            hint="A password comes from --password-file.",
            file=str(file),
        ) from None


def _device_key(file: Path, key: object) -> PrivateKey:
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError("holds a private key that is neither EC nor RSA", file=str(file))
    return key


def _pkcs8(key: PrivateKey) -> Secret:
    return Secret(
        key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def _is_ca(file: Path, certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    except UNREADABLE as error:
        raise ConfigError(
            f"holds a certificate that can't be read: {quote(error)}", file=str(file)
        ) from error


def _identity(file: Path, certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise ConfigError("holds a certificate whose key is neither EC nor RSA", file=str(file))
    return hashlib.sha256(spki(key)).digest()


def _issuers(leaf: x509.Certificate, known: list[x509.Certificate]) -> Iterator[x509.Certificate]:
    """From the leaf's issuer up, without a root: it is for the other side to have."""
    current = leaf
    for _ in range(CHAIN_LIMIT - 1):
        above = next((item for item in known if _issued(current, item)), None)
        if above is None or above.subject == above.issuer:
            return
        yield above
        current = above


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)
