"""The SMP server: a message in, its answer out. Which groups there are depends on what has booted.

Headers, errors and dispatch only; what a command does belongs to the group's own file. Requests are read by the `smp`
library's models, unknown keys are ignored as firmware does, and nothing that the host sends ends the firmware.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import cbor2
from pydantic import ValidationError
from smp import header as smp_header
from smp.error import MGMT_ERR
from smp.exceptions import SMPException
from smp.message import Request

HEADER: Final = struct.Struct(">BBHHBB")
"""Operation (3 bits) and version (2 bits above), flags, length, group, sequence, command (SMP, "Frame")."""
_OP_MASK, _VERSION_SHIFT, _VERSION_MASK = 0b111, 3, 0b11

Answer = Mapping[str, Any]


class Refusal(Exception):
    """The answer is an error. Not one of ours: what the host asked for can't be had."""

    def __init__(self, rc: int, group: int | None = None) -> None:
        """`rc` of SMP itself, or of `group`."""
        super().__init__(rc, group)
        self.rc = rc
        self.group = group


@dataclass(frozen=True, slots=True)
class Command:
    """How a request is read, and what is done with it. Raises Refusal for an error answer."""

    request: type[Request]
    act: Callable[[Any], Answer]

    @property
    def key(self) -> tuple[int, int, int]:
        """Operation, group, command."""
        return (int(self.request._OP), int(self.request._GROUP_ID), int(self.request._COMMAND_ID))


class Server:
    def __init__(self, commands: list[Command], buffer_size: int) -> None:
        self._commands = {command.key: command for command in commands}
        self._buffer_size = buffer_size

    def handle(self, message: bytes) -> bytes | None:
        """The answer to `message`, or None when it is no request at all."""
        if len(message) < HEADER.size:
            return None
        first, _, length, group, sequence, number = HEADER.unpack_from(message)
        operation, version = first & _OP_MASK, first >> _VERSION_SHIFT & _VERSION_MASK
        if operation not in (smp_header.OP.READ, smp_header.OP.WRITE) or length != len(message) - HEADER.size:
            return None

        def pack(answer: Answer) -> bytes:
            body = cbor2.dumps(dict(answer))
            head = (operation + 1) | version << _VERSION_SHIFT
            return HEADER.pack(head, 0, len(body), group, sequence, number) + body

        try:
            answer = pack(self._act(operation, group, number, message))
        except Refusal as refusal:
            answer = pack(_error(refusal, version))
        return answer if len(answer) <= self._buffer_size else pack({"rc": int(MGMT_ERR.EMSGSIZE)})

    def _act(self, operation: int, group: int, number: int, message: bytes) -> Answer:
        command = self._commands.get((operation, group, number))
        if command is None:
            raise Refusal(MGMT_ERR.ENOTSUP)
        if len(message) > self._buffer_size:
            raise Refusal(MGMT_ERR.ENOMEM)
        return command.act(_read(command.request, message))


def _read(request: type[Request], message: bytes) -> Request:
    """What firmware would read: known keys only, of the right types."""
    try:
        body = cbor2.loads(message[HEADER.size :])
        if not isinstance(body, dict):
            raise Refusal(MGMT_ERR.EINVAL)
        known = {
            key: body[key] for key in body if key in request.model_fields and key not in Request.model_fields
        }
        head = smp_header.Header.loads(message[: HEADER.size])
        return request(header=head, version=head.version, smp_data=message, **known)
    except (cbor2.CBORError, SMPException, ValidationError, ValueError, TypeError, OverflowError) as error:
        raise Refusal(MGMT_ERR.EINVAL) from error
    except (RecursionError, MemoryError) as error:
        raise Refusal(MGMT_ERR.ENOMEM) from error


def _error(refusal: Refusal, version: int) -> Answer:
    if refusal.group is None:
        return {"rc": int(refusal.rc)}
    if version == smp_header.Version.V1:
        # Groups' own errors came with version 2; before that there was one list for all.
        return {"rc": int(MGMT_ERR.EUNKNOWN)}
    return {"err": {"group": int(refusal.group), "rc": int(refusal.rc)}}
