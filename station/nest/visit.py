"""One visit while it runs: a worker that serves the board, a thread that answers it, and the reasons to stop it.

Ends in a verdict that the store has, or with the worker's death. What a nest does between visits is not in here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from hal.errors import DeadlineExceeded, DeviceGone, HallmarkError, Outcome, PeerUnavailable
from hal.types import Sighting
from station import messages
from station.logs import replay
from station.nest.presence import Presence
from station.nest.screen import Screen
from station.nest.service import Services, VisitService
from station.nest.worker_process import WorkerProcess
from station.recipe import Recipe
from station.wire import Problem

CANCEL_GRACE: Final = 3.0
"""Seconds that a cancelled worker has to let go of its board before it is killed."""
OVERRUN_GRACE: Final = 5.0
"""Seconds beyond an action's own time after which its process is given up: a call hangs in a C library."""
ROUND: Final = 1.0
"""Seconds of one wait: after each, `beat` is called."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a visit ended: by a `verdict` (durable), by a `reason` the station had, or as its worker died (`how`)."""

    verdict: tuple[Outcome, Problem | None] | None
    reason: HallmarkError | None
    how: str


class Visit:
    """Implements `station.nest.service.Watcher` for its worker's requests."""

    def __init__(self, name: str, nest: str, presence: Presence, screen: Screen) -> None:
        self.name, self._nest = name, nest
        self._presence, self._screen = presence, screen
        self._changed = presence.changed
        self._number = presence.number
        self._answered = False
        self._cancelled = False
        self._verdict: tuple[Outcome, Problem | None] | None = None
        self._phase_until = float("inf")
        self._log = structlog.get_logger().bind(nest=nest, visit=name)

    def run(
        self,
        worker: WorkerProcess,
        message: messages.Visit,
        services: Services,
        recipe: Recipe,
        stopping: Callable[[], HallmarkError | None],
        beat: Callable[[], object],
    ) -> Ending:
        """Serves the board to its end. `stopping` says why the nest wants it stopped, None while it doesn't."""
        service = VisitService(services, self.name, recipe, self)
        answering = threading.Thread(target=self._answer, args=(service, worker), name=f"visit-{self._nest}")
        reason = None
        self._screen.served_by(worker.pid)
        try:
            worker.link.send(message)
            answering.start()
            reason = self._supervise(worker, stopping, beat)
        except PeerUnavailable:
            self._log.info("worker was gone before its visit")
        how = worker.stop()
        if answering.ident is not None:
            answering.join()
        self._screen.served_by(0)
        self._presence.allow_absence(None)
        return Ending(self._verdict, reason, how)

    # --- Watcher: what the worker's requests change ---

    def joined(self, unit: messages.Unit) -> None:
        self._screen.joined(unit)

    def software_tpm(self) -> None:
        self._screen.software_tpm()

    def progress(self, message: messages.Progress) -> None:
        with self._changed:
            self._phase_until = time.monotonic() + message.seconds + OVERRUN_GRACE
        self._screen.progress(message)

    def absent(self, within: float | None) -> None:
        self._presence.allow_absence(within)

    def await_board(self) -> messages.Seen:
        with self._changed:
            while (sighting := self._presence.sighting) is None:
                left = self._presence.absence_left()
                if left in (0.0, float("inf")) or self._cancelled:
                    raise DeviceGone("the board did not come back from its restart")
                self._changed.wait(left)
            return seen(sighting)

    def ended(self, problem: Problem | None) -> None:
        outcome = problem.error().outcome if problem else Outcome.PASS
        with self._changed:
            self._verdict = (outcome, problem)
            self._changed.notify_all()

    def log(self, message: messages.Log) -> None:
        unit = self._screen.view().unit or None
        replay(message.level, message.event, message.fields, nest=self._nest, visit=self.name, unit=unit)

    # --- the two threads ---

    def _answer(self, service: VisitService, worker: WorkerProcess) -> None:
        try:
            service.serve(worker.link)
        except HallmarkError as error:
            if not service.ended:
                self._log.warning("worker lost", code=error.code, reason=str(error))
        finally:
            with self._changed:
                self._answered = True
                self._changed.notify_all()

    def _supervise(
        self,
        worker: WorkerProcess,
        stopping: Callable[[], HallmarkError | None],
        beat: Callable[[], object],
    ) -> HallmarkError | None:
        """Returns when there is a verdict or the worker is gone; what was held against it, None when it just died."""
        reason: HallmarkError | None = None
        with self._changed:
            while not self._answered and self._verdict is None:
                beat()
                now = time.monotonic()
                if reason is None:
                    reason = stopping() or self._reason_to_stop(now)
                    if reason is not None:
                        self._cancel(worker, reason)
                elif now >= self._phase_until:
                    worker.kill()
                left = min(ROUND, self._phase_until - now, self._presence.absence_left())
                self._changed.wait(max(0.01, left))
        return reason

    def _reason_to_stop(self, now: float) -> HallmarkError | None:
        if self._presence.number != self._number:
            return DeviceGone("the board was unplugged")
        if self._presence.overdue():
            return DeviceGone("the board did not come back from its restart")
        if now >= self._phase_until:
            return DeadlineExceeded("the board did not answer, and the call to it could not be stopped")
        return None

    def _cancel(self, worker: WorkerProcess, reason: HallmarkError) -> None:
        """Asks it to let go of the board; its grace begins."""
        self._cancelled = True
        self._phase_until = time.monotonic() + CANCEL_GRACE
        self._presence.allow_absence(None)
        self._changed.notify_all()
        try:
            worker.link.send(messages.Cancel(Problem.of(reason)))
        except PeerUnavailable:
            self._log.info("worker was gone before its cancel")


def seen(sighting: Sighting) -> messages.Seen:
    return messages.Seen(
        sighting.place,
        sighting.port,
        sighting.vendor_id,
        sighting.product_id,
        sighting.serial_number,
        sighting.description,
    )
