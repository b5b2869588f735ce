"""`cryptography`'s path verifier for private PKIs: paths by RFC 5280, without the web's profile of it.

What a leaf is for, and what its certificate has to say, is for those who ask: here only issuers are judged.
"""

from __future__ import annotations

import datetime as dt

from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store


def path_verifier(
    anchors: list[x509.Certificate], now: dt.datetime, depth: int
) -> verification.ClientVerifier:
    """Each issuer is a CA that may sign certificates; `depth`: CAs between a leaf and its anchor, at most."""
    authorities = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_ca)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
    )
    return (
        PolicyBuilder()
        .store(Store(anchors))
        .time(now)
        .max_chain_depth(depth)
        .extension_policies(ca_policy=authorities, ee_policy=ExtensionPolicy.permit_all())
        .build_client_verifier()
    )


def _is_ca(_policy: Policy, _certificate: x509.Certificate, basic: x509.BasicConstraints) -> None:
    if not basic.ca:
        raise ValueError("an issuer is no CA")


def _signs_certificates(_policy: Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("an issuer may not sign certificates")
