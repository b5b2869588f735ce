"""A small SMP board on a pseudo-terminal that answers, loses, delays and invents as each test says."""

from __future__ import annotations

import os
import select
import struct
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import cbor2

from drivers.serial.port import SerialPort
from drivers.smp import vendor
from drivers.smp.driver import board
from drivers.smp.framing import Deframer, encode
from drivers.smp.settings import Settings

HEADER = struct.Struct("!BBHHBB")
ECHO, PARAMETERS = (0, 0), (0, 6)
STATE, UPLOAD = (1, 0), (1, 1)
IDENTIFY, TPM = (vendor.GROUP, 0), (vendor.GROUP, 1)
QUICK = Settings(timeout=0.15, erase_timeout=0.3, sync_timeout=1, sync_interval=0.1, tries=4)
RESPONSE = bytes.fromhex("80010000000a00000000")
COMMAND = bytes.fromhex("80010000000c000001440000")

Fields = dict[str, Any]
Handler = Callable[["Responder", int, Fields], Fields | bytes | None]


class Responder:
    """Answers by `handlers`: a map, whole octets for the wire, or None for silence. Echo and parameters work."""

    def __init__(self, handlers: dict[tuple[int, int], Handler], buffer: int = 512, count: int = 4) -> None:
        self.handlers: dict[tuple[int, int], Handler] = {
            ECHO: lambda _board, _number, fields: {"r": fields["d"]},
            PARAMETERS: lambda _board, _number, _fields: {"buf_size": buffer, "buf_count": count},
        } | handlers
        self.seen: list[tuple[int, int]] = []
        self.buffer = buffer
        self.late: list[bytes] = []
        self.framed = b""
        self._master, slave = os.openpty()
        tty.setraw(slave)
        self._slave = slave
        self.path = os.ttyname(slave)
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join()
        for fd in (self._stop, self._master, self._slave):
            os.close(fd)

    def send(self, data: bytes) -> None:
        os.write(self._master, data)

    def count(self, command: tuple[int, int]) -> int:
        return self.seen.count(command)

    def _run(self) -> None:
        deframer = Deframer()
        while True:
            ready, _, _ = select.select([self._master, self._stop], [], [])
            if self._stop in ready:
                return
            for message in deframer.feed(os.read(self._master, 65536)):
                self._answer(message)

    def _answer(self, message: bytes) -> None:
        assert len(message) + 4 <= self.buffer, "a request larger than the buffer"
        first, flags, _, group, sequence, command = HEADER.unpack_from(message)
        key = (group, command)
        self.seen.append(key)

        def framed(content: Fields) -> bytes:
            body = cbor2.dumps(content)
            return encode(HEADER.pack(first + 1, flags, len(body), group, sequence, command) + body)

        self.framed = framed(IDENTITY)
        handler = self.handlers.get(key, lambda _board, _number, _fields: {"rc": 8})
        answer = handler(self, self.count(key), cbor2.loads(message[HEADER.size :]))
        if isinstance(answer, dict):
            answer = framed(answer)
        if answer is not None:
            self.send(answer)


IDENTITY = {"v": 1, "board": "gw-200"}


@contextmanager
def attached(
    handlers: dict[tuple[int, int], Handler], settings: Settings = QUICK, **options: int
) -> Iterator[tuple[Responder, dict[type, Any]]]:
    responder = Responder(handlers, **options)
    try:
        port = SerialPort(responder.path, 115200)
        try:
            yield responder, cast("dict[type, Any]", board(port, settings))
        finally:
            port.close()
    finally:
        responder.close()
