"""What every `DeviceSecrets` has to do. The token under test keeps the group key LABEL for good."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from hal.call import Call
from hal.errors import DuplicateKey, HallmarkError, KeyMissing, TokenError
from hal.interfaces import DeviceSecrets
from hal.secret import Secret
from hal.types import KeyType

SECONDS: Final = 60.0
LABEL: Final = "conformance-group"
GROUP_KEY: Final = bytes(range(64))

Open = Callable[[], AbstractContextManager[DeviceSecrets]]
"""Opens the token under test; each time the same one."""


def check(open_token: Open) -> None:
    """Everything below. Imports the group key LABEL."""
    check_random_differs(open_token)
    check_private_keys_are_made_anew(open_token)
    check_group_key_derives(open_token)


def _call() -> Call:
    return Call.lasting(SECONDS)


def check_random_differs(open_token: Open) -> None:
    with open_token() as token:
        found = [token.random(_call(), length).reveal() for length in (16, 32, 32, 64)]
        assert [len(octets) for octets in found] == [16, 32, 32, 64]
        assert len({octets[:16] for octets in found}) == len(found)


def check_private_keys_are_made_anew(open_token: Open) -> None:
    """Each is a whole key of the type asked for, and none comes twice."""
    with open_token() as token:
        made = [token.make_private_key(_call(), KeyType.P256).reveal() for _ in range(2)]
        assert made[0] != made[1]
        for pkcs8 in made:
            key = load_der_private_key(pkcs8, password=None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            assert isinstance(key.curve, ec.SECP256R1)


def check_group_key_derives(open_token: Open) -> None:
    """HMAC-SHA256 by what was imported, also after closing. A label is given once; a missing one is said so."""
    with open_token() as token:
        assert _raised(token, "no such key") is KeyMissing
        for length in (0, 31, 65):
            try:
                token.import_group_key(_call(), LABEL, Secret(bytes(length)))
            except TokenError:
                continue
            raise AssertionError(f"expected TokenError for a group key of {length} octets")
        token.import_group_key(_call(), LABEL, Secret(GROUP_KEY))
    with open_token() as token:
        for data in (b"gw-1", b"GW-1", b"x" * 128):
            wanted = hmac.digest(GROUP_KEY, data, "sha256")
            assert token.derive(_call(), LABEL, data) == Secret(wanted)
        try:
            token.import_group_key(_call(), LABEL, Secret(bytes(64)))
        except DuplicateKey:
            pass
        else:
            raise AssertionError("expected DuplicateKey for a label that is there")
        assert token.derive(_call(), LABEL, b"gw-1") == Secret(hmac.digest(GROUP_KEY, b"gw-1", "sha256"))


def _raised(token: DeviceSecrets, label: str) -> type[HallmarkError] | None:
    try:
        token.derive(_call(), label, b"gw-1")
    except HallmarkError as error:
        return type(error)
    return None
