"""Certificate revocation lists (RFC 5280, 5) of TPM makers: read, matched to their issuers, asked for one chain.

A list is believed when a CA of the trust set signed it; where it comes from doesn't matter. Nothing is fetched.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from asn1crypto import x509 as asn1
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from hal.errors import EkRevoked, EkUntrusted, quote
from station.trust.chain import may_sign
from station.trust.policy import CrlPolicy
from station.trust.reading import HASHES, STRICT_ERRORS, Certificate

LARGEST: Final = 16 << 20
"""Octets of one list: the largest known of a TPM maker have a few MiB."""
MOST_REVOKED: Final = 1 << 20
GOOD, STALE, MISSING, OFF = "good", "stale", "missing", "off"
"""State of a chain's lists: fresh for each link; one is past its next update; one isn't there; not asked for."""

_HASH_NAMES: Final = frozenset(item.name for item in HASHES.values())
_JUDGED: Final = frozenset(
    {
        ExtensionOID.ISSUING_DISTRIBUTION_POINT,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.CRL_NUMBER,
    }
)


@dataclass(frozen=True, slots=True)
class RevocationList:
    """One complete list. `revoked`: serial numbers. `for_cas`, `for_devices`: whose certificates it speaks of.
    `signers`: SubjectPublicKeyInfos of the known CAs that have signed it.
    """

    der: bytes
    issuer: str
    issuer_id: str
    this_update: dt.datetime
    next_update: dt.datetime
    revoked: frozenset[int]
    for_cas: bool
    for_devices: bool
    parsed: x509.CertificateRevocationList
    signers: frozenset[bytes] = frozenset()

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.der).digest()

    def stale_at(self, now: dt.datetime) -> bool:
        return now > self.next_update

    def speaks_of(self, certificate: Certificate) -> bool:
        return self.for_cas if certificate.authority()[0] else self.for_devices

    def attributed(self, authorities: Sequence[Certificate]) -> RevocationList:
        """The same with its `signers` among `authorities`: looked for once, since a list may be large."""
        signers = frozenset(item.spki for item in authorities if self._signed_by(item))
        return dataclasses.replace(self, signers=signers)

    def _signed_by(self, issuer: Certificate) -> bool:
        """Whether that CA's name and key made it, and may make lists."""
        digest = self.parsed.signature_hash_algorithm
        if self.issuer_id != issuer.subject_id or not may_sign(issuer, "crl_sign"):
            return False
        if not isinstance(digest, hashes.HashAlgorithm) or digest.name not in _HASH_NAMES:
            return False
        try:
            return self.parsed.is_signature_valid(issuer.key)
        except STRICT_ERRORS:
            return False


@dataclass(frozen=True, slots=True)
class Standing:
    """What the lists say of a chain that none of them revokes. `detail`: which issuer's list is stale or missing."""

    state: str
    detail: str = ""


def read_crl(der: bytes) -> RevocationList:
    """ValueError when `der` is no complete list that can be judged."""
    if len(der) > LARGEST:
        raise ValueError(f"a revocation list of {len(der)} octets")
    try:
        return _read(der)
    except STRICT_ERRORS as error:
        raise ValueError(str(error)[:300]) from error


def _read(der: bytes) -> RevocationList:
    parsed = x509.load_der_x509_crl(der)
    if parsed.next_update_utc is None:
        raise ValueError("doesn't say when the next one comes (nextUpdate)")
    if len(parsed) > MOST_REVOKED:
        raise ValueError(f"names {len(parsed)} certificates")
    for_cas = for_devices = True
    for item in parsed.extensions:
        if isinstance(item.value, x509.DeltaCRLIndicator):
            raise ValueError("is a delta list; a complete one is needed")  # noqa: TRY004 - the list's fault
        if isinstance(item.value, x509.IssuingDistributionPoint):
            scope = item.value
            if scope.indirect_crl or scope.only_some_reasons or scope.only_contains_attribute_certs:
                raise ValueError("is an indirect or partial list; a complete one of its issuer is needed")
            for_cas, for_devices = not scope.only_contains_user_certs, not scope.only_contains_ca_certs
        if item.critical and item.oid not in _JUDGED:
            raise ValueError(f"has a critical extension that nobody here can judge: {item.oid.dotted_string}")
    name = asn1.Name.load(parsed.issuer.public_bytes())
    return RevocationList(
        der=parsed.public_bytes(Encoding.DER),
        issuer=parsed.issuer.rfc4514_string()[:300],
        issuer_id=name.hashable,
        this_update=parsed.last_update_utc,
        next_update=parsed.next_update_utc,
        revoked=frozenset(item.serial_number for item in parsed),
        for_cas=for_cas,
        for_devices=for_devices,
        parsed=parsed,
    )


def standing(
    path: Sequence[Certificate], lists: Sequence[RevocationList], policy: CrlPolicy, now: dt.datetime
) -> Standing:
    """Asks the lists for each link of `path` (leaf first, anchor last). EkRevoked when one is revoked, under every
    policy; EkUntrusted when a list is stale or missing and `policy` refuses that.
    """
    found = Standing(GOOD)
    for certificate, issuer in itertools.pairwise(path):
        ours = [
            item
            for item in lists
            if item.issuer_id == issuer.subject_id
            and issuer.spki in item.signers
            and item.speaks_of(certificate)
        ]
        if any(certificate.serial in item.revoked for item in ours):
            raise EkRevoked(
                f"a certificate of the EK's chain is revoked: number {certificate.serial:x} of {quote(issuer.subject)}"
            )
        if not ours:
            found = Standing(MISSING, f"there is no revocation list of {quote(issuer.subject)}")
        elif found.state == GOOD and all(item.stale_at(now) for item in ours):
            last = max(item.next_update for item in ours)
            found = Standing(
                STALE, f"the revocation list of {quote(issuer.subject)} was due for renewal on {last.date()}"
            )
    if policy is CrlPolicy.OFF:
        return Standing(OFF)
    if policy is CrlPolicy.REFUSE and found.state != GOOD:
        raise EkUntrusted(
            found.detail,
            hint="An engineer imports a trust bundle with the maker's present list; then plug the board in again.",
        )
    return found
