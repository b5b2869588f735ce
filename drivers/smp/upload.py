"""Image upload that keeps the wire full and goes on from what the board acknowledged.

Several requests are under way at once; the board takes them in order and answers each with the offset it has reached.
A lost or damaged frame shows as an answer with another offset than expected: then the line is left to drain and the
upload goes on from the board's offset. Whether the image is right is for the caller to check.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from smp import image_management

from drivers.smp.link import Link
from drivers.smp.messages import understood
from hal.call import Call
from hal.errors import ProtocolViolation

_WHAT: Final = "image upload"
# Flash is written in blocks (up to 32 octets on current MCUs); MCUboot's recovery takes only whole ones of a piece.
_BLOCK: Final = 32
# The last answer may come after the board has hashed its flash: octets a second of a slow MCU.
_HASHED_PER_SECOND: Final = 100_000
_LEAST_PATIENCE: Final = 0.25
_SLACK: Final = 4
_BIG_OFFSET: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class _Piece:
    sequence: int
    begin: int
    end: int


class Upload:
    """One image on its way. `matched` afterwards: the board's own verdict on the SHA-256 of its flash, or None."""

    def __init__(self, link: Link, call: Call, data: bytes, image: int) -> None:
        self.matched: bool | None = None
        self._link, self._call, self._data = link, call, data
        self._first = {
            "off": 0,
            "len": len(data),
            "sha": hashlib.sha256(data).digest(),
            "image": image or None,
        }
        request = image_management.ImageUploadWriteRequest
        self._first_room = _whole_blocks(link.room(call, request, "data", **self._first))
        self._room = _whole_blocks(link.room(call, request, "data", off=_BIG_OFFSET))
        self._window = link.parameters(call).window
        self._acknowledged = 0
        self._best = 0
        self._next = 0
        self._under_way: deque[_Piece] = deque()
        self._careful = True
        self._stalls = 0
        self._slowest = 0.0

    def run(self) -> None:
        """Returns when the board says that it has everything, or that it has begun anew after it had everything."""
        total = len(self._data)
        with self._link.exchange(self._call):
            while self._acknowledged < total:
                self._fill()
                began = time.monotonic()
                reply = self._link.receive(self._call, self._patience())
                if reply is None:
                    self._lost()
                    continue
                if self._acknowledged:
                    self._slowest = max(self._slowest, time.monotonic() - began)
                answer = understood(reply, image_management.ImageUploadWriteResponse, _WHAT)
                if answer.off is None or not 0 <= answer.off <= total:
                    problem = "the board's answer to image upload has no offset, or one outside the image"
                    raise ProtocolViolation(problem)
                finished = self._take(reply.sequence, answer.off)
                self.matched = answer.match
                if finished:
                    return

    def _fill(self) -> None:
        # The first request may mean an erase, and after a loss it has to be seen where the board is: one at a time.
        window = 1 if self._careful else self._window
        while self._next < len(self._data) and len(self._under_way) < window:
            begin = self._next
            request = image_management.ImageUploadWriteRequest
            if begin == 0:
                data = self._data[: self._first_room]
                sequence = self._link.post(self._call, request, data=data, **self._first)
            else:
                data = self._data[begin : begin + self._room]
                sequence = self._link.post(self._call, request, data=data, off=begin)
            self._next = begin + len(data)
            self._under_way.append(_Piece(sequence, begin, self._next))

    def _take(self, sequence: int, offset: int) -> bool:
        piece = self._under_way.popleft()
        while piece.sequence != sequence:
            # The board takes requests in order: an older one, or its answer, was lost.
            piece = self._under_way.popleft()
        if offset > self._best:
            self._best = offset
            self._stalls = 0
            self._call.progress(offset, len(self._data))
        if offset == piece.end:
            self._acknowledged = offset
            self._careful = self._careful and bool(self._under_way)
            return False
        if offset == 0 and piece.end == len(self._data) and self._acknowledged:
            # The last piece was taken before, its answer was lost, and the board's upload session has ended.
            return True
        if offset <= self._acknowledged:
            self._stall()
        self._acknowledged = self._next = offset
        self._careful = True
        return False

    def _lost(self) -> None:
        self._stall()
        self._link.resynchronise(self._call)
        self._under_way.clear()
        self._next = self._acknowledged
        self._careful = True

    def _stall(self) -> None:
        self._stalls += 1
        if self._stalls >= self._link.settings.tries:
            raise self._link.unanswered(f"{_WHAT} at offset {self._acknowledged}")

    def _patience(self) -> float:
        settings = self._link.settings
        if self._acknowledged == 0:
            return settings.erase_timeout
        if self._under_way[0].end == len(self._data):
            return settings.timeout + len(self._data) / _HASHED_PER_SECOND
        if not self._slowest:
            return settings.timeout
        # A lost frame costs little more than the answers of this board and line take; giving up on one too early costs
        # an echo and a piece sent twice.
        return min(settings.timeout, max(_LEAST_PATIENCE, _SLACK * self._slowest))


def _whole_blocks(room: int) -> int:
    return room - room % _BLOCK if room >= 8 * _BLOCK else room - room % 8
