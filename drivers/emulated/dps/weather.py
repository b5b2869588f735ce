"""What can go wrong with a cloud, on order: throttling, failing requests, lost answers, delay, a clock that is off.

Also the record of requests that tests and the curious read. Decides only; answering is the server's.
"""

from __future__ import annotations

import fnmatch
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from drivers.emulated.dps.refusal import Refusal

KEPT_REQUESTS: Final = 10_000
WINDOW: Final = 60.0
"""Seconds over which the service counts operations."""
LOSE_ANSWER: Final = 0
"""In the place of a status: the request is carried out, and the connection ends without an answer."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One request to spoil. `raw` replaces the error body."""

    status: int
    retry_after: str | None = None
    raw: str | None = None


@dataclass
class Weather:
    """`rate_limit`: operations a minute, None without. `fail_bulk`: a pattern of registration IDs, and an errorCode."""

    rate_limit: int | None = None
    latency: float = 0.0
    fail_bulk: tuple[str, int] | None = None
    clock_offset: float = 0.0
    requests: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    _faults: deque[Fault] = field(default_factory=deque)
    _recent: deque[float] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> datetime:
        """The service's clock."""
        return datetime.now(UTC) + timedelta(seconds=self.clock_offset)

    def order(self, count: int, fault: Fault) -> None:
        with self._lock:
            self._faults.extend([fault] * count)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()
            self._recent.clear()
            self.rate_limit = self.fail_bulk = None
            self.latency = self.clock_offset = 0.0

    def next_fault(self) -> Fault | None:
        with self._lock:
            return self._faults.popleft() if self._faults else None

    def count_operation(self) -> None:
        """Counts one operation against the limit; a Refusal 429 with Retry-After when it is used up."""
        if self.rate_limit is None:
            return
        now = time.monotonic()
        with self._lock:
            while self._recent and self._recent[0] <= now - WINDOW:
                self._recent.popleft()
            if len(self._recent) >= self.rate_limit:
                wait = WINDOW - (now - self._recent[0]) if self._recent else WINDOW
                raise Refusal(429, "too many requests", 1, {"Retry-After": str(max(1, math.ceil(wait)))})
            self._recent.append(now)

    def bulk_error(self, registration_id: str) -> int | None:
        """The errorCode that this item of a bulk request is to fail with."""
        if self.fail_bulk is None or not fnmatch.fnmatchcase(registration_id.lower(), self.fail_bulk[0]):
            return None
        return self.fail_bulk[1]

    def note(self, **entry: Any) -> None:
        with self._lock:
            self.requests.append({"at": self.now().isoformat(), **entry})

    def noted(self) -> list[dict[str, Any]]:
        with self._lock:
            return list(self.requests)
