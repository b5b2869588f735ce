"""Whether an EK certificate's chain ends at a trust anchor: RFC 5280 path validation with the TCG EK profile's marks.

`cryptography`'s verifier decides. It refuses some certificates that real TPMs carry (critical
certificatePolicies, keys marked RSAES-OAEP); for exactly these there is one named fallback,
`_verify_by_hand`, which checks the same chain link by link.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509 import verification
from cryptography.x509.oid import ExtensionOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from hal.errors import EkUntrusted, quote

EK_USAGE: Final = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate (TCG EK Credential Profile, 3.2.16)."""
NO_EXPIRY: Final = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
MAX_DEPTH: Final = 6
UNREADABLE: Final = (
    ValueError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for fields that hold something else than they should."""
JUDGED: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)
"""Critical extensions that the fallback takes into account, or (policies) knows to be harmless."""


def verify_ek_certificate(leaf: bytes, chain: tuple[bytes, ...], trust: tuple[bytes, ...]) -> str:
    """The anchor's subject, when `leaf` (DER) leads to a self-signed certificate of `trust`; else EkUntrusted.

    `chain` are intermediates that the TPM itself offers: they help to build the path and are trusted for nothing.
    """
    try:
        return _verify(leaf, chain, trust)
    except UNREADABLE as error:  # fields are parsed when they are asked for
        raise EkUntrusted(f"the EK certificate or its chain can't be read: {quote(error)}") from error


def _verify(leaf: bytes, chain: tuple[bytes, ...], trust: tuple[bytes, ...]) -> str:
    certificate = x509.load_der_x509_certificate(leaf)
    offered = [x509.load_der_x509_certificate(der) for der in chain]
    known = [x509.load_der_x509_certificate(der) for der in trust]
    anchors = [item for item in known if item.subject == item.issuer]
    intermediates = [item for item in (*known, *offered) if item.subject != item.issuer]
    if not anchors:
        raise EkUntrusted(
            "the trust store holds no EK root",
            hint="An engineer puts the TPM vendor's root certificate into the trust store and runs `hallmark check`.",
        )
    if not _is_ek_certificate(certificate):
        raise EkUntrusted("the certificate in the TPM is not marked as an EK certificate")
    now = dt.datetime.now(dt.UTC)
    verifier = _verifier(anchors, now)
    try:
        path = verifier.verify(certificate, intermediates).chain
    except (VerificationError, UnsupportedAlgorithm, *UNREADABLE) as strict:
        path = _verify_by_hand(certificate, intermediates, anchors, now, strict)
    return path[-1].subject.rfc4514_string()


def _is_ek_certificate(certificate: x509.Certificate) -> bool:
    """The extended key usage says so, or, as on older chips, there is none and the SAN names a TPM."""
    try:
        return EK_USAGE in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        pass
    except ValueError as error:
        raise EkUntrusted(f"the EK certificate's extensions can't be read: {quote(error)}") from error
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return bool(names.get_values_for_type(x509.DirectoryName))


def _verifier(anchors: list[x509.Certificate], now: dt.datetime) -> verification.ClientVerifier:
    # TPM makers' extensions keep to RFC 5280, not to the web's profile of it, which is the verifier's default.
    authorities = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_ca)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
    )
    return (
        PolicyBuilder()
        .store(Store(anchors))
        .time(now)
        .max_chain_depth(MAX_DEPTH)
        .extension_policies(ca_policy=authorities, ee_policy=ExtensionPolicy.permit_all())
        .build_client_verifier()
    )


def _is_ca(_policy: Policy, _certificate: x509.Certificate, basic: x509.BasicConstraints) -> None:
    if not basic.ca:
        raise ValueError("an issuer is no CA")


def _signs_certificates(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("an issuer may not sign certificates")


def _verify_by_hand(
    leaf: x509.Certificate,
    intermediates: list[x509.Certificate],
    anchors: list[x509.Certificate],
    now: dt.datetime,
    strict: Exception,
) -> list[x509.Certificate]:
    """The fallback: each link's name, signature, dates, CA mark and critical extensions.

    `strict` is told when this fails too.
    """
    path = [leaf]
    while len(path) <= MAX_DEPTH:
        current = path[-1]
        if not current.not_valid_before_utc <= now <= min(current.not_valid_after_utc, NO_EXPIRY):
            raise EkUntrusted(
                f"{quote(current.subject.rfc4514_string())} is not valid today; check the station's clock"
            )
        unjudged = [item.oid for item in current.extensions if item.critical and item.oid not in JUDGED]
        if unjudged:
            raise EkUntrusted(
                f"{quote(current.subject.rfc4514_string())} has a critical extension that nobody here can judge: "
                f"{unjudged[0].dotted_string}"
            ) from strict
        issuer = _issuer(current, [*anchors, *intermediates], depth=len(path) - 1)
        if issuer is None:
            raise EkUntrusted(
                f"the EK certificate was issued by {quote(current.issuer.rfc4514_string())}, "
                "and no chain from there to the trust store holds"
            ) from strict
        path.append(issuer)
        if issuer in anchors:
            if not issuer.not_valid_before_utc <= now <= issuer.not_valid_after_utc:
                raise EkUntrusted(f"the root {quote(issuer.subject.rfc4514_string())} is not valid today")
            return path
    raise EkUntrusted(f"the EK certificate's chain is longer than {MAX_DEPTH} certificates")


def _issuer(
    certificate: x509.Certificate, candidates: list[x509.Certificate], depth: int
) -> x509.Certificate | None:
    for candidate in candidates:
        if candidate.subject != certificate.issuer or not _may_issue(candidate, depth):
            continue
        try:
            certificate.verify_directly_issued_by(candidate)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return candidate
    return None


def _may_issue(certificate: x509.Certificate, depth: int) -> bool:
    """CA:TRUE, keyCertSign where key usage is given, and a path length that `depth` CAs below it fit in."""
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    if not basic.ca or (basic.path_length is not None and depth > basic.path_length):
        return False
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True
    except ValueError:
        return False
