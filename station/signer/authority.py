"""The issuing CA as certificates: reading them in any form, and the one path from the token's key up to its root.

What makes a path acceptable is `path`'s matter, where it is kept `generations`'. `ca-chain.pem` and `ca-root.pem` in
the signer's state are copies of what issues now, for people and their tools.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from hal.errors import ConfigError, quote
from station.signer import durable
from station.signer.path import check_path

CHAIN_FILE: Final = "ca-chain.pem"
ROOT_FILE: Final = "ca-root.pem"
SIZE_LIMIT: Final = 256 * 1024
DEPTH_LIMIT: Final = 8
"""Certificates of a file, and of a chain."""
BENCH_UNIT: Final = "bench only: not to be trusted"
"""organizationalUnitName of the CAs that `hallmark ca init --bench` makes: production refuses a chain that bears it."""
_PKCS7: Final = re.compile(rb"-----BEGIN (?:PKCS7|CMS)-----(.+?)-----END (?:PKCS7|CMS)-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Authority:
    """`chain`: issuing CA first, without the root; `root` where it is known."""

    chain: tuple[x509.Certificate, ...]
    root: x509.Certificate | None = None

    @property
    def issuer(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def above(self) -> tuple[x509.Certificate, ...]:
        """Every CA above a leaf, issuing CA first, the root last."""
        return self.chain if self.root is None else (*self.chain, self.root)

    @property
    def not_before(self) -> dt.datetime:
        """When the last of the CAs above a leaf began."""
        return max(one.not_valid_before_utc for one in self.above)

    @property
    def not_after(self) -> dt.datetime:
        """When the first of the CAs above a leaf ends: no leaf is of use after that."""
        return min(one.not_valid_after_utc for one in self.above)

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
    """What issues, from its copies, or None. ConfigError when they can't be read."""
    raw = durable.read(folder / CHAIN_FILE, SIZE_LIMIT)
    if raw is None:
        return None
    root = durable.read(folder / ROOT_FILE, SIZE_LIMIT)
    found = read_certificates(root, str(folder / ROOT_FILE))[0] if root is not None else None
    return Authority(tuple(read_certificates(raw, str(folder / CHAIN_FILE))), found)


def store(folder: Path, authority: Authority) -> None:
    """Writes the copies, the chain last."""
    if authority.root is not None:
        durable.write(folder / ROOT_FILE, pem([authority.root]), mode=0o644)
    durable.write(folder / CHAIN_FILE, authority.pem, mode=0o644)


def read_certificates(raw: bytes, file: str) -> list[x509.Certificate]:
    """Certificates in PEM, one in DER, or those of a PKCS#7 bundle (RFC 2315, certificates only) in PEM or DER.

    In the file's order, each once. ConfigError when there is none, or more than DEPTH_LIMIT.
    """
    try:
        found = list(_decoded(raw))
    except ValueError as error:
        message = f"expected certificates in PEM, DER or a PKCS#7 bundle: {quote(str(error))}"
        raise ConfigError(message, file=file) from error
    if not 1 <= len(found) <= DEPTH_LIMIT:
        message = f"{len(found)} certificates; expected a chain of at most {DEPTH_LIMIT}"
        raise ConfigError(message, file=file)
    return list(dict.fromkeys(found))


def _decoded(raw: bytes) -> Iterator[x509.Certificate]:
    with warnings.catch_warnings():
        # A bundle in BER, as some CAs send it, is said to be deprecated. It is read once, and kept in DER.
        warnings.simplefilter("ignore")
        if b"-----BEGIN" not in raw:
            yield from _from_der(raw)
            return
        bundles = _PKCS7.findall(raw)
        for body in bundles:
            text = b"-----BEGIN PKCS7-----" + body + b"-----END PKCS7-----\n"
            yield from pkcs7.load_pem_pkcs7_certificates(text)
        if not bundles or b"-----BEGIN CERTIFICATE-----" in raw:
            yield from x509.load_pem_x509_certificates(raw)


def _from_der(raw: bytes) -> Sequence[x509.Certificate]:
    try:
        return [x509.load_der_x509_certificate(raw)]
    except ValueError as error:
        try:
            return pkcs7.load_der_pkcs7_certificates(raw)
        except ValueError:
            raise error from None  # what is no bundle either is told as the certificate that it was taken for


def chain_from(
    certificates: Sequence[x509.Certificate], root: x509.Certificate | None, spki: bytes, now: dt.datetime
) -> Authority:
    """The path from the certificate of the key `spki` to its root, checked as RFC 5280, section 6.1 asks of CAs.

    `certificates` in any order, also with cross-certificates and others that don't belong to it; the root is `root`,
    or a self-issued one among them. Of several paths to one root the shortest. ConfigError says what is wrong.
    """
    own = [certificate for certificate in certificates if spki_of(certificate) == spki]
    if not own:
        message = "none of the certificates is for the key in the token; expected one"
        raise ConfigError(
            message, hint="The certificate has to be made from the request of `hallmark ca csr`."
        )
    roots = [root] if root is not None else [one for one in certificates if one.subject == one.issuer]
    if not roots:
        message = (
            "expected the root, in the chain's file or with --root: without it the chain can't be checked"
        )
        raise ConfigError(message)
    if any(one in roots for one in own):
        message = (
            "the issuing CA is its own root; expected an intermediate under a root that is kept elsewhere"
        )
        raise ConfigError(message)
    problems: list[ConfigError] = []
    found: list[Authority] = []
    for candidate in (path for one in own for path in _paths((one,), certificates, roots, problems)):
        try:
            check_path(candidate.above, now)
            found.append(candidate)
        except ConfigError as error:
            problems.insert(0, error)  # a whole path with a fault says more than one that ends nowhere
    if not found:
        raise problems[0]
    if len({candidate.root for candidate in found}) > 1:
        message = "the certificates lead to several roots; expected --root to say which is trusted"
        raise ConfigError(message)
    return min(found, key=lambda candidate: len(candidate.chain))


def _paths(
    chain: tuple[x509.Certificate, ...],
    certificates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    problems: list[ConfigError],
) -> Iterator[Authority]:
    """Every way from `chain` up to a root, by names; dead ends go to `problems`."""
    issuer = chain[-1].issuer
    names = {(one.subject, spki_of(one)) for one in chain}
    ends = [root for root in roots if root.subject == issuer]
    yield from (Authority(chain, root) for root in ends)
    above = [
        one
        for one in certificates
        if one.subject == issuer and one not in roots and (one.subject, spki_of(one)) not in names
    ]
    if not above and not ends:
        message = f"no certificate for the issuer {quote(issuer.rfc4514_string())}"
        hint = "Put the intermediates between the issuing CA and its root into the file."
        problems.append(ConfigError(message, hint=hint))
    for one in above:
        yield from _paths((*chain, one), certificates, roots, problems)
