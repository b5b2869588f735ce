"""One direction of a serial line: octets take their time, and may be flipped or lost on the way.

Arithmetic over given times (seconds, monotonic) only: who reads, writes and waits is the machine.
"""

from __future__ import annotations

import collections
import random
from typing import Final

BITS_PER_OCTET: Final = 10
"""8N1: start bit, eight data bits, stop bit."""
GRAIN: Final = 0.004
"""Seconds after which a part of a longer run is delivered; its end always comes on time."""


class Line:
    """Octets go in when they are written and come out when their stop bit has passed; `baud` 0: at once.

    The line's own clock counts: what is delivered late, because the host's scheduler was, does not delay what follows.
    """

    def __init__(self, baud: int, noise: float, loss: float, chance: random.Random) -> None:
        self._seconds = BITS_PER_OCTET / baud if baud else 0.0
        self.noise = noise
        self.loss = loss
        self._chance = chance
        self._runs: collections.deque[tuple[float, bytes]] = collections.deque()
        """Runs of octets without a gap, each with the time at which its first octet's start bit began."""
        self._free_at = 0.0
        self._queued = 0

    def __len__(self) -> int:
        """Octets under way."""
        return self._queued

    def push(self, data: bytes, now: float) -> None:
        """`data` is written at `now`, and follows what is under way."""
        start = max(self._free_at, now)
        self._free_at = start + len(data) * self._seconds
        self._runs.append((start, data))
        self._queued += len(data)

    def pop(self, now: float) -> bytes:
        """What has arrived by `now` and was not popped before."""
        arrived = bytearray()
        while self._runs:
            start, data = self._runs[0]
            # The tolerance is for sums of floating-point durations, which must not hold back a run's last octet.
            count = int((now - start) / self._seconds + 1e-3) if self._seconds else len(data)
            if count <= 0:
                break
            arrived += data[:count]
            self._runs.popleft()
            if count < len(data):
                self._runs.appendleft((start + count * self._seconds, data[count:]))
                break
        self._queued -= len(arrived)
        return self._disturb(bytes(arrived)) if self.noise or self.loss else bytes(arrived)

    def due(self, now: float) -> float | None:
        """When to `pop` next; None when nothing is under way."""
        if not self._runs:
            return None
        start, data = self._runs[0]
        return min(start + len(data) * self._seconds, max(now, start) + GRAIN)

    def clear(self) -> None:
        """The sender has lost power: what was under way is lost."""
        self._runs.clear()
        self._queued = 0
        self._free_at = 0.0

    def _disturb(self, data: bytes) -> bytes:
        survived = bytearray()
        for octet in data:
            if self._chance.random() < self.loss:
                continue
            flip = 1 << self._chance.randrange(8) if self._chance.random() < self.noise else 0
            survived.append(octet ^ flip)
        return bytes(survived)
