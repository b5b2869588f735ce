"""Requests and answers over a Channel: blocking, synchronised, each answer matched to its request.

It knows sequence numbers, time-outs and the board's buffers; what a request means is the callers' business.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from smp import header, message, os_management

from drivers.smp.framing import OVERHEAD, Deframer, encode
from drivers.smp.messages import BoardError, Reply, split, understood
from drivers.smp.settings import LEAST_BUFFER, Settings
from hal.call import Call
from hal.errors import DeadlineExceeded, DeviceRefused, HallmarkError, ProtocolViolation
from hal.interfaces import Channel

R = TypeVar("R", bound=message.Response)

_SEQUENCES: Final = 256
_READ: Final = 4096
# Ends what a power-up or a cut request left in the board's line buffer. SMP servers ignore empty lines.
_END_LINE: Final = b"\n"
_ANSWER_TO: Final = {header.OP.READ: header.OP.READ_RSP, header.OP.WRITE: header.OP.WRITE_RSP}
# The first echo is often lost in a restart or garbled, and boards mostly answer within milliseconds.
_FASTER_AT_FIRST: Final = 8
# CBOR's head of a byte string grows from one octet to three up to 65535 octets of content.
_LONG_STRING_HEAD: Final = 2


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the board takes: octets of a message, and requests that may be under way at once."""

    message: int
    window: int


class Link:
    """One board's SMP server. One thread uses it at a time."""

    def __init__(self, channel: Channel, settings: Settings) -> None:
        self.settings: Final = settings
        self._channel = channel
        self._deframer = Deframer()
        self._waiting: dict[int, tuple[int, int, int]] = {}
        self._arrived: deque[Reply] = deque()
        # Answers that an earlier process asked for should fit none of our requests.
        self._sequence = secrets.randbelow(_SEQUENCES)
        self._synchronised = False
        self._lost_before = 0
        self._parameters: Parameters | None = None

    # --- single requests -------------------------------------------------------------------------------------

    def ask(
        self,
        call: Call,
        request: type[message.Request],
        response: type[R],
        what: str,
        *,
        tries: int | None = None,
        **fields: Any,
    ) -> R:
        """Sends a request until it is answered, at most `tries` times: it must be harmless when repeated.

        Raises BoardError when the board says no, DeadlineExceeded or ProtocolViolation when no whole answer came.
        """
        with self.exchange(call):
            tries = tries or self.settings.tries
            for attempt in range(tries):
                if attempt:
                    self.resynchronise(call)
                self.post(call, request, **fields)
                reply = self.receive(call, self.settings.timeout)
                if reply is not None:
                    return understood(reply, response, what)
            raise self.unanswered(what)

    def insist(
        self,
        call: Call,
        request: type[message.Request],
        response: type[R],
        what: str,
        **fields: Any,
    ) -> R:
        """Like `ask` for what may take long: repeats ever less often, and an answer to any repetition will do.

        No echo comes in between: a board that works at it couldn't answer, and its buffers would fill up.
        """
        with self.exchange(call):
            overall = call.within(self.settings.command_timeout)
            patience = self.settings.timeout
            while True:
                self.post(overall, request, **fields)
                try:
                    reply = self.receive(overall, patience)
                except DeadlineExceeded:
                    call.check()
                    raise self.unanswered(what) from None
                if reply is not None:
                    return understood(reply, response, what)
                patience *= 2
                self._channel.write(overall, _END_LINE)

    # --- what uploads are made of ----------------------------------------------------------------------------

    @contextmanager
    def exchange(self, call: Call) -> Iterator[None]:
        """Around requests that belong together: synchronised at the beginning, nothing left over from before.

        After an error other than the board's own, the line's state is unknown, and the next exchange synchronises anew.
        """
        self.forget()
        self._lost_before = self._deframer.lost
        if not self._synchronised:
            self.resynchronise(call)
        try:
            yield
        except BoardError:
            raise
        except BaseException:
            self._synchronised = False
            raise

    def post(
        self,
        call: Call,
        request: type[message.Request],
        **fields: Any,
    ) -> int:
        """Sends one request and returns its sequence number; `receive` gives its answer."""
        sequence = self._sequence
        while sequence in self._waiting:
            sequence = (sequence + 1) % _SEQUENCES
        self._sequence = (sequence + 1) % _SEQUENCES
        built = request(sequence=sequence, **fields)
        about = built.header
        self._waiting[sequence] = (_ANSWER_TO[about.op], int(about.group_id), int(about.command_id))
        self._channel.write(call, encode(bytes(built), self.settings.line))
        return sequence

    def receive(self, call: Call, patience: float) -> Reply | None:
        """The next answer to any request under way, or None after `patience` seconds.

        Answers to nothing that is under way are late ones, and dropped.
        """
        limit = call.within(patience)
        while not self._arrived:
            try:
                data = self._channel.read(limit, _READ)
            except DeadlineExceeded:
                call.check()
                return None
            for raw in self._deframer.feed(data):
                reply = split(raw)
                expected = self._waiting.get(reply.sequence)
                if expected == (reply.operation, reply.group, reply.command):
                    del self._waiting[reply.sequence]
                    self._arrived.append(reply)
        return self._arrived.popleft()

    def forget(self) -> None:
        """What is under way is no longer waited for; its answers will be dropped."""
        self._waiting.clear()
        self._arrived.clear()

    def lose(self) -> None:
        """The board restarts: it has to be found again, and may have other buffers."""
        self._synchronised = False
        self._parameters = None

    def resynchronise(self, call: Call) -> None:
        """Drops what has arrived and sends echoes until one is answered.

        Receivers garble the first octets after power-up, and a late answer must not be taken for the next one's.
        """
        limit = call.within(self.settings.sync_timeout)
        interval = self.settings.sync_interval / _FASTER_AT_FIRST
        self._synchronised = False
        try:
            while True:
                self.forget()
                self._channel.drop_input()
                self._deframer.reset()
                self._channel.write(limit, _END_LINE)
                # Any answer will do, also an error: bootloaders may know no echo.
                self.post(limit, os_management.EchoWriteRequest, d="hallmark")
                if self.receive(limit, interval) is not None:
                    self._synchronised = True
                    return
                interval = min(2 * interval, self.settings.sync_interval)
        except DeadlineExceeded:
            call.check()
            raise self.unanswered("echo") from None

    def unanswered(self, what: str) -> HallmarkError:
        """The error to raise when no answer came in this exchange: it tells silence from damage."""
        damaged = self._deframer.lost - self._lost_before
        if damaged:
            last = self._deframer.last_fault
            problem = f"no whole answer to {what}: {damaged} frames were damaged, the last because {last}"
            return ProtocolViolation(problem)
        problem = f"the board did not answer {what}"
        return DeadlineExceeded(problem)

    # --- sizes -----------------------------------------------------------------------------------------------

    def parameters(self, call: Call) -> Parameters:
        """The board's buffers by "MCUmgr parameters"; the settings' defaults where it doesn't know the command."""
        if self._parameters is None:
            size, count = self.settings.buffer, 1
            try:
                told = self.ask(
                    call,
                    os_management.MCUMgrParametersReadRequest,
                    os_management.MCUMgrParametersReadResponse,
                    "MCUmgr parameters",
                )
                size, count = told.buf_size, told.buf_count
            except BoardError:
                pass  # an older server or bootloader: SMP has no other way to say that it has no such command
            if size < LEAST_BUFFER:
                problem = f"the board says that its SMP buffer has {size} octets; {LEAST_BUFFER} are needed"
                raise DeviceRefused(problem)
            # An answer takes one of the same buffers, so a board with four is given three requests.
            window = max(1, min(count - 1, self.settings.window))
            self._parameters = Parameters(min(size, self.settings.largest) - OVERHEAD, window)
        return self._parameters

    def room(self, call: Call, request: type[message.Request], field: str, **fields: Any) -> int:
        """Octets that fit into `field` of a request with the other `fields`. Not within an exchange."""
        content: dict[str, Any] = {"sequence": 0, field: b"", **fields}
        empty = request(**content)
        return self.parameters(call).message - len(bytes(empty)) - _LONG_STRING_HEAD
