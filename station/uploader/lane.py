"""One sink's work, in a thread of its own: lease, upload, report, and wait after failures as `pace` says.

Whatever goes wrong, the lane goes on: the station may restart, the service may be away for weeks. Only the cancel
ends it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from hal.call import Call, Cancel
from hal.errors import Aborted, HallmarkError, Rejected, SinkError, Unreachable
from hal.interfaces import EnrollmentSink
from hal.types import Enrollment, Receipt, UploadResult
from station.enrollment import from_json
from station.messages import Batch, Item, Outcome, SinkHealth
from station.notify import Watchdog
from station.uploader.opening import Opener
from station.uploader.outbox import Outbox
from station.uploader.pace import Pace
from station.wire import Problem

LEASE_SECONDS: Final = 10.0
"""How long an idle lease waits for work; the station answers at once when there is some."""
UPLOAD_SECONDS: Final = 300.0
"""For one batch, with a look at each of its items."""
SENT_LIMIT: Final = 64 * 1024
"""Octets of `station.messages.Blob`."""
SKEW_STEP: Final = 5.0
"""Seconds of clock difference that make health worth telling again."""


class Lane:
    def __init__(
        self,
        name: str,
        sink: EnrollmentSink,
        socket: Path,
        watchdog: Watchdog,
        cancel: Cancel,
        opener: Opener,
        configuration: bytes = b"",
    ) -> None:
        """`configuration`: digest of the signed set that says where the sink is; empty on a bench."""
        self._opener = opener
        self._name, self._sink, self._socket, self._watchdog = name, sink, socket, watchdog
        self._configuration = configuration
        self._call = Call(cancel=cancel, progress=lambda _done, _total: watchdog.beat(name))
        self._upload_pace, self._station_pace = Pace(), Pace()
        self._health: SinkHealth | None = None
        self._log = structlog.get_logger().bind(sink=name)

    def run(self) -> None:
        """Until the cancel is set."""
        while not self._call.cancel.is_set():
            try:
                self._connected()
            except Aborted:
                break
            except HallmarkError as error:
                self._lost_station(error)
        self._watchdog.unregister(self._name)

    def _connected(self) -> None:
        with Outbox(self._socket, self._configuration) as outbox:
            if self._health is not None:  # a station that was restarted doesn't know it
                outbox.health(self._call, self._health)
            while True:
                self._watchdog.beat(self._name)
                wait = min(LEASE_SECONDS, self._watchdog.interval)
                leased = outbox.lease(self._call, self._name, self._sink.batch_limit, wait)
                if self._station_pace.tries:
                    self._log.info("outbox reachable again")
                self._station_pace.succeeded()
                if leased.items and not self._deliver(outbox, leased):
                    return  # connects again

    def _deliver(self, outbox: Outbox, leased: Batch) -> bool:
        """One batch: uploaded, reported, and where it failed waited for. False when the lease was given back."""
        items = leased.items
        outcomes, batch, failure = self._read(items, leased.head.decode())
        skew = None
        if batch:
            try:
                result = self._upload([enrollment for _, enrollment in batch])
            except Aborted:
                raise
            except HallmarkError as error:
                failure = error
                if isinstance(error, SinkError) and error.retryable:
                    outcomes += [Outcome(item.seq, problem=Problem.of(error)) for item, _ in batch]
            else:
                skew = result.clock_skew
                outcomes += [
                    self._outcome(item, said) for (item, _), said in zip(batch, result.items, strict=True)
                ]
                failed = (said for said in result.items if isinstance(said, HallmarkError))
                failure = next((said for said in failed if said.retryable), failure)
        if outcomes:
            outbox.report(self._call, outcomes)
        done = sum(outcome.problem is None for outcome in outcomes)
        if done:
            self._upload_pace.succeeded()
            self._log.info("uploaded", items=done, of=len(items))
        if failure is None:
            self._tell(outbox, SinkHealth(self._name, reachable=True, detail="", clock_skew=skew))
            return True
        reported = len(outcomes) == len(items)
        self._wait_after(outbox, failure, skew, reported=reported)
        return reported

    def _read(
        self, items: Sequence[Item], head: str
    ) -> tuple[list[Outcome], list[tuple[Item, Enrollment]], HallmarkError | None]:
        """Outcomes of items that can't be read (parked: no try will change that) or opened, and the others with their
        enrollments; and what has to be waited for, if anything has.
        """
        outcomes: list[Outcome] = []
        batch: list[tuple[Item, Enrollment]] = []
        failure: HallmarkError | None = None
        for item in items:
            try:
                found = replace(from_json(item.enrollment), audit_head=head)
                batch.append((item, self._opener.opened(found)))
            except SinkError as error:
                self._log.warning("not opened", unit=item.registration_id, code=error.code, reason=str(error))
                outcomes.append(Outcome(item.seq, problem=Problem.of(error)))
                failure = error if error.retryable else failure
            except HallmarkError as error:
                outcomes.append(Outcome(item.seq, problem=Problem.of(Rejected(str(error)))))
        return outcomes, batch, failure

    def _upload(self, batch: Sequence[Enrollment]) -> UploadResult:
        """The sink's answers, one for each.

        A driver's fault is told as Unreachable: it must not end the lane, and what was tried goes behind the rest, so
        that an item which provokes it can't hold the others up.
        """
        try:
            result = self._sink.upload(self._call.within(UPLOAD_SECONDS), batch)
        except HallmarkError:
            raise
        except Exception as error:
            self._log.exception("a sink's driver failed")
            raise Unreachable(f"the sink's driver failed with {type(error).__name__}") from error
        if len(result.items) != len(batch):
            raise Unreachable(f"the sink's driver answered {len(result.items)} of {len(batch)} items")
        return result

    def _outcome(self, item: Item, verdict: Receipt | HallmarkError) -> Outcome:
        if isinstance(verdict, HallmarkError):
            self._log.warning(
                "not uploaded", unit=item.registration_id, code=verdict.code, reason=str(verdict)
            )
            return Outcome(item.seq, problem=Problem.of(verdict))
        sent = verdict.sent
        if len(sent) > SENT_LIMIT:
            self._log.warning("sent form is too long to be kept", unit=item.registration_id, octets=len(sent))
            sent = b""
        return Outcome(item.seq, verdict.etag, verdict.existed, None, sent)

    def _wait_after(
        self, outbox: Outbox, failure: HallmarkError, skew: float | None, *, reported: bool
    ) -> None:
        delay = self._upload_pace.failed(failure)
        self._log.warning(
            "upload has to wait",
            code=failure.code,
            reason=str(failure),
            hint=failure.hint,
            seconds=round(delay, 1),
        )
        reachable = not isinstance(failure, Unreachable)
        detail = f"{failure}. {failure.hint}" if reachable and failure.hint else str(failure)
        self._tell(outbox, SinkHealth(self._name, reachable, detail, skew, delay))
        if not reported:
            outbox.close()  # nothing can be said of the items: this gives them back
        self._pause(delay)

    def _tell(self, outbox: Outbox, health: SinkHealth) -> None:
        """Each failure, and each change for the better."""
        before = self._health
        self._health = health
        same = (
            before is not None
            and (before.reachable, before.detail) == (health.reachable, health.detail)
            and abs((before.clock_skew or 0.0) - (health.clock_skew or 0.0)) < SKEW_STEP
        )
        if health.next_try is not None or not same:
            outbox.health(self._call, health)

    def _lost_station(self, error: HallmarkError) -> None:
        delay = self._station_pace.failed(Unreachable(str(error)))
        if self._station_pace.tries == 1:
            self._log.warning("outbox not reachable", reason=str(error))
        try:
            self._pause(delay)
        except Aborted:
            return

    def _pause(self, seconds: float) -> None:
        """Waits, with a beat each round: waiting on purpose is progress."""
        slices = max(1, math.ceil(seconds / self._watchdog.interval))
        for _ in range(slices):
            self._call.pause(seconds / slices)
            self._watchdog.beat(self._name)
