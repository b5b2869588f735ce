"""Between the uploader and the station, over the outbox socket: the uploader asks."""

from __future__ import annotations

from msgspec import Struct

from station.messages.basics import Blob, Name, Ok, Text
from station.wire import Problem


class Lease(Struct, frozen=True, tag="lease"):
    """At most `most` enrollments that are due, leased to this connection; they come back when it closes.

    Waits up to `wait` seconds for one. Reply `Batch`, maybe empty.
    """

    sink: Name
    most: int
    wait: float
    configuration: Blob = b""
    """SHA-256 of the signed set that the uploader runs with; empty on a bench. The station's has to be the same."""


class Item(Struct, frozen=True):
    """`seq` names the row; `enrollment` is the JSON of `hal.types.Enrollment`; `tries` so far."""

    seq: int
    registration_id: Name
    enrollment: Blob
    tries: int


class Batch(Struct, frozen=True, tag="batch"):
    """`head`: the newest signed checkpoint of the audit trail, to be sent along; empty when there is none."""

    items: list[Item]
    head: Blob = b""


class Outcome(Struct, frozen=True):
    """What became of one item: a receipt (`problem` None), or its error."""

    seq: int
    etag: str | None = None
    existed: bool = False
    problem: Problem | None = None
    sent: Blob = b""
    """The item as the service received it (JSON)."""


class Report(Struct, frozen=True, tag="report"):
    """Outcomes of leased items, durable before `Ok`. Retryable problems make the item due again, others park it."""

    outcomes: list[Outcome]


class SinkHealth(Struct, frozen=True, tag="sink-health"):
    """How the service is seen from here, for status. Reply `Ok`."""

    sink: Name
    reachable: bool
    detail: Text
    clock_skew: float | None = None
    next_try: float | None = None
    """Seconds until the next try, where one is scheduled."""


UploaderSays = Lease | Report | SinkHealth
OutboxSays = Batch | Ok | Problem
