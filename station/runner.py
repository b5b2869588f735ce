"""Takes a visit's steps through in order. The only place that retries, and the only one that writes the journal.

For each action: ask the device (probe); when it isn't done, make the intent durable, do it, ask again (verify), make
the result durable. After a crash the same walk from the top finds what is done and goes on where it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol, TypeVar

import tenacity

from hal.errors import (
    Aborted,
    DeadlineExceeded,
    DeviceBusy,
    DeviceGone,
    EscrowIncomplete,
    HallmarkError,
    IdentityConflict,
    PeerUnavailable,
    RecipeError,
    TokenAbsent,
    VerifyMismatch,
)
from hal.interfaces import DeviceIdentity
from hal.types import Enrollment
from station.action import Action, Trip
from station.messages import Facts
from station.recipe import PlannedStep

T = TypeVar("T")
DEVICE_TRIES: Final = 4
"""Tries of one action against a device that answers wrongly, or whose port is held."""
SILENT_TRIES: Final = 2
"""Tries against a device that does not answer at all: its driver has waited long enough each time."""
STATION_PATIENCE: Final = 120.0
"""Seconds to wait for a part of the station that restarts, or for a CA token that was pulled."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 3.0
LOOK_AGAIN: Final = 0.05
"""Seconds between looks for a board that restarts."""


class Journal(Protocol):
    """Where intents and results go. Each call returns when it is durable."""

    def begin(self, step: str, action: str) -> None: ...

    def done(self, step: str, action: str, facts: Facts, *, found: bool) -> None: ...

    def finish(self, step: str, action: str, facts: Facts, enrollment: Enrollment | None) -> None: ...


class Place(Protocol):
    """The board's place, for actions during which it may be away."""

    def enter(self, trip: Trip) -> None:
        """Opens the board's drivers and puts their bindings into the trip."""

    def absent(self, within: float) -> None:
        """From now on the board may vanish for so many seconds."""

    def return_to(self, trip: Trip) -> None:
        """Waits until the board is there, opens it anew, and puts its bindings into the trip."""


class Reporter(Protocol):
    def phase(
        self, step: str, action: str, phase: str, *, seconds: float, note: str = "", hint: str = ""
    ) -> Callable[[int, int | None], None]:
        """Tells where the visit is; the result takes progress within this phase."""


class Runner:
    """One visit's walk through its recipe."""

    def __init__(self, trip: Trip, journal: Journal, place: Place, report: Reporter) -> None:
        self.trip, self.journal, self.place, self.report = trip, journal, place, report
        self.step, self.action = "", ""
        self._visit = trip.call

    def run(self, steps: Sequence[PlannedStep]) -> None:
        """All steps; returns when the last transaction is durable, which makes the visit a PASS."""
        self.step = self.action = "open"
        self._retrying(functools.partial(self.place.enter, self.trip))
        planned = [(item, action) for item in steps for action in item.actions]
        for item, action in planned:
            last = (item, action) == planned[-1]
            self.trip.options = item.options
            self.step, self.action = item.step.use, action.name
            self._retrying(functools.partial(self._once, action, last=last))

    def _once(self, action: Action, *, last: bool) -> None:
        trip = self.trip
        known = trip.unit is not None
        if trip.unit is None and not action.repeatable:
            raise RecipeError(f"{self.step}.{action.name} must not run before the unit is known")
        facts = self._timed(action, "probe", action.probe)
        found = facts is not None
        if facts is None:
            self.journal.begin(self.step, action.name)
            trip.begun.add(f"{self.step}.{action.name}")
            facts = self._away(action) if action.absence else self._change(action)
        joined = trip.unit is not None and not known
        trip.facts.update(facts)
        if joined:
            trip.inherit()
        if last:
            self.journal.finish(self.step, action.name, facts, trip.enrollment)
        else:
            self.journal.done(self.step, action.name, facts, found=found)

    def _change(self, action: Action) -> Facts:
        self._timed(action, "apply", action.apply)
        try:
            return self._timed(action, "verify", action.verify)
        except VerifyMismatch as error:
            # A board may have restarted in between, unseen behind a port that stays, and have forgotten what it had not
            # kept yet. What it doesn't show the second time either, it doesn't take.
            self.report.phase(self.step, action.name, "wait", seconds=1.0, note=str(error))
            self._timed(action, "apply", action.apply)
            return self._timed(action, "verify", action.verify)

    def _away(self, action: Action) -> Facts:
        """Applies what makes the board vanish, and verifies on the board that comes back to the same place."""
        within = action.absence or 0.0
        self.place.absent(within)
        until = self._visit.within(within)
        try:
            self._timed(action, "apply", action.apply)
        except DeviceGone:
            until.check()  # it went before it answered: that is what was asked of it
        while True:
            self.report.phase(self.step, action.name, "absent", seconds=within, note="the board restarts")
            try:
                self.place.return_to(self.trip)
                self._same_board()
                return self._timed(action, "verify", action.verify)
            except (DeviceGone, DeviceBusy, DeadlineExceeded) as error:
                # It answered once more before it went, or its node is not quite there: look again until the time is up.
                try:
                    until.pause(LOOK_AGAIN)
                except DeadlineExceeded:
                    raise error from None

    def _same_board(self) -> None:
        """What came back claims to be what went, where it was known before."""
        before = self.trip.facts.get("board_serial")
        if before is None or not self.trip.board.has(DeviceIdentity):
            return
        now = self.trip.need(DeviceIdentity).identify(self.trip.call).serial
        if now != before:
            raise IdentityConflict("another board came back than the one that restarted")

    def _timed(self, action: Action, phase: str, do: Callable[[Trip], T]) -> T:
        progress = self.report.phase(self.step, action.name, phase, seconds=action.seconds)
        self.trip.call = replace(self._visit.within(action.seconds), progress=progress)
        try:
            return do(self.trip)
        finally:
            self.trip.call = self._visit

    def _retrying(self, do: Callable[[], None]) -> None:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_worth_another_try),
            stop=_stop,
            wait=tenacity.wait_random_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE),
            sleep=self._visit.pause,
            before_sleep=self._tell,
            reraise=True,
        )
        retrying(do)

    def _tell(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0.0
        hint = error.hint if isinstance(error, HallmarkError) else ""
        self.report.phase(
            self.step, self.action, "wait", seconds=pause + 1.0, note=str(error or ""), hint=hint
        )


def _worth_another_try(error: BaseException) -> bool:
    return isinstance(error, HallmarkError) and error.retryable and not isinstance(error, Aborted)


def _stop(state: tenacity.RetryCallState) -> bool:
    """Boards get a few tries; the station's own parts get the time that a restart or a token swap takes."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, EscrowIncomplete):
        return False  # a person brings the medium; the board stays until then, and nothing is set on it
    if isinstance(error, PeerUnavailable | TokenAbsent):
        return (state.seconds_since_start or 0.0) >= STATION_PATIENCE
    tries = SILENT_TRIES if isinstance(error, DeadlineExceeded) else DEVICE_TRIES
    return state.attempt_number >= tries
