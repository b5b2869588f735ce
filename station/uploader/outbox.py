"""The uploader's end of the outbox socket: lease, report, health. Each question has one answer.

A lease lives as long as its connection, so closing gives back what was not reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from hal.call import Call
from hal.errors import DeadlineExceeded, PeerUnavailable, ProtocolViolation
from station.messages import (
    Batch,
    Lease,
    Ok,
    OutboxSays,
    Outcome,
    Report,
    SinkHealth,
    UploaderSays,
)
from station.wire import Link, Problem, connect

ANSWER_SECONDS: Final = 30.0
"""For the station to answer, over what a lease may wait: its disk may be slow, its answer has to be durable."""
FRAME_SECONDS: Final = 10.0
"""For one message, once it has begun to arrive."""


class Outbox:
    """One connection. Not for several threads."""

    def __init__(self, path: Path, configuration: bytes = b"") -> None:
        """PeerUnavailable when the station isn't there. `configuration`: digest of our signed set."""
        self._configuration = configuration
        self._link: Link[OutboxSays] = connect(path, OutboxSays)
        self._link.settimeout(FRAME_SECONDS)

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back what is leased and not reported. May be called twice."""
        with suppress(OSError):  # the other side may be gone already; there is nothing left to say to it
            self._link.close()

    def lease(self, call: Call, sink: str, most: int, wait: float) -> Batch:
        """At most `most` items, after up to `wait` seconds without any: none. With the audit trail's checkpoint."""
        answer = self._ask(call.within(wait + ANSWER_SECONDS), Lease(sink, most, wait, self._configuration))
        if not isinstance(answer, Batch):
            raise ProtocolViolation(f"the station answered a lease with {type(answer).__name__}")
        return answer

    def report(self, call: Call, outcomes: Sequence[Outcome]) -> None:
        """Returns when they are durable."""
        self._acknowledged(call, Report(list(outcomes)))

    def health(self, call: Call, health: SinkHealth) -> None:
        self._acknowledged(call, health)

    def _acknowledged(self, call: Call, message: UploaderSays) -> None:
        answer = self._ask(call.within(ANSWER_SECONDS), message)
        if not isinstance(answer, Ok):
            raise ProtocolViolation(f"the station answered with {type(answer).__name__}, not with ok")

    def _ask(self, call: Call, message: UploaderSays) -> Batch | Ok:
        try:
            self._link.send(message)
            call.wait_readable(self._link.fileno())
            answer = self._link.receive()
        except (DeadlineExceeded, TimeoutError) as error:
            raise PeerUnavailable("the station did not answer in time") from error
        if isinstance(answer, Problem):
            raise answer.error()
        return answer
