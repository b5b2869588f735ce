"""The vendor group's transactions: an argument to a result, once on the board, whatever gets lost on the way.

The rules of both ends are in docs/vendor-group.md. What arguments and results mean doesn't come in.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from drivers.smp import vendor
from drivers.smp.link import Link
from drivers.smp.messages import MGMT_EBUSY, BoardError
from hal.call import Call
from hal.errors import DeadlineExceeded, DeviceRefused, ProtocolViolation

T = TypeVar("T")

_IDS: Final = 1 << 32
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
_WHAT: Final = {
    vendor.Command.TPM: "a TPM command",
    vendor.Command.SELF_TEST: "self-test",
    vendor.Command.KEY: "to show its key",
    vendor.Command.MAKE_KEY: "to make a key",
    vendor.Command.CSR: "a certificate request",
    vendor.Command.PROVE: "a proof of its key",
    vendor.Command.TRANSPORT_KEY: "a transport key",
    vendor.Command.INSTALL_KEY: "to install a key",
    vendor.Command.PROVE_SECRET: "a proof of its symmetric key",
}


class Transactions:
    """Runs the vendor group's commands on one board."""

    def __init__(self, link: Link) -> None:
        self._link = link
        # The board may still hold a result for an earlier process: its number should be none of ours.
        self._id = secrets.randbelow(_IDS)

    def run(self, call: Call, command: vendor.Command, argument: bytes) -> bytes:
        """The result of `command` on `argument`, each at most 4096 octets.

        BoardError when the board refuses; ProtocolViolation also when the board was reset in between, so that nobody
        knows what became of the command.
        """
        what = _WHAT[command]
        if len(argument) > vendor.PAYLOAD_LIMIT:
            problem = (
                f"{what} with {len(argument)} octets is beyond the vendor group's {vendor.PAYLOAD_LIMIT}"
            )
            raise DeviceRefused(problem)
        self._id = (self._id + 1) % _IDS
        try:
            answer = self._put(call, command, argument)
            return self._rest(call, command, answer)
        except BoardError as exc:
            if exc.is_of(vendor.GROUP, vendor.Err.UNKNOWN_TRANSACTION):
                problem = f"the board forgot {what} before it was answered: it was reset meanwhile"
                raise ProtocolViolation(problem) from exc
            raise

    def _put(self, call: Call, command: vendor.Command, argument: bytes) -> vendor.PutResponse:
        request, response = vendor.PUT_REQUEST[command], vendor.PUT_RESPONSE[command]
        total = len(argument)
        widest = {"id": _IDS - 1, "off": vendor.PAYLOAD_LIMIT, "len": vendor.PAYLOAD_LIMIT}
        room = self._link.room(call, request, "d", **widest)
        held = 0
        while True:
            fields = {"id": self._id, "off": held, "len": total, "d": argument[held : held + room]}
            answer = self._patiently(
                call,
                partial(self._link.insist, call, request, response, _WHAT[command], **fields),
            )
            self._check(answer.id)
            if answer.len is not None:
                return answer
            if not held < answer.off < total:
                raise _nonsense("takes no more of a command, but doesn't answer it")
            held = answer.off

    def _rest(self, call: Call, command: vendor.Command, answer: vendor.PutResponse) -> bytes:
        request, response = vendor.GET_REQUEST[command], vendor.GET_RESPONSE[command]
        total, result = answer.len, bytearray(answer.d or b"")
        if total is None or answer.off or len(result) > total:
            raise _nonsense("answers with a piece outside the result")
        while len(result) < total:
            fields = {"id": self._id, "off": len(result)}
            more = self._patiently(
                call,
                partial(self._link.ask, call, request, response, _WHAT[command], **fields),
            )
            self._check(more.id)
            fits = more.off == len(result) and more.len == total and len(result) + len(more.d) <= total
            if not fits or not more.d:
                raise _nonsense("answers with a piece outside the result, or an empty one")
            result += more.d
        return bytes(result)

    def _patiently(self, call: Call, attempt: Callable[[], T]) -> T:
        """Asks again while the board says that it is at it."""
        overall = call.within(self._link.settings.command_timeout)
        pause = _FIRST_PAUSE
        while True:
            try:
                return attempt()
            except BoardError as exc:
                if not exc.is_smp(MGMT_EBUSY):
                    raise
            try:
                overall.pause(pause)
            except DeadlineExceeded:
                call.check()
                seconds = self._link.settings.command_timeout
                problem = f"the board has been busy with one command for {seconds:g} s"
                raise DeadlineExceeded(problem) from None
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _check(self, said: int) -> None:
        if said != self._id:
            raise _nonsense("answers for another transaction")


def _nonsense(deed: str) -> ProtocolViolation:
    return ProtocolViolation(f"the board {deed}")
