"""Tokens as a module lists them: found by label, and what they say of their PIN. Called in the module's one thread."""

from __future__ import annotations

from typing import Any, Final

import pkcs11
from pkcs11 import PKCS11Error, TokenFlag

from hal.errors import quote
from hal.types import PinTries

TELLS_WRONG_PINS: Final = frozenset({"SoftHSM v2"})
"""Token models known to set CKF_USER_PIN_COUNT_LOW at a wrong PIN and to clear it at a right one. The standard lets a
token keep those flags at zero, so for any other model a clear flag is no evidence."""
REFUSALS: Final = (
    pkcs11.PinIncorrect,
    pkcs11.PinLocked,
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.PinExpired,
)
"""What C_Login says when this PIN won't do. After any other error nobody knows whether the token has counted it."""


def labelled(library: Any, label: str) -> list[Any]:
    """The initialised tokens of this label; never by list index."""
    return [
        token
        for token in (slot.get_token() for slot in library.get_slots(token_present=True))
        if token.label == label and TokenFlag.TOKEN_INITIALIZED in token.flags
    ]


def tries(token: Any) -> PinTries:
    for flag, meaning in (
        (TokenFlag.USER_PIN_LOCKED, PinTries.LOCKED),
        (TokenFlag.USER_PIN_FINAL_TRY, PinTries.FINAL),
        (TokenFlag.USER_PIN_COUNT_LOW, PinTries.LOW),
    ):
        if flag in token.flags:
            return meaning
    return PinTries.CLEAN if token.model in TELLS_WRONG_PINS else PinTries.UNTOLD


def name_of(error: PKCS11Error) -> str:
    """The library's class, which is the CKR_ code in other letters, and its text where it has any."""
    return f"{type(error).__name__} {quote(str(error), 160)}" if str(error) else type(error).__name__
