"""One HTTP/1.1 connection without its socket: octets in, requests out; answers in, octets out.

h11 does the parsing and keeps the order of things; this adds the limits. No I/O, no threads, no paths.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

import h11
import msgspec

from station.status.view import Failure

HEAD_LIMIT: Final = 16 * 1024
"""Octets of a request line with its headers."""
BODY_LIMIT: Final = 64 * 1024
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request. `target` is as it came: printable ASCII, not decoded."""

    method: str
    target: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def json(cls, value: object) -> Answer:
        return cls(200, msgspec.json.encode(value) + b"\n")

    @classmethod
    def failure(cls, status: int, failure: Failure, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
        return cls(status, msgspec.json.encode(failure) + b"\n", headers=headers)


class Fate(enum.Enum):
    """What becomes of the connection once everything is sent."""

    NEXT = "next request"
    STREAM = "more of the same answer"
    CLOSE = "close"


class Exchange:
    """Requests one after the other on one connection. `out` is to be sent; the owner takes from its front."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        self._head: h11.Request | None = None
        self._method = b""
        self._body = bytearray()
        self.out = bytearray()
        self.streaming = False
        self.broken = False
        """Nothing more is read: what came can't be understood, or the other side has said its last."""

    @property
    def begun(self) -> bool:
        """Whether a part of a request is there, so that the rest is due."""
        return self._head is not None or bool(self._http.trailing_data[0])

    def receive(self, data: bytes) -> Request | None:
        """Takes octets (none: the other side is done sending) and gives a request when one is whole."""
        try:
            self._http.receive_data(data)
        except RuntimeError:  # h11's word for octets behind the end of the stream
            self.broken = True
            return None
        return self.next_request()

    def next_request(self) -> Request | None:
        """The next whole request of what was received. A malformed one is answered here, and then it is over."""
        try:
            while not self.broken:
                event = self._http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    break
                if isinstance(event, h11.Request):
                    self._head, self._method, self._body = event, event.method, bytearray()
                    if self._http.they_are_waiting_for_100_continue:
                        self.out += (
                            self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b""
                        )
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > BODY_LIMIT:
                        self._refuse(413, f"a body of more than {BODY_LIMIT} octets")
                elif isinstance(event, h11.EndOfMessage) and self._head is not None:
                    head, self._head = self._head, None
                    return Request(head.method.decode(), head.target.decode(), bytes(self._body))
                else:
                    self.broken = True
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, f"not HTTP/1.1 as we know it: {error}")
        return None

    def answer(self, answer: Answer) -> None:
        """Queues a whole answer to the request that `receive` gave last."""
        headers = [
            ("content-type", answer.content_type),
            ("content-length", str(len(answer.body))),
            ("cache-control", "no-store"),
            *answer.headers,
        ]
        if self.broken:
            headers.append(("connection", "close"))
        self._send(h11.Response(status_code=answer.status, headers=headers))
        if self._method != b"HEAD":  # h11 wants no body then, empty or not
            self._send(h11.Data(data=answer.body))
        self._send(h11.EndOfMessage())

    def begin_stream(self) -> None:
        """Queues the head of an answer without an end; `stream` adds lines."""
        self._send(
            h11.Response(status_code=200, headers=[("content-type", NDJSON), ("cache-control", "no-store")])
        )
        self.streaming = True

    def stream(self, lines: bytes) -> None:
        self._send(h11.Data(data=lines))

    def end_stream(self) -> None:
        self.streaming = False
        self._send(h11.EndOfMessage())

    def fate(self) -> Fate:
        """To be asked when `out` is empty; makes ready for the next request where there can be one."""
        if self.streaming:
            return Fate.STREAM
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE and not self.broken:
            self._http.start_next_cycle()
            return Fate.NEXT
        return Fate.CLOSE

    def _refuse(self, status: int, what: str) -> None:
        self.broken, self._head = True, None
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            hint = "Speak HTTP/1.1, as `curl --unix-socket` does."
            self.answer(Answer.failure(status, Failure("BadRequest", what, hint)))

    def _send(self, event: h11.Event) -> None:
        self.out += self._http.send(event) or b""
