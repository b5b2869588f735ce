"""What a recipe asks of an endorsement key before it is believed. Words and defaults only; the judge is elsewhere."""

from __future__ import annotations

import enum

from msgspec import Struct


class EkTrust(enum.StrEnum):
    """What has to vouch for the EK, as `ek_trust` of the recipe's `tpm-identity` says."""

    CERTIFICATE = "certificate"
    CERTIFICATE_OR_LIST = "certificate-or-list"
    LIST = "list"
    NONE = "none"
    IF_PRESENT = "if-present"
    """The old `ek_certificate = "if-present"`: a certificate that is there has to hold, none is accepted."""


class CrlPolicy(enum.StrEnum):
    """What a stale or missing revocation list means. A certificate that a list names is refused under each."""

    WARN = "warn"
    REFUSE = "refuse"
    OFF = "off"


class EkPolicy(Struct, frozen=True):
    trust: EkTrust = EkTrust.CERTIFICATE
    crl: CrlPolicy = CrlPolicy.WARN

    @property
    def may_end_untrusted(self) -> bool:
        """Whether a unit may get through with nothing that vouches for its EK."""
        return self.trust in (EkTrust.NONE, EkTrust.IF_PRESENT)

    @property
    def certificate(self) -> str:
        """What the choice among a TPM's EKs needs to know: `required`, `if-present` or `none`."""
        if self.trust is EkTrust.CERTIFICATE:
            return "required"
        return "none" if self.trust is EkTrust.NONE else "if-present"
