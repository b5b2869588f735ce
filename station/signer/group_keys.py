"""Group keys in the token: how one gets in, and how two stations find out that they have the same one.

A device's key is derived from it (`device_keys`); the group key itself can't be read out of the token again.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import Final

from hal.call import Call
from hal.errors import ConfigError
from hal.interfaces import DeviceSecrets
from hal.secret import Secret
from station.messages import GroupKey

CHECK: Final = b"hallmark group key check 1\x00"
"""No registration ID: those have neither spaces nor NULs. So the check value is no device's key."""
CHECK_LENGTH: Final = 4
TEXT_LIMIT: Final = 256
"""Octets that are read of a group key in base64."""


def read_group_key(fd: int) -> Secret:
    """From a file descriptor that the caller passed (`--key-fd N`): base64, as the service shows it. Closes it."""
    try:
        with os.fdopen(fd, "rb") as stream:
            text = stream.read(TEXT_LIMIT + 1).strip()
    except OSError as error:
        raise ConfigError(f"--key-fd {fd} can't be read: {error.strerror}") from error
    try:
        if len(text) > TEXT_LIMIT:
            raise ValueError
        return Secret(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        # Not quoted: it is a key, if a damaged one.
        raise ConfigError(
            f"file descriptor {fd} holds no group key; expected base64 in one line",
            hint="Give the enrollment group's primary key as the service shows it.",
        ) from None


def import_group_key(secrets: DeviceSecrets, call: Call, label: str, key: Secret) -> GroupKey:
    """DuplicateKey when the label is taken; TokenError for a key of the wrong length."""
    secrets.import_group_key(call, label, key)
    return check_group_key(secrets, call, label)


def check_group_key(secrets: DeviceSecrets, call: Call, label: str) -> GroupKey:
    """KeyMissing when it isn't there."""
    check = secrets.derive(call, label, CHECK).reveal()[:CHECK_LENGTH].hex()
    return GroupKey(label, check)
