"""How long to wait before the next try: exponential backoff with full jitter, and what the service asked for.

Decides only; the waiting itself is the lane's, so that it can be ended at any time.
"""

from __future__ import annotations

import random
from typing import Final

from tenacity import RetryCallState, Retrying, wait_random_exponential

from hal.errors import HallmarkError, Throttled, Unreachable

FIRST_SECONDS: Final = 1.0
UNREACHABLE_CEILING: Final = 20.0
"""A try against a network that is down costs nobody anything, and the line wants to see it come back soon."""
CEILING: Final = 300.0
"""For a service that answers, but doesn't take our requests."""
JITTER_SHARE: Final = 0.1
"""Of a Retry-After, so that the stations of a factory don't come back in the same second."""


class Pace:
    def __init__(self) -> None:
        self._tries = 0

    @property
    def tries(self) -> int:
        """Failures in a row."""
        return self._tries

    def succeeded(self) -> None:
        self._tries = 0

    def failed(self, error: HallmarkError) -> float:
        """Seconds until the next try. A Retry-After is a lower bound (RFC 9110, 10.2.3)."""
        self._tries += 1
        ceiling = UNREACHABLE_CEILING if isinstance(error, Unreachable) else CEILING
        state = RetryCallState(Retrying(), None, (), {})
        state.attempt_number = self._tries
        wait = wait_random_exponential(multiplier=FIRST_SECONDS, max=ceiling)(state)
        asked = error.retry_after if isinstance(error, Throttled) else None
        if asked is None:
            return wait
        return max(wait, asked) + random.uniform(0, JITTER_SHARE * asked)  # noqa: S311 - spreads load, hides nothing
