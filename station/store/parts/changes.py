"""Waiting for what others write: no polling, no sleep. What was written is no business of this room."""

from __future__ import annotations

import threading

from station.store import audit
from station.store.part import Part


class Changes(Part):
    """Counts commits, and wakes who waits for one."""

    _changed: threading.Condition
    """Guards the two below."""
    _commits: int
    _last_event: int

    def last_event(self) -> int:
        """The highest event number there is, 0 before the first."""
        return self._last_event if self._writing else self._readers.read(audit.last)

    def wait_event(self, since: int, timeout: float) -> bool:
        """True as soon as there is an event over `since`, False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._last_event > since, timeout)

    def changes(self) -> int:
        """A number that grows with each commit and each lease that ends: for `wait_change`."""
        with self._changed:
            return self._commits

    def wait_change(self, since: int, timeout: float) -> bool:
        """True as soon as `changes` is over `since`, False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._commits > since, timeout)

    def wake(self) -> None:
        """Wakes all who wait for a change, so that they look whether to go on waiting."""
        with self._changed:
            self._commits += 1
            self._changed.notify_all()
