"""From a received message's octets to a checked response or to the error that the board gave.

Everything a board says goes through here: bounded, one CBOR map, types checked by the response's model, unknown keys
left out (newer firmware adds some). No input or output comes in.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import cbor2
from pydantic import ValidationError
from smp import error, header, image_management, message

from drivers.smp import vendor
from drivers.smp.framing import MESSAGE_LIMIT
from hal.errors import DeviceRefused, ProtocolViolation, quote

R = TypeVar("R", bound=message.Response)

MGMT_ENOTSUP: Final = error.MGMT_ERR.ENOTSUP
MGMT_EBUSY: Final = error.MGMT_ERR.EBUSY

_HEADER: Final = struct.Struct("!BBHHBB")  # operation and version, flags, length, group, sequence, command
_OPERATION_MASK: Final = 0b111
_CBOR_DEPTH: Final = 8  # a list of images is three deep
_CBOR_FAULTS: Final = (cbor2.CBORError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole response: which request it answers (operation, group, command, sequence) and its octets."""

    operation: int
    group: int
    command: int
    sequence: int
    raw: bytes


class BoardError(DeviceRefused):
    """The board answered with an error: `rc`, in SMP's own numbers when `group` is None, else in that group's."""

    def __init__(self, text: str, *, group: int | None, rc: int) -> None:
        super().__init__(text)
        self.group, self.rc = group, rc

    @property
    def code(self) -> str:
        """Records know the class of the tree."""
        return DeviceRefused.__name__

    def is_smp(self, rc: int) -> bool:
        """Whether it is SMP's own (group-less) error `rc`."""
        return self.group is None and self.rc == rc

    def is_of(self, group: int, rc: int) -> bool:
        """Whether it is error `rc` of `group`."""
        return self.group == group and self.rc == rc


def split(raw: bytes) -> Reply:
    """A message's header, checked against its length. ProtocolViolation when they disagree."""
    if not _HEADER.size <= len(raw) <= MESSAGE_LIMIT:
        problem = f"the board sent a message of {len(raw)} octets"
        raise ProtocolViolation(problem)
    first, _flags, length, group, sequence, command = _HEADER.unpack_from(raw)
    if length != len(raw) - _HEADER.size:
        problem = f"the board sent a message of {len(raw) - _HEADER.size} octets that says it has {length}"
        raise ProtocolViolation(problem)
    return Reply(first & _OPERATION_MASK, group, command, sequence, raw)


def understood(reply: Reply, response: type[R], what: str) -> R:
    """The reply as `response`. BoardError when the board says no, ProtocolViolation when it can't be read.

    `what` names the request in messages, as in "image upload".
    """
    content = _map(reply.raw[_HEADER.size :], what)
    _raise_error(content, what)
    fields: dict[str, Any] = {key: content[key] for key in response.model_fields if key in content}
    for name in ("header", "version", "sequence", "smp_data"):
        fields.pop(name, None)
    images = fields.get("images")
    if isinstance(images, list):
        # The library's model refuses keys that it doesn't know, and boards add some.
        fields["images"] = [_known(image) for image in images]
    try:
        fields |= {"header": header.Header.loads(reply.raw[: _HEADER.size]), "smp_data": reply.raw}
        return response.model_validate(fields, strict=True)
    except (ValidationError, ValueError, TypeError, OverflowError) as exc:
        # The cause is left out: it quotes what the board sent.
        problem = f"the answer to {what} is not as SMP says ({_summary(exc)})"
        raise ProtocolViolation(problem) from None


def _known(image: object) -> object:
    if not isinstance(image, dict):
        return image
    return {key: image[key] for key in image_management.ImageState.model_fields if key in image}


def _map(data: bytes, what: str) -> Mapping[str, Any]:
    try:
        content = cbor2.loads(data, max_depth=_CBOR_DEPTH, allow_duplicate_keys=False)
    except _CBOR_FAULTS:
        problem = f"the answer to {what} is no CBOR"
        raise ProtocolViolation(problem) from None
    if not isinstance(content, dict):
        problem = f"the answer to {what} is no CBOR map"
        raise ProtocolViolation(problem)
    return cast("Mapping[str, Any]", content)


def _raise_error(content: Mapping[str, Any], what: str) -> None:
    """Version 2: {"err": {"group", "rc"}} for a group's errors; version 1 and SMP's own: {"rc"}, 0 for success."""
    details = content.get("err")
    group: int | None = None
    if details is None:
        rc = content.get("rc", 0)
    elif isinstance(details, dict) and isinstance(details.get("group"), int):
        group, rc = details["group"], details.get("rc")
    else:
        rc = None
    if not isinstance(rc, int) or isinstance(rc, bool):
        problem = f"the board's error in answer to {what} can't be read"
        raise ProtocolViolation(problem)
    if rc == 0:
        return
    where = "" if group is None else f" of group {str(group)[:12]}"
    reason = content.get("rsn")
    said = f": {quote(reason)}" if isinstance(reason, str) else ""
    problem = f"the board refused {what} with error {_named(group, rc)}{where}{said}"
    raise BoardError(problem, group=group, rc=rc)


def _named(group: int | None, rc: int) -> str:
    if group is None and rc in set(error.MGMT_ERR):
        return f"{rc} ({error.MGMT_ERR(rc).name})"
    if group == header.GroupId.IMAGE_MANAGEMENT and rc in set(image_management.IMG_MGMT_ERR):
        return f"{rc} ({image_management.IMG_MGMT_ERR(rc).name})"
    if group == vendor.GROUP and rc in set(vendor.Err):
        return f"{rc} ({vendor.Err(rc).name})"
    return str(rc)[:12]


def _summary(exc: Exception) -> str:
    if isinstance(exc, ValidationError):
        first = exc.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{quote(place, 40)}: {first['type']}"
    return type(exc).__name__
