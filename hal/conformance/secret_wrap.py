"""What every `SecretWrap` has to do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from hal.call import Call
from hal.errors import KeyMissing, TokenError
from hal.interfaces import SecretWrap
from hal.secret import Secret

SECONDS: Final = 60.0
LIMIT: Final = 4096
"""Octets that a secret may have (hal.interfaces.SecretWrap)."""
LABEL: Final = "conformance-wrap"

SPENT: Final = "conformance-spent"
Open = Callable[[], AbstractContextManager[SecretWrap]]
"""Opens the token under test; each time the same one."""


def check(open_token: Open) -> None:
    """Everything below. Makes the key LABEL."""
    check_key_is_not_made_by_unwrapping(open_token)
    check_round_trip(open_token)
    check_nothing_else_unwraps(open_token)
    check_a_destroyed_key_is_gone(open_token)


def _call() -> Call:
    return Call.lasting(SECONDS)


def _refused(token: SecretWrap, context: bytes, wrapped: bytes) -> bool:
    try:
        token.unwrap(_call(), LABEL, context, wrapped)
    except TokenError:
        return True
    return False


def check_key_is_not_made_by_unwrapping(open_token: Open) -> None:
    with open_token() as token:
        try:
            token.unwrap(_call(), "no such key", b"context", b"\x01" + b"0" * 60)
        except KeyMissing:
            return
    raise AssertionError("expected KeyMissing, nothing was raised")


def check_round_trip(open_token: Open) -> None:
    """What was wrapped comes back, also after closing, and is never wrapped to the same octets twice."""
    cases = [(b"", b"x"), (b"context", bytes(32)), (b"c" * 500, b"y" * LIMIT), (b"context", b"")]
    kept = []
    with open_token() as token:
        for context, plain in cases:
            wrapped = token.wrap(_call(), LABEL, context, Secret(plain))
            assert token.unwrap(_call(), LABEL, context, wrapped) == Secret(plain)
            assert not plain or plain not in wrapped or len(plain) == 1
            assert wrapped != token.wrap(_call(), LABEL, context, Secret(plain))
            kept.append((context, plain, wrapped))
    with open_token() as token:
        for context, plain, wrapped in kept:
            assert token.unwrap(_call(), LABEL, context, wrapped) == Secret(plain)


def check_nothing_else_unwraps(open_token: Open) -> None:
    """Another context, a changed octet anywhere, or a part is refused, and the token goes on working."""
    plain = Secret(b"a secret of some length")
    with open_token() as token:
        wrapped = token.wrap(_call(), LABEL, b"unit 1", plain)
        assert _refused(token, b"unit 2", wrapped)
        for at in range(0, len(wrapped), 7):
            changed = bytearray(wrapped)
            changed[at] ^= 0x80
            assert _refused(token, b"unit 1", bytes(changed)), f"octet {at}"
        for length in (0, 1, len(wrapped) // 2, len(wrapped) - 1):
            assert _refused(token, b"unit 1", wrapped[:length]), f"{length} octets"
        assert _refused(token, b"unit 1", wrapped + b"\0")
        try:
            token.wrap(_call(), LABEL, b"", Secret(bytes(LIMIT + 1)))
        except TokenError:
            pass
        else:
            raise AssertionError(f"expected TokenError for a secret over {LIMIT} octets")
        assert token.unwrap(_call(), LABEL, b"unit 1", wrapped) == plain


def check_a_destroyed_key_is_gone(open_token: Open) -> None:
    """What it has wrapped opens no more, not under a new key of its label either; other keys stay."""
    with open_token() as token:
        kept = token.wrap(_call(), LABEL, b"", Secret(b"kept"))
        lost = token.wrap(_call(), SPENT, b"", Secret(b"lost"))
        token.destroy(_call(), SPENT)
        token.destroy(_call(), SPENT)  # twice is once
        try:
            token.unwrap(_call(), SPENT, b"", lost)
        except KeyMissing:
            pass
        else:
            raise AssertionError("expected KeyMissing for a key that was destroyed")
        again = token.wrap(_call(), SPENT, b"", Secret(b"new"))
        assert token.unwrap(_call(), SPENT, b"", again) == Secret(b"new")
        try:
            token.unwrap(_call(), SPENT, b"", lost)
        except TokenError:
            pass
        else:
            raise AssertionError("a new key of the same label opens what the destroyed one has wrapped")
        token.destroy(_call(), SPENT)
        assert token.unwrap(_call(), LABEL, b"", kept) == Secret(b"kept")
