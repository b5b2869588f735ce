"""What every `CaToken` has to do. Needs a fresh token, into which keys are made."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from hal.call import Call, Cancel
from hal.errors import Aborted, DeadlineExceeded, DuplicateKey, HallmarkError, KeyMissing
from hal.interfaces import CaToken
from hal.types import KeyType, TokenCondition

SECONDS: Final = 300.0
"""For one call: old chips make an RSA key in minutes."""
THREADS, ROUNDS = 8, 25

Open = Callable[[], AbstractContextManager[CaToken]]
"""Opens the token under test; each time the same one. `canary` is the label of its canary key, which isn't made yet."""


def check(open_token: Open, canary: str, key_types: tuple[KeyType, ...] = (KeyType.P256,)) -> None:
    """Everything below, in an order that leaves nothing half done."""
    check_missing_keys_are_named(open_token, canary)
    for key_type in key_types:
        check_keys_sign(open_token, f"conformance-{key_type}", key_type)
    check_canary(open_token, canary)
    check_keys_outlive_closing(open_token, f"conformance-{key_types[0]}")
    check_many_threads(open_token, f"conformance-{key_types[0]}")
    check_calls_are_stopped(open_token)


def _call() -> Call:
    return Call.lasting(SECONDS)


def _raises(kind: type[HallmarkError], work: Callable[[], object]) -> None:
    try:
        work()
    except kind:
        return
    raise AssertionError(f"expected {kind.__name__}, nothing was raised")


def verify(spki: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is what `CaToken.sign` promises for the key `spki`."""
    key = serialization.load_der_public_key(spki)
    with contextlib.suppress(InvalidSignature):
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            assert isinstance(key, ec.EllipticCurvePublicKey)
            digest = hashes.SHA384() if isinstance(key.curve, ec.SECP384R1) else hashes.SHA256()
            key.verify(signature, data, ec.ECDSA(digest))
        return True
    return False


def check_missing_keys_are_named(open_token: Open, canary: str) -> None:
    """A key that isn't there is KeyMissing, and the state says so."""
    with open_token() as token:
        _raises(KeyMissing, lambda: token.canary(_call()))
        state = token.state(_call())
        assert state.condition is TokenCondition.KEY_MISSING
        assert canary in state.problem
        _raises(KeyMissing, lambda: token.public_key(_call(), "no such key"))
        _raises(KeyMissing, lambda: token.sign(_call(), "no such key", b"data"))


def check_keys_sign(open_token: Open, label: str, key_type: KeyType) -> None:
    """A key that was made signs, and its label is taken from then on."""
    with open_token() as token:
        spki = token.make_key(_call(), label, key_type)
        assert token.public_key(_call(), label) == spki
        for data in (b"", b"data", b"x" * 20_000):
            signature = token.sign(_call(), label, data)
            assert verify(spki, signature, data)
            assert not verify(spki, signature, data + b"!")
        _raises(DuplicateKey, lambda: token.make_key(_call(), label, key_type))
        assert token.public_key(_call(), label) == spki


def check_canary(open_token: Open, canary: str) -> None:
    with open_token() as token:
        token.make_key(_call(), canary, KeyType.P256)
        assert token.canary(_call()).condition is TokenCondition.READY
        assert token.state(_call()).condition is TokenCondition.READY


def check_keys_outlive_closing(open_token: Open, label: str) -> None:
    with open_token() as token:
        spki = token.public_key(_call(), label)
    with open_token() as token:
        assert token.public_key(_call(), label) == spki
        assert verify(spki, token.sign(_call(), label, b"again"), b"again")


def check_many_threads(open_token: Open, label: str) -> None:
    """Calls from many threads at once are all answered rightly."""
    wrong: list[object] = []
    with open_token() as token:
        spki = token.public_key(_call(), label)

        def work(number: int) -> None:
            for turn in range(ROUNDS):
                data = b"%d.%d" % (number, turn)
                try:
                    if not verify(spki, token.sign(_call(), label, data), data):
                        wrong.append(data)
                except HallmarkError as error:
                    wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def check_calls_are_stopped(open_token: Open) -> None:
    """A call whose time is up, or that was stopped, isn't begun."""
    cancel = Cancel()
    cancel.set()
    with open_token() as token:
        _raises(DeadlineExceeded, lambda: token.canary(Call(deadline=time.monotonic())))
        _raises(Aborted, lambda: token.canary(Call(cancel=cancel)))
        assert token.canary(_call()).condition is TokenCondition.READY
    cancel.close()
