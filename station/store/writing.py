"""What only the station that writes has: the lock, the writer's thread, the ballast, the leases. Readers have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw

from hal.errors import StoreUnavailable
from station.store.ballast import Ballast
from station.store.database import StationLock, open_writer
from station.store.leases import Leases
from station.store.writer import Writer


class Writing:
    """Opened lock first, closed lock last."""

    def __init__(self, path: Path, committed: Callable[[apsw.Connection], None], ballast: int) -> None:
        self.lock = StationLock(path)
        self.ballast = Ballast(path, ballast)
        self.leases = Leases()
        try:
            try:
                db = open_writer(path)
            except StoreUnavailable:
                # On a full disk the WAL's index can't be made either.
                if not self.ballast.release():
                    raise
                db = open_writer(path)
            self.ballast.ensure()
            self.writer = Writer(db, committed)
            # A crash may have left in the WAL what was deleted before it.
            self.writer.scrub()
        except BaseException:
            self.lock.release()
            raise

    def close(self) -> None:
        if self.writer.close():
            self.lock.release()
