"""Between the signer and those who ask it: the station, and commands."""

from __future__ import annotations

from msgspec import Struct

from station.messages.basics import Blob, Issued, Name
from station.messages.ca import CaAsked, CaGeneration, CaSays
from station.wire import Problem


class SignerStatus(Struct, frozen=True, tag="signer-status"):
    """Reply `SignerState`."""


class SignerState(Struct, frozen=True, tag="signer-state"):
    """The token and the CA as the signer sees them now. `condition` is a `hal.types.TokenCondition`."""

    condition: str
    label: str
    problem: str
    hint: str
    subject: str
    not_after: str
    issued: int
    pending: int
    """Intents in the ledger without a signature yet."""
    chain: list[Blob]
    """Issuing CA first, DER; empty when no CA certificate is installed."""
    issuers: list[Blob] = []
    """Every issuing CA's certificate there ever was, DER."""
    generations: list[CaGeneration] = []


class CheckToken(Struct, frozen=True, tag="check-token"):
    """A canary signature now; reply `SignerState` or the token's Problem. Asked before each unit."""


class SignRequest(Struct, frozen=True, tag="sign-request"):
    """A certificate for one unit's key. Reply `Issued`. Asking again for the same unit and key gives the same bytes."""

    unit: Name
    registration_id: Name
    profile: Name
    csr: Blob
    configuration: Blob = b""
    """SHA-256 of the signed set that the station runs with; empty on a bench. The signer's own has to be the same."""


class WrapSecret(Struct, frozen=True, tag="wrap-secret"):
    """Reply `Wrapped`."""

    context: Blob
    plain: Blob

    def __repr__(self) -> str:
        return "WrapSecret(…)"


class UnwrapSecret(Struct, frozen=True, tag="unwrap-secret"):
    """Reply `Unwrapped`."""

    context: Blob
    wrapped: Blob


class Wrapped(Struct, frozen=True, tag="wrapped"):
    wrapped: Blob


class Unwrapped(Struct, frozen=True, tag="unwrapped"):
    plain: Blob

    def __repr__(self) -> str:
        return "Unwrapped(…)"


ToSigner = SignerStatus | CheckToken | SignRequest | WrapSecret | UnwrapSecret | CaAsked
FromSigner = SignerState | Issued | Wrapped | Unwrapped | CaSays | Problem
