"""What a nest shows: kept by its thread and its visit's, read by the status socket's. No decisions here."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

from hal.errors import Outcome
from hal.types import Sighting
from station import messages
from station.recipe import Recipe
from station.status.view import NestState, NestView
from station.wire import Problem


@dataclass(frozen=True, slots=True)
class _Visit:
    """The board that is in the nest, or the last one."""

    visit: str = ""
    unit: str = ""
    registration_id: str = ""
    step: str = ""
    action: str = ""
    phase: str = ""
    note: str = ""
    done: int = 0
    total: int | None = None
    started_at: float | None = None
    began: float | None = None
    ended: float | None = None
    action_began: float | None = None
    outcome: str = ""
    problem: str = ""
    message: str = ""
    hint: str = ""
    software_tpm: bool = False


@dataclass(slots=True)
class Screen:
    """One nest's. Every method is safe to call from any thread."""

    name: str
    place: str
    recipe: Recipe
    _state: NestState = NestState.STARTING
    _plugged: bool = False
    _worker: int = 0
    _visit: _Visit = field(default_factory=_Visit)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def state(self, state: NestState) -> None:
        with self._lock:
            self._state = state

    def plugged(self, sighting: Sighting | None) -> None:
        with self._lock:
            self._plugged = sighting is not None

    def waiting(self, problem: Problem) -> None:
        """A board is there, and the station has to wait for something before it can begin."""
        with self._lock:
            self._visit = _Visit(
                phase="wait",
                problem=problem.code,
                message=problem.message,
                hint=problem.hint,
                note=problem.message,
            )
            self._state = NestState.PAUSED

    def served_by(self, worker: int) -> None:
        """The PID of the visit's process; 0 when it is gone."""
        with self._lock:
            self._worker = worker

    def begun(self, visit: str) -> None:
        """A new board: the last one's verdict goes."""
        now = time.monotonic()
        with self._lock:
            self._visit = _Visit(visit=visit, started_at=time.time(), began=now, action_began=now)
            self._state = NestState.BUSY

    def joined(self, unit: messages.Unit) -> None:
        with self._lock:
            self._visit = replace(self._visit, unit=unit.unit, registration_id=unit.registration_id)

    def software_tpm(self) -> None:
        with self._lock:
            self._visit = replace(self._visit, software_tpm=True)

    def progress(self, message: messages.Progress) -> None:
        with self._lock:
            now = self._visit
            same = (now.step, now.action, now.phase) == (message.step, message.action, message.phase)
            self._visit = replace(
                now,
                step=message.step,
                action=message.action,
                phase=message.phase,
                note=message.note,
                hint=message.hint,
                done=message.done,
                total=message.total,
                action_began=now.action_began if same else time.monotonic(),
            )
            self._state = NestState.AWAY if message.phase == "absent" else NestState.BUSY

    def ended(self, outcome: Outcome, problem: Problem | None) -> None:
        """The verdict, which stays until the next board."""
        with self._lock:
            self._visit = replace(
                self._visit,
                outcome=outcome.value,
                ended=time.monotonic(),
                problem=problem.code if problem else "",
                message=problem.message if problem else "",
                hint=problem.hint if problem else "",
            )
            self._state = NestState.DONE

    def view(self) -> NestView:
        with self._lock:
            state, plugged, visit, worker = self._state, self._plugged, self._visit, self._worker
        now = time.monotonic()
        uses = [item.step.use for item in self.recipe.steps]
        return NestView(
            name=self.name,
            place=self.place,
            state=state,
            plugged=plugged,
            safe_to_unplug=state not in (NestState.BUSY, NestState.AWAY),
            sku=self.recipe.sku,
            visit=visit.visit,
            unit=visit.unit,
            registration_id=visit.registration_id,
            step=visit.step,
            action=visit.action,
            phase=visit.phase,
            step_index=uses.index(visit.step) + 1 if visit.step in uses else 0,
            step_count=len(uses),
            steps=uses,
            done=visit.done,
            total=visit.total,
            unit_of_progress="octets" if visit.step == "flash" else "",
            started_at=visit.started_at,
            elapsed=None if visit.began is None else (visit.ended or now) - visit.began,
            action_elapsed=None if visit.action_began is None else (visit.ended or now) - visit.action_began,
            worker=worker,
            software_tpm=visit.software_tpm,
            outcome=visit.outcome,
            problem=visit.problem,
            message=visit.message or visit.note,
            hint=visit.hint,
        )
