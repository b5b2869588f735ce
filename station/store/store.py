"""The store as the station uses it: each method one durable transaction, or one bounded read.

It only puts its parts together, opens and closes them, and tells of commits: what `Store` can do stands in `parts`, by
name. A method that writes returns once its rows are on the disk, or raises and has changed nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import apsw

from station.store import audit
from station.store.ballast import SIZE
from station.store.parts.audit import Audit
from station.store.parts.certificates import Certificates
from station.store.parts.decisions import Decisions
from station.store.parts.ek_lists import EkLists
from station.store.parts.escrow import Escrow
from station.store.parts.orders import Orders
from station.store.parts.outbox import Outbox
from station.store.parts.stock import Stock
from station.store.parts.trust import Trust
from station.store.parts.units import Units
from station.store.parts.visits import Visits
from station.store.readers import Readers
from station.store.writing import Writing


def wall_clock() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


class Store(Visits, Units, Escrow, Certificates, Stock, Trust, EkLists, Orders, Decisions, Outbox, Audit):
    """One station's memory. Thread-safe. `open` it, `close` it."""

    def __init__(self, path: Path, *, readonly: bool, clock: Callable[[], int], ballast: int) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._commits = 0
        self._last_event = 0
        self._writing = None if readonly else Writing(path, self._on_commit, ballast)
        self._readers = Readers(path)
        try:
            self._last_event = self._readers.read(audit.last)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        readonly: bool = False,
        clock: Callable[[], int] = wall_clock,
        ballast: int = SIZE,
    ) -> Self:
        """Opens or makes the store. StationError when another station has it, StoreUnavailable when the disk won't."""
        return cls(path, readonly=readonly, clock=clock, ballast=ballast)

    def close(self) -> None:
        """Waits for what is being written, and wakes whoever waits for events."""
        # The writer last: the last connection to close empties the WAL, which a reader could not.
        self._readers.close()
        if self._writing is not None:
            self._writing.close()
        with self._changed:
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def release_ballast(self) -> bool:
        """Gives the space that is held back to the file system. It is made again when there is plenty."""
        return self._writable.ballast.release()

    def ensure_ballast(self) -> bool:
        """Whether the space for winding up is held back, making it where there is room."""
        return self._writable.ballast.ensure()

    @property
    def trouble(self) -> str | None:
        """What keeps the writer from tidying up, for status; None when nothing does."""
        return self._writing.writer.trouble if self._writing else None

    def _on_commit(self, db: apsw.Connection) -> None:
        last = audit.last(db)
        with self._changed:
            self._last_event = last
            self._commits += 1
            self._changed.notify_all()
