"""Which board is in which nest: turns what discovery drivers see into what nests are told.

One board a nest. What a driver saw is forgotten, place by place, when that driver has to be opened again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from hal.types import Departure, Sighting


class Claimant(Protocol):
    """A nest, as far as places go."""

    @property
    def name(self) -> str: ...

    def sighted(self, sighting: Sighting) -> None: ...

    def departed(self) -> None: ...


class Places:
    """`claim` names the nest of a place, or None. Called by the discovery drivers' threads, several at once."""

    def __init__(self, claim: Callable[[str], Claimant | None]) -> None:
        self._claim = claim
        self._lock = threading.Lock()
        self._present: dict[str, tuple[str, Sighting]] = {}
        """Place to the driver that saw it and what it saw."""
        self._holder: dict[str, str] = {}
        """Nest name to the place of the board that is in it."""

    def changed(self, driver: str, event: Sighting | Departure) -> None:
        """One thing that `driver` saw."""
        with self._lock:
            if isinstance(event, Departure):
                self._left(event.place)
            else:
                self._came(driver, event)

    def forget(self, driver: str) -> None:
        """All that `driver` saw is gone, as far as anybody knows: it is about to look anew."""
        with self._lock:
            for place in [place for place, (by, _) in self._present.items() if by == driver]:
                self._left(place)

    def unclaimed(self) -> list[str]:
        """In words, each device that no nest serves: for status."""
        with self._lock:
            return [self._why(place) for place in self._present if place not in self._holder.values()]

    def _came(self, driver: str, sighting: Sighting) -> None:
        self._present[sighting.place] = (driver, sighting)
        nest = self._claim(sighting.place)
        if nest is None:
            return
        if self._holder.setdefault(nest.name, sighting.place) == sighting.place:
            nest.sighted(sighting)

    def _left(self, place: str) -> None:
        if self._present.pop(place, None) is None:
            return
        nest = self._claim(place)
        if nest is None or self._holder.get(nest.name) != place:
            return
        del self._holder[nest.name]
        nest.departed()
        # Another board that came meanwhile to the same nest (under a glob) may take its turn now.
        for other, (_, sighting) in self._present.items():
            if self._claim(other) is nest:
                self._holder[nest.name] = other
                nest.sighted(sighting)
                return

    def _why(self, place: str) -> str:
        nest = self._claim(place)
        if nest is None:
            return f"a device at {place} is in no nest"
        return f"a second device for nest {nest.name} is at {place}"
