"""Asks a running station over its status socket. For the command line: no knowledge of units, no retries."""

from __future__ import annotations

import http.client
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from hal.errors import HallmarkError, PeerUnavailable, ProtocolViolation
from station.status.view import EventView, Failure, Snapshot

PATIENCE: Final = 15.0
"""Seconds: a little more than the server gives itself. An event stream has a line, a heartbeat maybe, more often."""
ANSWER_LIMIT: Final = 64 << 20
LINE_LIMIT: Final = 1 << 20
T = TypeVar("T")


class Refused(HallmarkError):
    """The station answered, and said no; `failure` is what it said, `status` the HTTP status."""

    def __init__(self, status: int, failure: Failure) -> None:
        super().__init__(failure.message, hint=failure.hint)
        self.status, self.failure = status, failure


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("hallmark", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # With settimeout first, connect would not wait for a place in a full backlog: EAGAIN, unix(7) and connect(2).
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(PATIENCE), 0))
        self.sock.connect(str(self._path))
        self.sock.settimeout(PATIENCE)


class StatusClient:
    """One question, one connection. PeerUnavailable when no station answers, `Refused` when it says no."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def has_socket(self) -> bool:
        """Whether there is something to ask, even if nobody answers just now."""
        return self._path.is_socket()

    def snapshot(self) -> Snapshot:
        found: Snapshot = self.get("/v1/status", Snapshot)
        return found

    def get(self, path: str, kind: type[T] | Any = Any, **parameters: str | int | None) -> Any:
        """The JSON at `path`, decoded as `kind`. Parameters that are None are left out."""
        return decode(self.fetch("GET", path, **parameters), kind)

    def post(self, path: str, **parameters: str | int | None) -> Any:
        """The parameters go in the request's body: what must not stand in a path, nor in a log, may be among them."""
        return decode(self.fetch("POST", path, **parameters), Any)

    def fetch(self, method: str, path: str, **parameters: str | int | None) -> bytes:
        """The answer's octets."""
        return self._read(*self._ask(method, path, parameters))

    def _read(self, connection: _Connection, answer: http.client.HTTPResponse) -> bytes:
        try:
            body = answer.read(ANSWER_LIMIT)
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(error) from error
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            raise Refused(answer.status, decode(body, Failure))
        return body

    def events(self, since: int | None = None) -> Iterator[EventView]:
        """Events as they come, heartbeats among them; PeerUnavailable when the station goes. Close it when done."""
        connection, answer = self._ask("GET", "/v1/events", {"since": since})
        try:
            if answer.status != 200:
                raise Refused(answer.status, decode(answer.read(ANSWER_LIMIT), Failure))
            while line := answer.readline(LINE_LIMIT):
                yield decode(line, EventView)
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(error) from error
        finally:
            connection.close()
        message = "the station ended the stream of events"
        raise PeerUnavailable(message)

    def _ask(
        self, method: str, path: str, parameters: dict[str, str | int | None]
    ) -> tuple[_Connection, http.client.HTTPResponse]:
        given = {name: value for name, value in parameters.items() if value is not None}
        target, body = path, None
        if method == "POST":
            body = msgspec.json.encode(given) if given else None
        elif given:
            target = f"{path}?{urlencode(given)}"
        connection = _Connection(self._path)
        try:
            connection.request(method, target, body)
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> PeerUnavailable:
        said = (
            os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
        )
        hint = "Start it (`systemctl start hallmark-station`, or `hallmark run`), or name its --root."
        return PeerUnavailable(f"no station answers at {self._path}: {said}", hint=hint)


def segment(text: str) -> str:
    """A unit's or nest's name as one segment of a path."""
    return quote(text, safe="")


def decode(body: bytes, kind: Any) -> Any:
    """An answer as a view type; ProtocolViolation for one that doesn't fit."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        message = f"the station's answer can't be read: {error}"
        raise ProtocolViolation(message, hint="Station and command are of different versions.") from error
