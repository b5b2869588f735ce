"""SMP's serial framing: messages to lines of base64 and back.

What comes from a wire may be cut, flipped, mixed with console text or hostile: the deframer gives whole messages with a
right CRC, or nothing, and holds a bounded number of octets. What the octets mean is not its business.

Source: Zephyr, doc/services/device_mgmt/smp_transport.rst, "UART/serial and console".
"""

from __future__ import annotations

import binascii
import logging
from collections.abc import Iterator
from typing import Final

from smp import packet

# The library logs whole requests at DEBUG, and a warning for each version 1 answer. Payloads stay out of logs.
logging.getLogger("smp").setLevel(logging.ERROR)

MESSAGE_LIMIT: Final = 8192
"""Octets of the largest message taken: a TPM response of 4096 octets in one answer fits twice."""
LINE: Final = 127
"""Octets of a line with its newline: MCUMGR_SERIAL_MAX_FRAME of Zephyr and MCUboot."""
LEAST_LINE: Final = 16
OVERHEAD: Final = packet.FRAME_LENGTH_STRUCT.size + packet.CRC16_STRUCT.size
"""Octets that length and CRC take from the receiver's buffer beside the message."""

_DELIMITER: Final = packet.DELIMITER_SIZE
_CRC_SIZE: Final = packet.CRC16_STRUCT.size
# A line is never longer than the longest message in base64 on one line; longer ones are console text.
_LINE_LIMIT: Final = 4 * (MESSAGE_LIMIT + OVERHEAD) // 3 + 16


def encode(message: bytes, line: int = LINE) -> bytes:
    """All lines of one message, ready to be written. `line`: octets of a line at most, with its newline."""
    return b"".join(packet.encode(message, line))


class Deframer:
    """Turns what arrives, in whatever pieces, into messages. `lost` counts frames that began and weren't whole."""

    def __init__(self, limit: int = MESSAGE_LIMIT) -> None:
        self.lost = 0
        self.last_fault = ""
        """Why the last frame was lost; fixed words, nothing of the device's."""
        self._limit = limit
        self._line = bytearray()
        self._skip = False
        self._frame: bytearray | None = None
        self._length = 0

    def reset(self) -> None:
        """Forgets a part of a frame: after a time-out, when input was dropped."""
        self._line.clear()
        self._skip = False
        self._frame = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields each message (header and CBOR, without length and CRC) that `data` completes. Exhaust it."""
        begin = 0
        while (end := data.find(b"\n", begin)) >= 0:
            self._keep(data[begin:end])
            begin = end + 1
            line, skipped = bytes(self._line), self._skip
            self._line.clear()
            self._skip = False
            message = None if skipped else self._take(line)
            if message is not None:
                yield message
        self._keep(data[begin:])

    def _keep(self, part: bytes) -> None:
        if self._skip or len(self._line) + len(part) > _LINE_LIMIT:
            self._line.clear()
            self._skip = True
        else:
            self._line += part

    def _take(self, line: bytes) -> bytes | None:
        # Garbage or console text may stand before a frame on its first line; base64 has neither delimiter's octets.
        start = line.rfind(packet.START_DELIMITER)
        if start >= 0:
            if self._frame is not None:
                self._lose("the next frame began before its end")
            content = self._decoded(line[start + _DELIMITER :])
            if content is None:
                return None
            if len(content) < OVERHEAD:
                self._lose("its first line is too short")
                return None
            self._length = packet.FRAME_LENGTH_STRUCT.unpack_from(content)[0]
            if not _CRC_SIZE < self._length <= self._limit + _CRC_SIZE:
                self._lose("the length it gives is out of bounds")
                return None
            self._frame = bytearray(content[packet.FRAME_LENGTH_STRUCT.size :])
        elif self._frame is not None and line.startswith(packet.CONTINUE_DELIMITER):
            content = self._decoded(line[_DELIMITER:])
            if content is None:
                return None
            self._frame += content
        else:
            return None
        return self._whole()

    def _whole(self) -> bytes | None:
        frame = self._frame
        if frame is None or len(frame) < self._length:
            return None
        if len(frame) > self._length:
            self._lose("it is longer than it says")
            return None
        # CRC-16/XMODEM over message and CRC is zero when it is right; binascii's is the same polynomial, in C.
        if binascii.crc_hqx(frame, 0):
            self._lose("its CRC is wrong")
            return None
        self._frame = None
        return bytes(frame[:-_CRC_SIZE])

    def _decoded(self, text: bytes) -> bytes | None:
        try:
            return binascii.a2b_base64(text.rstrip(b"\r"), strict_mode=True)
        except binascii.Error:
            self._lose("it is no base64")
            return None

    def _lose(self, fault: str) -> None:
        self.lost += 1
        self.last_fault = fault
        self._frame = None
