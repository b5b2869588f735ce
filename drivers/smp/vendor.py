"""Messages of the vendor group: what SMP lacks for provisioning, as docs/vendor-group.md tells firmware engineers.

Codecs and limits only, for both ends (the station's driver and emulated boards). No input or output comes in.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, ClassVar, Final, TypeGuard, TypeVar, cast

import cbor2
from pydantic import ConfigDict, Field, StringConstraints
from smp import error, message
from smp.header import AnyCommandId

GROUP: Final = 72
"""SMP group number: MGMT_GROUP_ID_PERUSER (64) + 8, which is also ASCII 'H'."""
VERSION: Final = 1
"""Version of the group, in the `v` of identify. Unknown keys are ignored, so additions need no new number."""
PAYLOAD_LIMIT: Final = 4096
"""Octets of one transaction's argument or result: TPM_MAX_COMMAND_SIZE and TPM_MAX_RESPONSE_SIZE of usual TPMs."""
TEXT_LIMIT: Final = 64
"""Characters (printable ASCII) of a board's name, serial number, firmware version or test name."""
DETAIL_LIMIT: Final = 128
"""Characters (printable ASCII) of a test's detail."""
MAC_LIMIT: Final = 8
TEST_LIMIT: Final = 64
"""Results that one self-test may give."""
COMMON_NAME_LIMIT: Final = 64
"""Octets of UTF-8: ub-common-name of RFC 5280, A.1, is 64 characters; the group allows no more octets than that."""
NONCE_LIMIT: Final = 64
"""Octets of a nonce that `prove` signs, or `prove-secret` authenticates."""
CHALLENGE_LENGTH: Final = 32
"""Octets of what `transport-key` signs beside the key."""
POINT_LENGTH: Final = 65
"""Octets of an uncompressed point of P-256 (SEC 1, 2.3.3)."""
SIGNATURE_LIMIT: Final = 512
"""Octets of a signature by the board's key: RSA-4096."""
REGISTRATION_ID_LIMIT: Final = 128
MAC_LENGTH: Final = 32

_PRINTABLE: Final = r"^[\x20-\x7e]*$"
_UINT32_MAX: Final = 0xFFFF_FFFF


class Command(enum.IntEnum):
    """Command numbers of the group. All but IDENTIFY are transactions."""

    IDENTIFY = 0
    TPM = 1
    SELF_TEST = 2
    KEY = 3
    MAKE_KEY = 4
    CSR = 5
    PROVE = 6
    TRANSPORT_KEY = 7
    INSTALL_KEY = 8
    PROVE_SECRET = 9


class Err(enum.IntEnum):
    """`rc` of the group's version 2 errors (`{"err": {"group": 72, "rc": n}}`)."""

    OK = 0
    UNKNOWN = 1
    NO_TPM = 2
    NO_KEY = 3
    KEY_EXISTS = 4
    BAD_ARGUMENT = 5
    TOO_LONG = 6
    UNKNOWN_TRANSACTION = 7
    FAILED = 8
    NOT_OPENED = 9


class VendorError(error.ErrorV2[Err]):
    """A version 2 error of this group."""

    _GROUP_ID = GROUP


Text = Annotated[str, StringConstraints(min_length=1, max_length=TEXT_LIMIT, pattern=_PRINTABLE)]
Mac = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$", max_length=17)]
Uint32 = Annotated[int, Field(ge=0, le=_UINT32_MAX)]
Count = Annotated[int, Field(ge=0, le=PAYLOAD_LIMIT)]
Chunk = Annotated[bytes, Field(max_length=PAYLOAD_LIMIT)]

# smp's models refuse unknown keys; this group ignores them, so that it can grow. Types are never coerced.
_STRICT: Final = ConfigDict(extra="ignore", frozen=True, strict=True, arbitrary_types_allowed=True)


class IdentifyRequest(message.ReadRequest):
    """IDENTIFY, read: an empty map."""

    _GROUP_ID = GROUP
    _COMMAND_ID = Command.IDENTIFY
    model_config = _STRICT


class IdentifyResponse(message.ReadResponse):
    """What the board says it is."""

    _GROUP_ID = GROUP
    _COMMAND_ID = Command.IDENTIFY
    model_config = _STRICT

    v: Annotated[int, Field(ge=1, le=255)]
    """Version of the group that the board speaks."""
    board: Text
    sn: Text | None = None
    mac: Annotated[list[Mac], Field(max_length=MAC_LIMIT)] = Field(default_factory=list)
    fw: Text | None = None
    tpm: bool = False
    """Whether there is a TPM behind the TPM command."""


class PutRequest(message.WriteRequest):
    """One piece of a transaction's argument. The subclasses differ in their command only."""

    _GROUP_ID = GROUP
    model_config = _STRICT

    id: Uint32
    """The transaction's number, the requester's choice."""
    off: Count
    """Where `d` belongs in the argument."""
    len: Count
    """Octets of the whole argument."""
    d: Chunk


class PutResponse(message.WriteResponse):
    """How much of the argument is there; once all of it is, the beginning of the result."""

    _GROUP_ID = GROUP
    model_config = _STRICT

    id: Uint32
    off: Count
    """Without `len`: octets of the argument that the board has. With `len`: where `d` belongs in the result."""
    len: Count | None = None
    """Octets of the whole result; present once the command was executed."""
    d: Chunk | None = None


class GetRequest(message.ReadRequest):
    """Asks for the rest of a result."""

    _GROUP_ID = GROUP
    model_config = _STRICT

    id: Uint32
    off: Count


class GetResponse(message.ReadResponse):
    """A piece of the result."""

    _GROUP_ID = GROUP
    model_config = _STRICT

    id: Uint32
    off: Count
    len: Count
    d: Chunk


_M = TypeVar("_M", bound=message._MessageBase)  # the library exports no public name for "any message"


def _for_command(base: type[_M], command: Command) -> type[_M]:
    namespace: dict[str, Any] = {
        "_COMMAND_ID": command,
        "__module__": __name__,
        "__annotations__": {"_COMMAND_ID": ClassVar[AnyCommandId]},
        "__doc__": base.__doc__,
    }
    metaclass: Any = type(base)
    made = metaclass(f"{command.name.title().replace('_', '')}{base.__name__}", (base,), namespace)
    return cast("type[_M]", made)


TRANSACTIONS: Final = tuple(command for command in Command if command is not Command.IDENTIFY)
PUT_REQUEST: Final[dict[Command, type[PutRequest]]] = {
    command: _for_command(PutRequest, command) for command in TRANSACTIONS
}
PUT_RESPONSE: Final[dict[Command, type[PutResponse]]] = {
    command: _for_command(PutResponse, command) for command in TRANSACTIONS
}
GET_REQUEST: Final[dict[Command, type[GetRequest]]] = {
    command: _for_command(GetRequest, command) for command in TRANSACTIONS
}
GET_RESPONSE: Final[dict[Command, type[GetResponse]]] = {
    command: _for_command(GetResponse, command) for command in TRANSACTIONS
}


def pack_tests(results: list[tuple[str, bool, str]]) -> bytes:
    """The SELF_TEST result: a CBOR array of maps {"n": name, "ok": bool, "d": detail}."""
    return cbor2.dumps([{"n": name, "ok": passed, "d": detail} for name, passed, detail in results])


def unpack_tests(data: bytes) -> list[tuple[str, bool, str]]:
    """(name, passed, detail) of each result. ValueError for anything but what `pack_tests` may give."""
    try:
        items = cbor2.loads(data)
    except (cbor2.CBORDecodeError, RecursionError, MemoryError, OverflowError):
        message_ = "the self-test's result is no CBOR"
        raise ValueError(message_) from None
    if not isinstance(items, list) or len(items) > TEST_LIMIT:
        message_ = f"the self-test's result is no array of at most {TEST_LIMIT} maps"
        raise ValueError(message_)
    found: list[tuple[str, bool, str]] = []
    for item in items:
        if not isinstance(item, dict):
            message_ = "a self-test result is no map"
            raise ValueError(message_)  # noqa: TRY004 - callers know one error for all that is malformed
        name, passed, detail = item.get("n"), item.get("ok"), item.get("d", "")
        if not (_printable(name, TEXT_LIMIT) and name and isinstance(passed, bool)) or not _printable(
            detail, DETAIL_LIMIT
        ):
            message_ = "a self-test result lacks a name or a verdict, or its text is too long or not ASCII"
            raise ValueError(message_)
        found.append((name, passed, detail))
    return found


def pack_transport_key(point: bytes, signature: bytes) -> bytes:
    """The TRANSPORT_KEY result: a CBOR map {"k": point} with "s": signature where there is one."""
    return cbor2.dumps({"k": point} | ({"s": signature} if signature else {}))


def unpack_transport_key(data: bytes) -> tuple[bytes, bytes]:
    """(point, signature or empty). ValueError for anything but what `pack_transport_key` may give."""
    found = _map(data)
    point, signature = found.get("k"), found.get("s", b"")
    if not isinstance(point, bytes) or len(point) != POINT_LENGTH:
        message_ = f"the transport key has no point of {POINT_LENGTH} octets"
        raise ValueError(message_)
    if not isinstance(signature, bytes) or len(signature) > SIGNATURE_LIMIT:
        message_ = f"the transport key's signature is none of at most {SIGNATURE_LIMIT} octets"
        raise ValueError(message_)
    return point, signature


def pack_install(purpose: str, registration_id: str, encapsulated: bytes, ciphertext: bytes) -> bytes:
    """The INSTALL_KEY argument: a CBOR map."""
    return cbor2.dumps({"p": purpose, "id": registration_id, "e": encapsulated, "c": ciphertext})


def unpack_install(data: bytes) -> tuple[str, str, bytes, bytes]:
    """(purpose, registration ID, encapsulated, ciphertext). ValueError for anything but what `pack_install` gives."""
    found = _map(data)
    purpose, name, encapsulated, ciphertext = (found.get(key) for key in ("p", "id", "e", "c"))
    if not (_printable(purpose, TEXT_LIMIT) and _printable(name, REGISTRATION_ID_LIMIT) and purpose and name):
        message_ = "a key to install without a purpose or a registration ID"
        raise ValueError(message_)
    if not (isinstance(encapsulated, bytes) and len(encapsulated) == POINT_LENGTH) or not isinstance(
        ciphertext, bytes
    ):
        message_ = "a key to install that is not sealed"
        raise ValueError(message_)
    return purpose, name, encapsulated, ciphertext


def _map(data: bytes) -> dict[Any, Any]:
    try:
        found = cbor2.loads(data)
    except (cbor2.CBORDecodeError, RecursionError, MemoryError, OverflowError):
        message_ = "no CBOR"
        raise ValueError(message_) from None
    if not isinstance(found, dict):
        message_ = "no CBOR map"
        raise ValueError(message_)  # noqa: TRY004 - callers know one error for all that is malformed
    return found


def _printable(text: object, limit: int) -> TypeGuard[str]:
    return isinstance(text, str) and len(text) <= limit and text.isascii() and text.isprintable()
