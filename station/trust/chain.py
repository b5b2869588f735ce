"""Whether an EK certificate's chain ends at a trust anchor: RFC 5280 path validation with the TCG EK profile's marks.

`cryptography`'s verifier decides. It refuses some certificates that real TPMs carry (critical certificatePolicies,
keys marked RSAES-OAEP, BER booleans); for exactly these there is one named fallback, `_verify_by_hand`, which checks
the same chain link by link and goes back where a cross-signed CA led nowhere.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID
from cryptography.x509.verification import VerificationError

from hal.errors import EkUntrusted, quote
from station.path_verifier import path_verifier
from station.trust.reading import STRICT_ERRORS, Certificate, read_certificate

EK_USAGE: Final = "2.23.133.8.1"
"""tcg-kp-EKCertificate (TCG EK Credential Profile, 3.2.16)."""
TPM_MANUFACTURER: Final = "2.23.133.2.1"
"""tcg-at-tpmManufacturer, in the subject alternative name of an EK certificate (same, 3.2.9)."""
MAX_DEPTH: Final = 6
MOST_OFFERED: Final = 16
"""Certificates of a TPM's own chain that are looked at."""
MOST_LINKS: Final = 256
"""Signatures that the fallback checks for one certificate: a hostile chain can't keep the station busy."""
JUDGED: Final = frozenset(
    oid.dotted_string
    for oid in (
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
    )
)
"""Critical extensions that the fallback takes into account, or (policies) knows to be harmless."""


@dataclass(frozen=True, slots=True)
class Path:
    """A chain that holds, EK certificate first, anchor last. `by_hand`: the fallback found it."""

    certificates: tuple[Certificate, ...]
    by_hand: bool

    @property
    def anchor(self) -> Certificate:
        return self.certificates[-1]


def verify_chain(
    leaf: Certificate,
    offered: Sequence[bytes],
    roots: Sequence[Certificate],
    intermediates: Sequence[Certificate],
    now: dt.datetime,
) -> Path:
    """The path from `leaf` to one of `roots`; EkUntrusted when there is none.

    `offered` are intermediates that the TPM itself has (DER): they help to build the path and are trusted for nothing;
    what of them can't be read is left out.
    """
    if not roots:
        raise EkUntrusted(
            "the trust store holds no EK root",
            hint="An engineer imports a trust bundle with the TPM vendor's root and runs `hallmark trust check`.",
        )
    if not is_ek_certificate(leaf):
        raise EkUntrusted("the certificate in the TPM is not marked as an EK certificate")
    helpers = [*intermediates, *_readable(offered[:MOST_OFFERED])]
    helpers = [item for item in helpers if not item.self_signed]
    try:
        return _verify_strictly(leaf, helpers, roots, now)
    except (VerificationError, *STRICT_ERRORS) as strict:
        return _verify_by_hand(leaf, helpers, roots, now, strict)


def is_ek_certificate(certificate: Certificate) -> bool:
    """No CA, and the extended key usage says so, or, as on older chips, there is none and the SAN names a TPM."""
    if certificate.authority()[0]:
        return False
    purposes = certificate.purposes()
    if purposes is not None:
        return EK_USAGE in purposes
    return TPM_MANUFACTURER in certificate.alternative_attributes()


def may_sign(certificate: Certificate, usage: str = "key_cert_sign") -> bool:
    """CA:TRUE, and `usage` where key usage is given."""
    usages = certificate.usage()
    return certificate.authority()[0] and (usages is None or usage in usages)


def _readable(offered: Sequence[bytes]) -> list[Certificate]:
    found: list[Certificate] = []
    for der in offered:
        try:
            found.append(read_certificate(der))
        except ValueError:
            continue  # what a TPM offers beside its certificate is help, never a reason
    return found


# --- cryptography's verifier ------------------------------------------------------------------------------------


def _verify_strictly(
    leaf: Certificate, helpers: Sequence[Certificate], roots: Sequence[Certificate], now: dt.datetime
) -> Path:
    known = {item.der: item for item in (leaf, *helpers, *roots)}
    anchors = [item.strict for item in roots if item.strict is not None]
    between = [item.strict for item in helpers if item.strict is not None]
    if leaf.strict is None or not anchors:
        raise ValueError("in an encoding that cryptography does not read")
    found = path_verifier(anchors, now, MAX_DEPTH).verify(leaf.strict, between).chain
    return Path(tuple(known[item.public_bytes(Encoding.DER)] for item in found), by_hand=False)


# --- the fallback -----------------------------------------------------------------------------------------------


def _verify_by_hand(
    leaf: Certificate,
    helpers: Sequence[Certificate],
    roots: Sequence[Certificate],
    now: dt.datetime,
    strict: Exception,
) -> Path:
    """Depth first over all issuers that fit: name, signature, dates, CA mark, path length, critical extensions.

    `strict` is told when this fails too.
    """
    search = _Search(helpers, roots, now)
    path = search.upwards((leaf,))
    if path is None:
        raise EkUntrusted(search.reason or _no_chain((leaf,))) from strict
    return Path(path, by_hand=True)


def _no_chain(path: Sequence[Certificate]) -> str:
    what = "the EK certificate" if len(path) == 1 else quote(path[-1].subject)
    return f"{what} was issued by {quote(path[-1].issuer)}, and no chain from there to the trust store holds"


class _Search:
    """Remembers the first thing that stood in the way, for the technician."""

    def __init__(
        self, helpers: Sequence[Certificate], roots: Sequence[Certificate], now: dt.datetime
    ) -> None:
        self._candidates = [*roots, *helpers]
        self._anchors = {item.der for item in roots}
        self._now, self._left = now, MOST_LINKS
        self.reason: str | None = None

    def upwards(self, path: tuple[Certificate, ...]) -> tuple[Certificate, ...] | None:
        """The way from `path`'s last certificate to an anchor; None when there is none."""
        current = path[-1]
        if (problem := self._problem(current)) is not None:
            self.reason = self.reason or problem
            return None
        if current.der in self._anchors:
            return path
        if len(path) > MAX_DEPTH:
            self.reason = self.reason or f"the EK certificate's chain is longer than {MAX_DEPTH} certificates"
            return None
        for issuer in self._issuers(path):
            found = self.upwards((*path, issuer))
            if found is not None:
                return found
        self.reason = self.reason or _no_chain(path)
        return None

    def _problem(self, certificate: Certificate) -> str | None:
        if not certificate.valid_at(self._now):
            return f"{quote(certificate.subject)} is not valid today; check the station's clock"
        for oid, (critical, _value) in certificate.extensions.items():
            if critical and oid not in JUDGED:
                return (
                    f"{quote(certificate.subject)} has a critical extension that nobody here can judge: {oid}"
                )
        return None

    def _issuers(self, path: tuple[Certificate, ...]) -> list[Certificate]:
        current, below = path[-1], len(path) - 1
        found: list[Certificate] = []
        for item in self._candidates:
            if item.subject_id != current.issuer_id or any(item.spki == used.spki for used in path):
                continue
            length = item.authority()[1]
            if not may_sign(item) or (length is not None and below > length):
                continue
            if self._left == 0:
                break
            self._left -= 1
            if current.issued_by(item):
                found.append(item)
        return found
