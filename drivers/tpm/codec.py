"""The few TPM commands that are needed outside ESAPI, as octets (TPM 2.0 Parts 1 to 3).

Capabilities are read here and not through tpm2-pytss: a chained `get_capability(...)[1].data.handles` of its version
3.0.0 reads memory that is free already. No transport and no policy comes in. All integers are big-endian.
"""

from __future__ import annotations

import enum
from typing import Final

from hal.errors import ProtocolViolation

HEADER_LENGTH: Final = 10
"""Tag (2), size (4, of all), command or response code (4): Part 1, 18."""
MAX_MESSAGE: Final = 4096
"""Octets of a command or response at most, as `hal.interfaces.TpmTransport` says."""

ST_NO_SESSIONS: Final = 0x8001
ST_SESSIONS: Final = 0x8002
ST_RSP_COMMAND: Final = 0x00C4
"""Tag of the answer to a command whose tag is not known: always with TPM_RC_BAD_TAG (Part 2, 6.9)."""

CC_STARTUP: Final = 0x0144
CC_SHUTDOWN: Final = 0x0145
CC_FLUSH_CONTEXT: Final = 0x0165
CC_READ_PUBLIC: Final = 0x0173
CC_GET_CAPABILITY: Final = 0x017A
CC_READ_CLOCK: Final = 0x0181

RC_SUCCESS: Final = 0x000
RC_INITIALIZE: Final = 0x100
"""TPM2_Startup is still to come; as an answer to it: it has been done (Part 3, 9.3)."""

SU_CLEAR: Final = 0x0000
CAP_HANDLES: Final = 1
CAP_TPM_PROPERTIES: Final = 6

LOADED_SESSIONS: Final = 0x02000000
SAVED_SESSIONS: Final = 0x03000000
TRANSIENT_OBJECTS: Final = 0x80000000
PERSISTENT_OBJECTS: Final = 0x81000000
NV_INDEXES: Final = 0x01000000

HANDLES_PER_ANSWER: Final = 254
"""MAX_CAP_HANDLES: what fits into MAX_CAP_BUFFER (Part 2, 10.9.2)."""


class Property(enum.IntEnum):
    """TPM_PT: properties that are read (Part 2, 6.13)."""

    REVISION = 0x102
    MANUFACTURER = 0x105
    VENDOR_STRING_1 = 0x106
    VENDOR_STRING_4 = 0x109
    FIRMWARE_VERSION_1 = 0x10B
    FIRMWARE_VERSION_2 = 0x10C
    NV_BUFFER_MAX = 0x12C
    PERMANENT = 0x200
    STARTUP_CLEAR = 0x201
    LOCKOUT_COUNTER = 0x20E
    MAX_AUTH_FAIL = 0x20F
    LOCKOUT_INTERVAL = 0x210
    LOCKOUT_RECOVERY = 0x211


def command(code: int, *parameters: tuple[int, int]) -> bytes:
    """A command without sessions. Each parameter: value, and how many octets it takes."""
    body = b"".join(value.to_bytes(length, "big") for value, length in parameters)
    size = HEADER_LENGTH + len(body)
    return ST_NO_SESSIONS.to_bytes(2, "big") + size.to_bytes(4, "big") + code.to_bytes(4, "big") + body


def startup() -> bytes:
    return command(CC_STARTUP, (SU_CLEAR, 2))


def shutdown() -> bytes:
    return command(CC_SHUTDOWN, (SU_CLEAR, 2))


def flush(handle: int) -> bytes:
    return command(CC_FLUSH_CONTEXT, (handle, 4))


def get_capability(capability: int, first: int, count: int) -> bytes:
    return command(CC_GET_CAPABILITY, (capability, 4), (first, 4), (count, 4))


def read_public(handle: int) -> bytes:
    return command(CC_READ_PUBLIC, (handle, 4))


def read_clock() -> bytes:
    return command(CC_READ_CLOCK)


def response_code(response: bytes) -> int:
    """The TPM_RC of a whole response. ProtocolViolation when its header doesn't hold."""
    tag, size = int.from_bytes(response[:2], "big"), int.from_bytes(response[2:6], "big")
    fits = HEADER_LENGTH <= len(response) <= MAX_MESSAGE and size == len(response)
    if not fits or tag not in (ST_NO_SESSIONS, ST_SESSIONS, ST_RSP_COMMAND):
        raise ProtocolViolation(
            f"no TPM response: {len(response)} octets, tag 0x{tag:04x}, which say that they are {size}"
        )
    return int.from_bytes(response[6:10], "big")


def public(response: bytes) -> bytes:
    """TPM2_ReadPublic's answer: its TPM2B_PUBLIC, unread. Name and qualified name follow it (Part 3, 12.4)."""
    body = response[HEADER_LENGTH:]
    found: list[bytes] = []
    for _ in range(3):
        length = 2 + int.from_bytes(body[:2], "big")
        found.append(body[:length])
        if len(body) < length:
            break
        body = body[length:]
    if len(found) != 3 or body:
        raise ProtocolViolation("a TPM object's public area, Name and qualified Name don't fit their answer")
    return found[0]


def handles(response: bytes) -> tuple[bool, list[int]]:
    """TPM2_GetCapability's answer for CAP_HANDLES: whether there are more, and the handles."""
    more, items = _capability(response, CAP_HANDLES, 4)
    return more, [int.from_bytes(item, "big") for item in items]


def properties(response: bytes) -> tuple[bool, dict[int, int]]:
    """TPM2_GetCapability's answer for CAP_TPM_PROPERTIES: whether there are more, and value by property."""
    more, items = _capability(response, CAP_TPM_PROPERTIES, 8)
    return more, {int.from_bytes(item[:4], "big"): int.from_bytes(item[4:], "big") for item in items}


def boot(response: bytes) -> bytes:
    """What tells one boot from the next in TPM2_ReadClock's answer: resetCount and restartCount, as they stand.

    TPMS_TIME_INFO: time (8), clock (8), resetCount (4), restartCount (4), safe (1): Part 2, 10.11.6.
    """
    body = response[HEADER_LENGTH:]
    if len(body) != 25:
        raise ProtocolViolation(f"a TPM clock of {len(body)} octets")
    return body[16:24]


def _capability(response: bytes, wanted: int, length: int) -> tuple[bool, list[bytes]]:
    """TPMS_CAPABILITY_DATA: moreData (1), capability (4), count (4), items of `length` octets (Part 3, 30.2)."""
    body = response[HEADER_LENGTH:]
    found, count = int.from_bytes(body[1:5], "big"), int.from_bytes(body[5:9], "big")
    if len(body) < 9 or found != wanted or len(body) != 9 + count * length:
        raise ProtocolViolation(f"a TPM capability of {len(body)} octets that says it has {count} items")
    return bool(body[0]), [body[9 + at * length : 9 + (at + 1) * length] for at in range(count)]
