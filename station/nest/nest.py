"""A nest's life: a board comes, a visit runs in a worker, the verdict stays until the next board.

Two threads a nest: this one decides (board gone, worker dead, time over, drain), the visit's answers the
worker. Nothing that happens to a worker or a board touches another nest.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from hal.errors import (
    Aborted,
    DeadlineExceeded,
    DeviceGone,
    HallmarkError,
    Outcome,
    PeerUnavailable,
    StationError,
)
from hal.types import Sighting
from station import messages
from station.logs import replay
from station.nest.screen import Screen
from station.nest.service import Services, VisitService
from station.nest.worker_process import WorkerProcess
from station.notify import Watchdog
from station.recipe import Recipe
from station.status.view import NestState, NestView
from station.wire import Problem

CANCEL_GRACE: Final = 3.0
"""Seconds that a cancelled worker has to let go of its board before it is killed."""
OVERRUN_GRACE: Final = 5.0
"""Seconds beyond an action's own time after which its process is given up: a call hangs in a C library."""
LOOK_AGAIN: Final = 2.0
"""Seconds between looks at what a waiting board waits for (token, work order, disk)."""
MAX_DEATHS: Final = 3
"""Workers that may die under one board before it gets a verdict."""
ROUND: Final = 1.0
"""Seconds of one wait: after each the watchdog hears of it."""


@dataclass(frozen=True, slots=True)
class VisitTerms:
    """What every visit of this nest is told beside its recipe: read anew for each, they may change meanwhile."""

    bench: bool
    trust: tuple[bytes, ...]
    issuers: Callable[[], tuple[bytes, ...]]
    boot_id: str


class Nest:
    """`start` it, tell it of sightings and departures, `stop` it. All methods may be called from any thread."""

    def __init__(
        self, name: str, place: str, recipe: Recipe, services: Services, terms: VisitTerms, watchdog: Watchdog
    ) -> None:
        self.name, self.recipe = name, recipe
        self._services, self._terms, self._watchdog = services, terms, watchdog
        self.screen = Screen(name, place, recipe)
        self._changed = threading.Condition()
        self._sighting: Sighting | None = None
        self._number = 0
        """Counts boards: each sighting that isn't the end of an absence is another one."""
        self._served = 0
        self._held = False
        self._stopping = False
        self._worker: WorkerProcess | None = None
        self._visit = _Running()
        self.outcomes: Counter[str] = Counter()
        """Visits that ended since the start, by outcome."""
        self._thread = threading.Thread(target=self._run, name=f"nest-{name}")
        self._log = structlog.get_logger().bind(nest=name)
        watchdog.register(self._thread.name)

    # --- what others tell it ---

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the visit as ABORTED, and the nest. Returns when its worker is gone."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def sighted(self, sighting: Sighting) -> None:
        with self._changed:
            self._sighting = sighting
            if not self._visit.away():
                self._number += 1
            self.screen.plugged(sighting)
            self._changed.notify_all()

    def departed(self) -> None:
        with self._changed:
            self._sighting = None
            if not self._visit.away():
                self._number += 1
            self.screen.plugged(None)
            self._changed.notify_all()

    def hold(self, held: bool) -> None:
        """While held no visit begins; one that runs goes on to its end."""
        with self._changed:
            self._held = held
            self._changed.notify_all()

    def retry(self) -> None:
        """Another visit of the board that is in the nest. LookupError when there is none, or one is running."""
        with self._changed:
            if self._sighting is None or self._visit.running:
                raise LookupError("there is no board that waits in this nest")
            self._served = -1
            self._changed.notify_all()

    @property
    def free(self) -> bool:
        """No visit runs: it is safe to unplug, and to stop."""
        return not self._visit.running

    def view(self) -> NestView:
        return self.screen.view()

    # --- the visit's thread tells it ---

    def joined(self, unit: messages.Unit) -> None:
        self.screen.joined(unit)

    def progress(self, message: messages.Progress) -> None:
        with self._changed:
            self._visit.phase_until = time.monotonic() + message.seconds + OVERRUN_GRACE
        self.screen.progress(message)

    def absent(self, within: float | None) -> None:
        with self._changed:
            self._visit.away_until = None if within is None else time.monotonic() + within
            self._changed.notify_all()

    def await_board(self) -> messages.Seen:
        with self._changed:
            visit = self._visit
            while self._sighting is None:
                left = (visit.away_until or 0.0) - time.monotonic()
                if left <= 0 or visit.cancelled:
                    raise DeviceGone("the board did not come back from its restart")
                self._changed.wait(left)
            return seen(self._sighting)

    def ended(self, problem: Problem | None) -> None:
        outcome = problem.error().outcome if problem else Outcome.PASS
        with self._changed:
            self._visit.verdict = (outcome, problem)
            self._changed.notify_all()

    def log(self, message: messages.Log) -> None:
        replay(
            message.level, message.event, message.fields, nest=self.name, unit=self.screen.view().unit or None
        )

    # --- its own thread ---

    def _run(self) -> None:
        try:
            while self._await_board():
                self._serve()
        finally:
            if self._worker is not None:
                self._worker.stop()
            self._watchdog.unregister(self._thread.name)

    def _await_board(self) -> bool:
        """Keeps a worker warm and waits; True when a board may begin, False when the nest ends."""
        while True:
            self._watchdog.beat(self._thread.name)
            with self._changed:
                if self._stopping:
                    return False
                board = self._sighting is not None and self._served != self._number
                if board and not self._held:
                    return True
                if self._sighting is None or board:
                    self._idle()
            try:
                self._warm()
            except HallmarkError as error:
                self._log.error("no worker", code=error.code, reason=str(error))
            with self._changed:
                self._changed.wait(ROUND)

    def _idle(self) -> None:
        view = self.screen.view()
        if self._held:
            self.screen.state(NestState.PAUSED)
        elif not view.outcome:
            self.screen.state(NestState.WAITING)
        elif view.state is NestState.PAUSED:
            self.screen.state(NestState.DONE)

    def _warm(self) -> WorkerProcess:
        """A worker whose drivers are imported, so that a board doesn't wait for that."""
        if self._worker is not None and not self._worker.alive():
            self._worker.stop()
            self._worker = None
        if self._worker is None:
            self._worker = WorkerProcess([plan.driver for plan in self.recipe.drivers])
        self._worker.wait_ready()
        return self._worker

    def _serve(self) -> None:
        """One board, from here to its verdict. Workers that die under it are replaced a few times."""
        with self._changed:
            number = self._number
        deaths = 0
        while self._still(number):
            problem = self._not_yet()
            if problem is not None and problem.error().retryable:
                self.screen.waiting(problem)
                self._watchdog.beat(self._thread.name)
                with self._changed:
                    self._changed.wait(LOOK_AGAIN)
                continue
            try:
                died = self._visit_once(problem, last=deaths + 1 >= MAX_DEATHS)
            except HallmarkError as error:
                # Not even the visit's row could be written: nothing was done to the board.
                self.screen.waiting(Problem.of(error))
                self._log.error("no visit", code=error.code, reason=str(error))
                with self._changed:
                    self._changed.wait(LOOK_AGAIN)
                continue
            deaths += 1
            if not died or deaths >= MAX_DEATHS:
                break
        with self._changed:
            if self._number == number or self._served == -1:
                self._served = number

    def _still(self, number: int) -> bool:
        with self._changed:
            return (
                self._number == number
                and not self._stopping
                and not self._held
                and self._sighting is not None
            )

    def _not_yet(self) -> Problem | None:
        """What keeps a board from beginning. Retryable: it waits for that; else it is the visit's verdict."""
        if not self.recipe.issues():
            return None
        try:
            self._services.signer.check_token()
        except HallmarkError as error:
            return Problem.of(error)
        return None

    def _visit_once(self, refused: Problem | None, *, last: bool) -> bool:
        """One visit with a verdict; True when its worker died and the board should get another one."""
        store, recipe = self._services.store, self.recipe
        with self._changed:
            sighting = self._sighting
        if sighting is None:
            return False
        visit = store.open_visit(
            self.name,
            sighting.place,
            recipe.sku,
            recipe.recipe_pass,
            bytes.fromhex(recipe.digest),
            self._terms.boot_id,
        )
        self.screen.begun(visit)
        if refused is not None:
            self._close(visit, refused.error())
            return False
        with self._changed:
            self._visit = _Running(running=True)
        try:
            worker = self._warm()
            self._worker = None
        except HallmarkError as error:
            self._close(visit, error)
            with self._changed:
                self._visit.running = False
            return not last
        service = VisitService(self._services, visit, recipe, self)
        answering = threading.Thread(target=self._answer, args=(service, worker), name=f"visit-{self.name}")
        self.screen.served_by(worker.pid)
        try:
            worker.link.send(self._message(visit, sighting))
            answering.start()
            reason = self._supervise(worker)
        except PeerUnavailable:
            reason = None
        how = worker.stop()
        self.screen.served_by(0)
        if answering.ident is not None:
            answering.join()
        with self._changed:
            verdict, self._visit.running = self._visit.verdict, False
        if verdict is not None:
            self._show(visit, *verdict)
            return False
        died = reason is None
        blame = reason or StationError(
            f"the process that served the board died ({how})",
            hint="The board goes on by itself; if it repeats, set it aside and call an engineer.",
        )
        self._close(visit, blame)
        return died and not last

    def _message(self, visit: str, sighting: Sighting) -> messages.Visit:
        recipe = self.recipe
        return messages.Visit(
            visit=visit,
            nest=self.name,
            station=self._services.station,
            bench=self._terms.bench,
            sku=recipe.sku,
            recipe_pass=recipe.recipe_pass,
            sighting=seen(sighting),
            drivers=list(recipe.drivers),
            steps=recipe.step_plans(),
            trust=list(self._terms.trust),
            issuers=list(self._terms.issuers()),
        )

    def _answer(self, service: VisitService, worker: WorkerProcess) -> None:
        try:
            service.serve(worker.link)
        except HallmarkError as error:
            if not service.ended:
                self._log.warning("worker lost", code=error.code, reason=str(error))
        finally:
            with self._changed:
                self._visit.answered = True
                self._changed.notify_all()

    def _supervise(self, worker: WorkerProcess) -> HallmarkError | None:
        """Returns when the visit has a verdict or its worker is gone; what was held against it, None when it
        just died.
        """
        reason: HallmarkError | None = None
        with self._changed:
            number = self._number
            while not self._visit.answered and self._visit.verdict is None:
                self._watchdog.beat(self._thread.name)
                now = time.monotonic()
                if reason is None:
                    reason = self._reason_to_stop(number, now)
                    if reason is not None:
                        self._visit.cancelled = True
                        self._visit.phase_until = now + CANCEL_GRACE
                        self._changed.notify_all()
                        self._cancel(worker, reason)
                elif now >= self._visit.phase_until:
                    worker.kill()
                self._changed.wait(min(ROUND, max(0.01, self._visit.next_deadline() - now)))
        return reason

    def _reason_to_stop(self, number: int, now: float) -> HallmarkError | None:
        if self._stopping:
            return Aborted("the station is being stopped")
        if self._number != number:
            return DeviceGone("the board was unplugged")
        if self._visit.away_until is not None and self._sighting is None and now >= self._visit.away_until:
            return DeviceGone("the board did not come back from its restart")
        if now >= self._visit.phase_until:
            return DeadlineExceeded("the board did not answer, and the call to it could not be stopped")
        return None

    def _cancel(self, worker: WorkerProcess, reason: HallmarkError) -> None:
        try:
            worker.link.send(messages.Cancel(Problem.of(reason)))
        except PeerUnavailable:
            self._log.info("worker was gone before its cancel")

    def _close(self, visit: str, error: HallmarkError) -> None:
        """The verdict of a visit that its worker could not report itself."""
        self._services.store.fail(visit, None, None, error.code, str(error), error.hint, error.outcome)
        self._show(visit, error.outcome, Problem.of(error))

    def _show(self, visit: str, outcome: Outcome, problem: Problem | None) -> None:
        self.outcomes[outcome.value] += 1
        self.screen.ended(outcome, problem)
        view = self.screen.view()
        self._log.info(
            "visit ended",
            visit=visit,
            unit=view.unit,
            step=view.step,
            outcome=outcome.value,
            code=problem.code if problem else None,
            reason=problem.message if problem else None,
            seconds=round(view.elapsed or 0.0, 3),
        )


@dataclass(slots=True)
class _Running:
    """The visit that runs, guarded by the nest's condition."""

    running: bool = False
    answered: bool = False
    cancelled: bool = False
    verdict: tuple[Outcome, Problem | None] | None = None
    away_until: float | None = None
    phase_until: float = float("inf")

    def away(self) -> bool:
        """Whether the board may vanish and come back just now."""
        return (
            self.running
            and not self.cancelled
            and self.verdict is None
            and self.away_until is not None
            and time.monotonic() < self.away_until
        )

    def next_deadline(self) -> float:
        return min(self.phase_until, self.away_until or float("inf"))


def seen(sighting: Sighting) -> messages.Seen:
    return messages.Seen(
        sighting.place,
        sighting.port,
        sighting.vendor_id,
        sighting.product_id,
        sighting.serial_number,
        sighting.description,
    )
