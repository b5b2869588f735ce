"""Auth values that an officer brings to the station for one visit: in memory only, for one EK, gone soon.

They never reach disk, log or record; that they were brought and used is on the audit trail, written by those who call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from hal.secret import Secret

LASTING: Final = 3600.0
"""Seconds that a value waits for its board."""
MOST: Final = 64
"""Boards whose values wait at once; one more takes the oldest one's place."""


@dataclass(slots=True)
class _Offer:
    auths: dict[str, Secret]
    by: str
    until: float
    visit: str | None = None
    """The visit that has used it: no other one gets it."""


class Offered:
    """Thread-safe. By EK Name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._offers: dict[bytes, _Offer] = {}

    def put(self, ek_name: bytes, auths: Mapping[str, Secret], by: str) -> None:
        """In the place of what waits for this EK already."""
        with self._lock:
            self._tidy()
            self._offers.pop(ek_name, None)
            while len(self._offers) >= MOST:
                self._offers.pop(next(iter(self._offers)))
            self._offers[ek_name] = _Offer(dict(auths), by, self._clock() + LASTING)

    def waits(self, ek_name: bytes) -> bool:
        with self._lock:
            self._tidy()
            offer = self._offers.get(ek_name)
            return offer is not None and offer.visit is None

    def in_use(self, ek_name: bytes, visit: str) -> bool:
        """Whether this visit has taken what was brought for that EK."""
        with self._lock:
            offer = self._offers.get(ek_name)
            return offer is not None and offer.visit == visit

    def take(self, ek_name: bytes, visit: str) -> tuple[dict[str, Secret], str, bool] | None:
        """(values by hierarchy, who brought them, whether this is the first time), for the first visit that asks."""
        with self._lock:
            self._tidy()
            offer = self._offers.get(ek_name)
            if offer is None or offer.visit not in (None, visit):
                return None
            first, offer.visit = offer.visit is None, visit
            return dict(offer.auths), offer.by, first

    def over(self, visit: str) -> None:
        """The visit has its verdict: what it used is gone."""
        with self._lock:
            self._offers = {name: offer for name, offer in self._offers.items() if offer.visit != visit}

    def _tidy(self) -> None:
        now = self._clock()
        self._offers = {name: offer for name, offer in self._offers.items() if offer.until > now}
