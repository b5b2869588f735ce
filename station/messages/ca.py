"""What people ask of the issuing CA: of the signer while it runs, or answered by the command itself."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from hal.types import KeyType
from station.messages.basics import Blob, Name, Text

CRL_LIMIT: Final = 3 * 1024 * 1024
"""Octets of a revocation list: some 80,000 entries."""
Reason = Literal[
    "unspecified",
    "key-compromise",
    "affiliation-changed",
    "superseded",
    "cessation-of-operation",
    "privilege-withdrawn",
]
"""Why a certificate is revoked (RFC 5280, 5.3.1)."""


class MakeCaRequest(Struct, frozen=True, tag="make-ca-request"):
    """A PKCS#10 request for a key of the token. Reply `CaRequest`. For root and the signer's own user.

    `label`: the key's, made when it isn't there; None: the one that waits for its certificate, or else the one that
    issues. `new_key`: the next label, and a new key.
    """

    label: Name | None
    new_key: bool
    key_type: KeyType
    common_name: Name | None
    organization: Name | None


class CaRequest(Struct, frozen=True, tag="ca-request"):
    """`csr` is PEM."""

    label: Name
    csr: Blob


class InstallCa(Struct, frozen=True, tag="install-ca"):
    """The certificate for one of the token's CA keys, and those above it (DER). Reply `CaGeneration`. As above.

    Asking again for the same certificate changes nothing.
    """

    certificates: list[Blob]
    root: Blob | None


class ActivateCa(Struct, frozen=True, tag="activate-ca"):
    """From `at` on (Unix seconds; None: now) this generation issues. Reply `CaGeneration`. As above."""

    generation: int
    at: Annotated[int, Meta(ge=0, le=253402300799)] | None


class AcceptClock(Struct, frozen=True, tag="accept-clock"):
    """The station's clock is right: it showed `shown` (Unix seconds), and somebody compared it with another one.

    Reply `ClockAccepted`. As above.
    """

    shown: Annotated[int, Meta(ge=0, le=253402300799)]
    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class ClockAccepted(Struct, frozen=True, tag="clock-accepted"):
    now: int


class CaGeneration(Struct, frozen=True, tag="ca-generation"):
    """One certificate that the issuing CA has or had. Times are Unix seconds.

    `state`: `active`, `next` (takes over at `since`), `installed` (never activated), `former`. `chain`: DER, issuing
    CA first, without `root`. `not_after`: when the first of them all ends.
    """

    number: int
    label: Name
    state: Name
    subject: Text
    not_before: int
    not_after: int
    since: int | None
    chain: list[Blob]
    root: Blob


class Revoke(Struct, frozen=True, tag="revoke"):
    """The certificate of a unit, a registration ID or a serial number (hexadecimal) is revoked. Reply `Revoked`.

    The station may ask this too, for units that are scrapped.
    """

    name: Name
    reason: Reason
    why: Annotated[str, Meta(max_length=500)]


class Revoked(Struct, frozen=True, tag="revoked"):
    """`at`: Unix seconds. `new` is false when it was revoked before, and then stays as it was."""

    unit: Name
    serial: Blob
    at: int
    reason: Name
    new: bool


class MakeCrl(Struct, frozen=True, tag="make-crl"):
    """A revocation list of a generation (None: what issues). Reply `RevocationList`. The station may ask too."""

    generation: int | None


class RevocationList(Struct, frozen=True, tag="revocation-list"):
    """`crl` is DER. Times are Unix seconds."""

    number: int
    this_update: int
    next_update: int
    entries: int
    crl: Annotated[bytes, Meta(max_length=CRL_LIMIT)]


CaSays = CaRequest | CaGeneration | ClockAccepted | Revoked | RevocationList
CaAsked = MakeCaRequest | InstallCa | ActivateCa | AcceptClock | Revoke | MakeCrl
