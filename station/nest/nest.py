"""A nest's life: a board comes, a visit runs in a worker, the verdict stays until the next board.

Two threads a nest: this one decides, the visit's answers the worker. Nothing that happens to a worker or a board
touches another nest.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from hal.errors import Aborted, HallmarkError, Outcome, StationError
from hal.secret import Secret
from hal.types import Sighting
from station import messages
from station.nest.presence import Presence
from station.nest.screen import Screen
from station.nest.service import Services
from station.nest.visit import ROUND, Visit, seen
from station.nest.worker_process import WorkerProcess
from station.notify import Watchdog
from station.recipe import Recipe
from station.status.view import NestState, NestView
from station.wire import Problem

LOOK_AGAIN: Final = 2.0
"""Seconds between looks at what a waiting board waits for: token, disk."""
MAX_DEATHS: Final = 3
"""Workers that may die under one board before it gets a verdict."""


def _nothing() -> None:
    """What a station without an audit trail that is required asks for."""


@dataclass(frozen=True, slots=True)
class VisitTerms:
    """What every visit is told beside its recipe."""

    bench: bool
    check_token: Callable[[], None]
    """Before each unit that gets a certificate; raises what is wrong with the token."""
    issuers: Callable[[], tuple[bytes, ...]]
    """Asked for each visit: the CA's chain may be renewed meanwhile."""
    boot_id: str
    check_audit: Callable[[], None] = _nothing
    """Before each unit; raises why the audit trail keeps it from beginning."""
    long_lived_days: int = 825
    credential: Callable[[str], Secret] | None = None
    """A credential by its name, read anew for each visit; only those go to a worker that its recipe names."""


class Nest:
    """`start` it, tell it of sightings and departures, `stop` it. All methods may be called from any thread."""

    def __init__(
        self, name: str, place: str, recipe: Recipe, services: Services, terms: VisitTerms, watchdog: Watchdog
    ) -> None:
        self.name, self.recipe = name, recipe
        self._services, self._terms, self._watchdog = services, terms, watchdog
        self.screen = Screen(name, place, recipe)
        self.outcomes: Counter[str] = Counter()
        """Visits that ended since the start, by outcome."""
        self._presence = Presence()
        self._changed = self._presence.changed
        self._served = 0
        """The presence number of the board that has its verdict; -1 asks for another visit of it."""
        self._held = self._stopping = self._busy = False
        self._worker: WorkerProcess | None = None
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
        self.screen.plugged(sighting)
        self._presence.sighted(sighting)

    def departed(self) -> None:
        self.screen.plugged(None)
        self._presence.departed()

    def hold(self, held: bool) -> None:
        """While held no visit begins; one that runs goes on to its end."""
        with self._changed:
            self._held = held
            self._changed.notify_all()

    def retry(self) -> None:
        """Another visit of the board that is in the nest. LookupError when there is none, or one is running."""
        with self._changed:
            if self._presence.sighting is None or self._busy:
                raise LookupError("there is no board that waits in this nest")
            self._served = -1
            self._changed.notify_all()

    def view(self) -> NestView:
        return self.screen.view()

    # --- its own thread ---

    def _run(self) -> None:
        try:
            while self._await_board():
                self._serve()
        finally:
            if self._worker is not None:
                self._worker.stop()
            self._watchdog.unregister(self._thread.name)

    def _beat(self) -> None:
        self._watchdog.beat(self._thread.name)

    def _await_board(self) -> bool:
        """Keeps a worker warm and waits; True when a board may begin, False when the nest ends."""
        while True:
            self._beat()
            with self._changed:
                if self._stopping:
                    return False
                board = self._presence.sighting is not None and self._served != self._presence.number
                if board and not self._held:
                    return True
                self._idle()
            try:
                self._warm()
            except HallmarkError as error:
                self._log.error("no worker", code=error.code, reason=str(error))
            with self._changed:
                self._changed.wait(ROUND)

    def _idle(self) -> None:
        """The last verdict stays on the screen, whether its board is still there or not."""
        view = self.screen.view()
        if self._held:
            self.screen.state(NestState.PAUSED)
        else:
            self.screen.state(NestState.DONE if view.outcome else NestState.WAITING)

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
        number, deaths = self._presence.number, 0
        while self._still(number):
            try:
                refused = self._not_yet()
                if refused is not None and refused.retryable:
                    self._wait_for(refused)
                    continue
                died = self._visit_once(refused)
            except HallmarkError as error:
                # Not even the visit's row could be written: nothing was done to the board.
                self._log.error("no visit", code=error.code, reason=str(error))
                self._wait_for(error)
                continue
            deaths += 1
            if not died or deaths >= MAX_DEATHS:
                with self._changed:
                    self._served = number
                return

    def _still(self, number: int) -> bool:
        with self._changed:
            there = self._presence.sighting is not None and self._presence.number == number
            return there and not self._stopping and not self._held

    def _wait_for(self, error: HallmarkError) -> None:
        self.screen.waiting(Problem.of(error))
        self._beat()
        with self._changed:
            self._changed.wait(LOOK_AGAIN)

    def _not_yet(self) -> HallmarkError | None:
        """What keeps a board from beginning. Retryable: it waits for that; else it is the visit's verdict."""
        try:
            self._terms.check_audit()
            if self.recipe.issues():
                self._terms.check_token()
        except HallmarkError as error:
            return error
        return None

    def _visit_once(self, refused: HallmarkError | None) -> bool:
        """One visit with a verdict; True when its worker died and the board should get another one."""
        recipe, sighting = self.recipe, self._presence.sighting
        if sighting is None:
            return False
        permitted = None
        if refused is None and self._services.orders is not None:
            try:
                permitted = self._services.orders.permit(recipe)
            except HallmarkError as error:
                refused = error
        name = self._services.store.open_visit(
            self.name,
            sighting.place,
            recipe.sku,
            recipe.recipe_pass,
            bytes.fromhex(recipe.digest),
            self._terms.boot_id,
            self._services.configuration or None,
            permitted,
        )
        self.screen.begun(name)
        if refused is not None:
            self._close(name, refused)
            return False
        try:
            message = self._message(name, sighting)
        except (
            HallmarkError
        ) as error:  # a credential that the recipe names can't be read: no other worker can help
            self._close(name, error)
            return False
        try:
            worker = self._warm()
        except HallmarkError as error:
            self._close(name, error)
            return True
        self._worker, self._busy = None, True
        try:
            visit = Visit(name, self.name, self._presence, self.screen)
            ending = visit.run(worker, message, self._services, recipe, self._wants_to_stop, self._beat)
        finally:
            self._busy = False
        if ending.verdict is not None:
            self._show(name, *ending.verdict)
            return False
        blame = ending.reason or StationError(
            f"the process that served the board died ({ending.how})",
            hint="The board goes on by itself; if it repeats, set it aside and call an engineer.",
        )
        self._close(name, blame)
        return ending.reason is None

    def _wants_to_stop(self) -> HallmarkError | None:
        return Aborted("the station is being stopped") if self._stopping else None

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
            issuers=list(self._terms.issuers()),
            long_lived_days=self._terms.long_lived_days,
            inherits=list(recipe.inherits),
            credentials=self._credentials(),
        )

    def _credentials(self) -> dict[str, bytes]:
        names, read = self.recipe.credentials, self._terms.credential
        if names and read is None:
            raise StationError(f"this station has no credentials, and the recipe names {', '.join(names)}")
        return {name: read(name).reveal() for name in names} if read else {}

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
