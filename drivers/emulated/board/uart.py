"""One direction of a serial line: octets take their time, may be flipped or lost, and may wait in a USB adapter.

Arithmetic over given times (seconds, monotonic) only: who reads, writes and waits is the machine.
"""

from __future__ import annotations

import collections
import random
from typing import Final

BITS_PER_OCTET: Final = 10
"""8N1: start bit, eight data bits, stop bit."""
ADAPTER_PACKET: Final = 62
"""Octets with which an FTDI adapter sends at once: a full-speed USB packet of 64 less two of modem status."""
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


class Adapter:
    """A USB adapter's latency timer (FTDI AN232B-04): fewer octets than a packet wait for its next tick."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._held = bytearray()
        self._tick = 0.0
        """The timer's next tick, while octets are held."""

    def push(self, data: bytes, now: float) -> None:
        if data and not self._held:
            # The timer runs on by itself; every packet starts it anew.
            ticks = int(max(0.0, now - self._tick) / self._seconds) + 1 if self._seconds else 0
            self._tick = self._tick + ticks * self._seconds if ticks else now
        self._held += data

    def pop(self, now: float) -> bytes:
        """What goes to the host by `now`."""
        whole = len(self._held) if self._tick <= now else len(self._held) // ADAPTER_PACKET * ADAPTER_PACKET
        packets = bytes(self._held[:whole])
        del self._held[:whole]
        if packets:
            self._tick = now + self._seconds if self._held else now
        return packets

    def due(self) -> float | None:
        return self._tick if self._held else None

    def clear(self) -> None:
        self._held.clear()
