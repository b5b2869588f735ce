"""The issuing CA as certificates: its chain, what makes a chain acceptable, and where it is kept.

Two files in the signer's state: `ca-chain.pem` (issuing CA first, up to but without the root) and `ca-root.pem`.
Keys and signing are elsewhere; a chain is checked against the public key that the token names.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hal.errors import ConfigError, quote
from station.signer import durable

CHAIN_FILE: Final = "ca-chain.pem"
ROOT_FILE: Final = "ca-root.pem"
SIZE_LIMIT: Final = 256 * 1024
DEPTH_LIMIT: Final = 8
"""Certificates of a chain."""
BENCH_UNIT: Final = "bench only: not to be trusted"
"""organizationalUnitName of the CAs that `hallmark ca init --bench` makes: production refuses a chain that bears it."""
HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


@dataclass(frozen=True, slots=True)
class Authority:
    """`chain`: issuing CA first, without the root."""

    chain: tuple[x509.Certificate, ...]

    @property
    def issuer(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def spki(self) -> bytes:
        return spki_of(self.issuer)

    @property
    def sha256(self) -> bytes:
        """Of the issuing CA's certificate."""
        return hashlib.sha256(der(self.issuer)).digest()

    @property
    def ders(self) -> list[bytes]:
        return [der(certificate) for certificate in self.chain]

    @property
    def pem(self) -> bytes:
        return pem(self.chain)

    @property
    def bench(self) -> bool:
        """Whether it, or what issued it, was made by `hallmark ca init --bench`."""
        names = [name for certificate in self.chain for name in (certificate.subject, certificate.issuer)]
        return any(
            unit.value == BENCH_UNIT
            for name in names
            for unit in name.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        )


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def spki_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def load(folder: Path) -> Authority | None:
    """The installed chain, or None. It was checked when it was installed; ConfigError when it can't be read now."""
    raw = durable.read(folder / CHAIN_FILE, SIZE_LIMIT)
    return None if raw is None else Authority(tuple(read_pem(raw, str(folder / CHAIN_FILE))))


def store(folder: Path, authority: Authority, root: x509.Certificate) -> None:
    """Installs it. The chain last: it is what the signer goes by."""
    durable.write(folder / ROOT_FILE, pem([root]), mode=0o644)
    durable.write(folder / CHAIN_FILE, authority.pem, mode=0o644)


def read_pem(raw: bytes, file: str) -> list[x509.Certificate]:
    """PEM certificates, or one in DER. ConfigError when there is none, or more than DEPTH_LIMIT."""
    try:
        found = (
            x509.load_pem_x509_certificates(raw)
            if b"-----BEGIN" in raw
            else [x509.load_der_x509_certificate(raw)]
        )
    except ValueError as error:
        message = f"expected certificates in PEM, or one in DER: {quote(str(error))}"
        raise ConfigError(message, file=file) from error
    if len(found) > DEPTH_LIMIT:
        message = f"{len(found)} certificates; expected a chain of at most {DEPTH_LIMIT}"
        raise ConfigError(message, file=file)
    return found


def chain_from(
    certificates: Sequence[x509.Certificate], root: x509.Certificate | None, spki: bytes, now: dt.datetime
) -> tuple[Authority, x509.Certificate]:
    """The chain from the certificate of the key `spki` to its root, checked as RFC 5280 section 6.1 asks of CAs.

    `certificates` in any order; the root is `root`, or the self-issued one among them. ConfigError says what is wrong.
    """
    own = [certificate for certificate in certificates if spki_of(certificate) == spki]
    if len(own) != 1:
        message = f"{len(own) or 'none'} of the certificates is for the key in the token; expected one"
        raise ConfigError(
            message, hint="The certificate has to be made from the request of `hallmark ca csr`."
        )
    selves = [certificate for certificate in certificates if certificate.subject == certificate.issuer]
    if root is None and len(selves) == 1:
        root = selves[0]
    if root is None:
        message = (
            "expected the root, in the chain's file or with --root: without it the chain can't be checked"
        )
        raise ConfigError(message)
    chain = [own[0]]
    while chain[-1].issuer != root.subject:
        above = [one for one in certificates if one.subject == chain[-1].issuer and one not in chain]
        if len(above) != 1:
            message = (
                f"{len(above) or 'no'} certificate for the issuer {quote(chain[-1].issuer.rfc4514_string())}"
            )
            raise ConfigError(
                message, hint="Put the intermediates between the issuing CA and its root into the file."
            )
        chain.append(above[0])
    if chain[0] == root:
        message = (
            "the issuing CA is its own root; expected an intermediate under a root that is kept elsewhere"
        )
        raise ConfigError(message)
    for depth, (certificate, issuer) in enumerate(zip([*chain, root], [*chain[1:], root, root], strict=True)):
        _check_ca(certificate, issuer, depth, now)
    return Authority(tuple(chain)), root


def _check_ca(certificate: x509.Certificate, issuer: x509.Certificate, below: int, now: dt.datetime) -> None:
    """One CA certificate, with `below` CAs under it."""
    name = quote(certificate.subject.rfc4514_string())
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as error:
        message = f"{name} is not signed by {quote(issuer.subject.rfc4514_string())}"
        raise ConfigError(message) from error
    if not isinstance(certificate.signature_hash_algorithm, HASHES):
        message = f"{name} is signed with a weak digest; expected SHA-256 or better"
        raise ConfigError(message)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        message = (
            f"{name} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to"
            f" {certificate.not_valid_after_utc:%Y-%m-%d}, not now ({now:%Y-%m-%d})"
        )
        raise ConfigError(message, hint="Check the clock first.")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (x509.ExtensionNotFound, ValueError) as error:
        message = f"{name} lacks what RFC 5280 asks of a CA (4.2.1.2, 4.2.1.3, 4.2.1.9): {quote(str(error))}"
        raise ConfigError(message) from error
    if not constraints.ca or not usage.key_cert_sign:
        message = f"{name} is no CA certificate: expected CA:TRUE and keyCertSign"
        raise ConfigError(message)
    if constraints.path_length is not None and constraints.path_length < below:
        message = (
            f"{name} allows {constraints.path_length} CAs below it (pathLenConstraint); there are {below}"
        )
        raise ConfigError(message)
    _check_purposes(certificate, name)


def _check_purposes(certificate: x509.Certificate, name: str) -> None:
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(purposes):
        message = f"{name} is limited to other purposes than clientAuth (extendedKeyUsage)"
        raise ConfigError(message)
