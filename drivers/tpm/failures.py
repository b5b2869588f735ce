"""What a TSS2_RC means in `hal.errors`' terms. Codes: TPM 2.0 Part 2, 6.6; layers: TSS 2.0 Overview, 2.3."""

from __future__ import annotations

from typing import Final

from drivers.tpm.tss import TPM2_RC, TSS2_Exception
from hal.errors import AlreadyOwned, HallmarkError, LockedOut, ProtocolViolation, TpmError, quote

LAYER_MASK: Final = 0xFFFF0000
TPM_LAYERS: Final = frozenset({0x0000_0000, 0x000B_0000, 0x000C_0000})
"""The TPM itself, and resource managers (tabrmd, the kernel's) that pass its code on or answer for it."""
ESYS_LAYER: Final = 0x0007_0000

RC_LOCKOUT: Final = 0x921
RC_RETRY: Final = 0x922
RC_YIELDED: Final = 0x908
RC_TESTING: Final = 0x90A
NOT_STARTED: Final = frozenset({RC_RETRY, RC_YIELDED, RC_TESTING})
"""The TPM did nothing and wants the same command again later."""

RC_AUTH_FAIL: Final = 0x08E
"""Wrong auth of something that dictionary-attack protection counts."""
RC_BAD_AUTH: Final = 0x0A2
"""Wrong auth of something that it doesn't count: owner, endorsement, the SRK."""
WRONG_AUTH: Final = frozenset({RC_AUTH_FAIL, RC_BAD_AUTH})
RC_HANDLE: Final = 0x08B
RC_INTEGRITY: Final = 0x09F
RC_VALUE: Final = 0x084
RC_ASYMMETRIC: Final = 0x081
RC_HASH: Final = 0x083
RC_KEY_SIZE: Final = 0x087
RC_SYMMETRIC: Final = 0x096
RC_CURVE: Final = 0x0A6

_FMT1: Final = 0x080
_FMT1_BASE: Final = 0x0BF
"""Format-one codes carry the number of the handle, session or parameter in the other bits."""
_ESYS_RSP_AUTH_FAILED: Final = ESYS_LAYER | 0x1B


def base(rc: int) -> int:
    """`rc` without layer and without the number of what it is about."""
    code = rc & 0xFFFF
    return code & _FMT1_BASE if code & _FMT1 else code


def from_tpm(rc: int) -> bool:
    """Whether the TPM said so, not the library on top of it."""
    return rc & LAYER_MASK in TPM_LAYERS


def name(rc: int) -> str:
    """The TPM_RC's name as the specification spells it, or the number where it isn't known."""
    wanted = base(rc)
    for known, value in vars(TPM2_RC).items():
        if known.isupper() and isinstance(value, int) and int(value) == wanted:
            return f"TPM_RC_{known}"
    return f"0x{wanted:03x}"


def described(rc: int) -> str:
    return f"{name(rc)} (0x{rc:x})" if from_tpm(rc) else f"TSS2_RC 0x{rc:x}: {quote(str(TSS2_Exception(rc)))}"


def mapped(rc: int, doing: str) -> HallmarkError:
    """The error to raise for `rc`; `doing` begins the message ("setting the owner auth")."""
    text = f"{doing}: {described(rc)}"
    if from_tpm(rc):
        code = base(rc)
        if code == RC_LOCKOUT:
            return LockedOut(text, rc=rc)
        if code in WRONG_AUTH:
            return AlreadyOwned(f"{text}: the auth value in the TPM is another one", rc=rc)
        return TpmError(text, rc=rc)
    if rc == _ESYS_RSP_AUTH_FAILED:
        return TpmError(f"{doing}: the answer is not from the TPM that the session was made with", rc=rc)
    return ProtocolViolation(text)
