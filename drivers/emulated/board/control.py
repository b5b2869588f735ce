"""The board's control socket, both ends: one command a line, one line of JSON in answer (see the command line's help).

What the commands do is the machine's business.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from hal.errors import ConfigError, DeviceGone, DeviceRefused, quote

LINE_LIMIT: Final = 1024
CONNECTIONS: Final = 8
_BACKLOG: Final = 8

Act = Callable[[str, list[str]], Mapping[str, object]]
"""A verb and its arguments to the answer's fields; ValueError says what is wrong with them."""


class ControlServer:
    """Serves from the machine's poll loop: whatever descriptor of it is ready goes to `serve`."""

    def __init__(self, path: Path, act: Act) -> None:
        """Only the user who runs the board may connect. ConfigError when the path can't be used."""
        self._path = path
        self._act = act
        self._lines: dict[int, tuple[socket.socket, bytearray]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Under its name only when it listens: whoever waits for the file can connect.
        fresh = path.with_name(path.name + ".new")
        try:
            fresh.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                self._listener.bind(str(fresh))
            finally:
                os.umask(before)
            self._listener.listen(_BACKLOG)
            fresh.replace(path)
        except OSError as error:
            reason = "its name is too long for a socket" if error.errno is None else error.strerror
            raise ConfigError(f"{path}: {reason}") from error

    def close(self) -> None:
        for connection, _ in self._lines.values():
            connection.close()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def filenos(self) -> list[int]:
        listening = [self._listener.fileno()] if len(self._lines) < CONNECTIONS else []
        return [*listening, *self._lines]

    def serve(self, fd: int) -> None:
        """Takes what `fd` has. A connection that says too much, or is gone, is closed."""
        if fd == self._listener.fileno():
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            self._lines[connection.fileno()] = (connection, bytearray())
        elif fd in self._lines:
            connection, buffer = self._lines[fd]
            try:
                data = connection.recv(LINE_LIMIT)
                buffer += data
                self._answer_lines(connection, buffer)
                ended = not data or len(buffer) > LINE_LIMIT
            except OSError:
                # Gone, or it asks without ever reading an answer.
                ended = True
            if ended:
                connection.close()
                del self._lines[fd]

    def _answer_lines(self, connection: socket.socket, buffer: bytearray) -> None:
        while (end := buffer.find(b"\n")) >= 0:
            line = buffer[:end].decode("utf-8", "replace")
            del buffer[: end + 1]
            connection.sendall(self._answer(line).encode() + b"\n")

    def _answer(self, line: str) -> str:
        verb, *arguments = line.split() or [""]
        try:
            answer: Mapping[str, object] = {"ok": True, **self._act(verb, arguments)}
        except ValueError as error:
            answer = {"ok": False, "error": str(error)}
        return json.dumps(answer)


class BoardControl:
    """The other end, for tests, the demo and crash rigs."""

    def __init__(self, path: Path, seconds: float = 10.0) -> None:
        """DeviceGone when no board listens at `path`; every answer within `seconds`."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(seconds)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise DeviceGone(f"no emulated board at {path}: {error.strerror}") from error
        self._input = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._input.close()
        self._socket.close()

    def ask(self, verb: str, *arguments: object) -> dict[str, Any]:
        """The answer's fields. DeviceRefused with what the board said; DeviceGone when it has ended."""
        line = " ".join([verb, *map(str, arguments)]) + "\n"
        try:
            self._socket.sendall(line.encode())
            answer = self._input.readline()
        except OSError as error:
            raise DeviceGone(f"the emulated board does not answer: {error}") from error
        if not answer:
            raise DeviceGone("the emulated board has ended")
        fields: dict[str, Any] = json.loads(answer)
        if not fields.pop("ok"):
            raise DeviceRefused(f"{verb}: {quote(fields.get('error', ''))}")
        return fields
