"""SMP's serial framing from the board's side: bytes in, whole messages out, whatever the line brings.

Written apart from the station's framing on purpose, so that one checks the other. Bounded: a line or a message that
gets too long is dropped, and so is all that can't be read. What a message means must not come in.

A line: 06 09 (first) or 04 14 (further), base64, newline. Decoded and joined: big-endian length of message and CRC,
message, CRC-16/XMODEM (Zephyr, smp_transport documentation, "SMP over console").
"""

from __future__ import annotations

import base64
import binascii
import itertools
from typing import Final

from smp import packet

FIRST: Final = b"\x06\x09"
FURTHER: Final = b"\x04\x14"
LINE_LIMIT: Final = 8192
"""Octets of one line that are taken: Zephyr's console takes 128, but longer lines are in use over USB."""
_CRC_SIZE: Final = 2
_LENGTH_SIZE: Final = 2


class Deframer:
    """Collects lines into messages of at most `limit` octets."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line = bytearray()
        self._overlong = False
        self._message: bytearray | None = None
        self.dropped = 0
        """Lines and messages that could not be read, for status."""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes."""
        found = []
        *lines, rest = data.split(b"\n")
        for piece in lines:
            self._take(piece)
            message = self._end_line()
            if message is not None:
                found.append(message)
        self._take(rest)
        return found

    def _take(self, piece: bytes) -> None:
        room = LINE_LIMIT - len(self._line)
        self._overlong = self._overlong or len(piece) > room
        self._line += piece[:room]

    def _end_line(self) -> bytes | None:
        line, overlong = bytes(self._line), self._overlong
        self._line.clear()
        self._overlong = False
        # Garbage without a newline may stand before the line, as after power-up: the last start counts.
        start = max(line.rfind(FIRST), line.rfind(FURTHER))
        if overlong or start < 0:
            if line.strip():
                self._drop()
            return None
        try:
            decoded = base64.b64decode(line[start + 2 :].rstrip(b"\r"), validate=True)
        except (binascii.Error, ValueError):
            self._drop()
            return None
        if line.startswith(FIRST, start):
            self._message = bytearray(decoded)
        elif self._message is None:
            self._drop()
            return None
        else:
            self._message += decoded
        return self._end_message()

    def _end_message(self) -> bytes | None:
        joined = self._message
        if joined is None or len(joined) < _LENGTH_SIZE:
            self._drop()
            return None
        length = int.from_bytes(joined[:_LENGTH_SIZE], "big")
        if not _CRC_SIZE < length <= self._limit + _CRC_SIZE or len(joined) > _LENGTH_SIZE + length:
            self._drop()
            return None
        if len(joined) < _LENGTH_SIZE + length:
            return None
        self._message = None
        body = bytes(joined[_LENGTH_SIZE:])
        # The CRC behind its message makes the CRC over both zero.
        if packet.crc16_func(body):
            self._drop()
            return None
        return body[:-_CRC_SIZE]

    def _drop(self) -> None:
        self._message = None
        self.dropped += 1


def frame(message: bytes, line_length: int) -> bytes:
    """`message` as lines of at most `line_length` octets."""
    length = (len(message) + _CRC_SIZE).to_bytes(_LENGTH_SIZE, "big")
    crc = packet.crc16_func(message).to_bytes(_CRC_SIZE, "big")
    encoded = base64.b64encode(length + message + crc)
    # Whole groups of four characters a line, so that each line can be decoded by itself.
    step = max(4, (line_length - len(FIRST) - len(b"\n")) // 4 * 4)
    lines = (encoded[at : at + step] for at in range(0, len(encoded), step))
    starts = itertools.chain((FIRST,), itertools.repeat(FURTHER))
    return b"".join(start + line + b"\n" for start, line in zip(starts, lines, strict=False))
