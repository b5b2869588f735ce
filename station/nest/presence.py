"""Whether a board is in the nest, and which: what discovery tells, kept for the nest's and the visit's threads."""

from __future__ import annotations

import threading
import time

from hal.types import Sighting


class Presence:
    """Every method takes the one condition that both threads of a nest wait on: `changed`."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._sighting: Sighting | None = None
        self._number = 0
        self._away_until: float | None = None

    @property
    def sighting(self) -> Sighting | None:
        """The board that is there now."""
        with self.changed:
            return self._sighting

    @property
    def number(self) -> int:
        """Counts boards: each that comes or goes outside an absence makes it another number."""
        with self.changed:
            return self._number

    def sighted(self, sighting: Sighting) -> None:
        self._change(sighting)

    def departed(self) -> None:
        self._change(None)

    def _change(self, sighting: Sighting | None) -> None:
        with self.changed:
            self._sighting = sighting
            if not self._may_be_away():
                self._number += 1
            self.changed.notify_all()

    def allow_absence(self, within: float | None) -> None:
        """For so many seconds the board may vanish and come back and still be the same; None ends that."""
        with self.changed:
            self._away_until = None if within is None else time.monotonic() + within
            self.changed.notify_all()

    def _may_be_away(self) -> bool:
        return self._away_until is not None and time.monotonic() < self._away_until

    def overdue(self) -> bool:
        """It went as it was allowed to, and did not come back in time."""
        with self.changed:
            return self._away_until is not None and self._sighting is None and not self._may_be_away()

    def absence_left(self) -> float:
        """Seconds until an allowed absence ends; infinite without one."""
        with self.changed:
            return float("inf") if self._away_until is None else max(0.0, self._away_until - time.monotonic())
