"""Which path of CA certificates may carry device certificates: RFC 5280, section 6.1, and which leaves it carries.

A path is issuing CA first, root last. What a leaf says of names is checked before anything is signed: nobody would
take a certificate that breaks a rule of a CA above it. Building a path is `authority`'s matter.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from hal.errors import ConfigError, quote
from station.signer.names import names_refused

HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
LEAST_RSA_BITS: Final = 2048
UNDERSTOOD: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.POLICY_MAPPINGS,
        ExtensionOID.POLICY_CONSTRAINTS,
        ExtensionOID.INHIBIT_ANY_POLICY,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.ISSUER_ALTERNATIVE_NAME,
    }
)
"""What may be critical in a CA certificate (RFC 5280, 4.2): policies only narrow what a leaf with policies is good for,
and POLICY_CONSTRAINTS is looked into."""


def check_path(above: Sequence[x509.Certificate], now: dt.datetime) -> None:
    """ConfigError says which certificate can't be above device certificates, and why."""
    below = 0
    for certificate, issuer in zip(above, [*above[1:], above[-1]], strict=True):
        _check_ca(certificate, issuer, below, now)
        below += certificate.subject != certificate.issuer  # self-issued ones don't count (6.1.4, l)
    for depth, certificate in enumerate(above[:-1]):
        if certificate.subject == certificate.issuer and depth:
            continue  # 6.1.3, b: only the path's own names
        refused = names_refused(above[depth + 1 :], certificate.subject, _alternative(certificate))
        if refused:
            message = f"{quote(certificate.subject.rfc4514_string())} may not be there: {refused}"
            raise ConfigError(message)


def _alternative(certificate: x509.Certificate) -> Sequence[x509.GeneralName]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return list(found)


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
    _check_key(certificate, name)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        message = (
            f"{name} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to"
            f" {certificate.not_valid_after_utc:%Y-%m-%d}, not at {now:%Y-%m-%d}"
        )
        raise ConfigError(message, hint="Check the clock first.")
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
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
    _check_critical(extensions, name)
    _check_purposes(extensions, name)


def _check_key(certificate: x509.Certificate, name: str) -> None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < LEAST_RSA_BITS:
        message = f"{name} has an RSA key of {key.key_size} bits; expected {LEAST_RSA_BITS} or more"
        raise ConfigError(message)
    if isinstance(key, ec.EllipticCurvePublicKey) and key.key_size < ec.SECP256R1.key_size:
        message = f"{name} has a key on {key.curve.name}; expected P-256 or a larger curve"
        raise ConfigError(message)


def _check_critical(extensions: x509.Extensions, name: str) -> None:
    for extension in extensions:
        if extension.critical and extension.oid not in UNDERSTOOD:
            message = (
                f"{name} has a critical extension that is not understood here: {extension.oid.dotted_string}"
            )
            hint = (
                "RFC 5280, 4.2, wants such a certificate refused. Ask the CA for one without that extension."
            )
            raise ConfigError(message, hint=hint)
        value = extension.value
        if isinstance(value, x509.PolicyConstraints) and value.require_explicit_policy is not None:
            message = f"{name} asks for certificate policies (requireExplicitPolicy); device certificates carry none"
            raise ConfigError(message, hint="Ask the CA for a certificate without policyConstraints.")


def _check_purposes(extensions: x509.Extensions, name: str) -> None:
    try:
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(purposes):
        message = f"{name} is limited to other purposes than clientAuth (extendedKeyUsage)"
        raise ConfigError(message)
