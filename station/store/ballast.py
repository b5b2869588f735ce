"""Disk space held back: on a full disk even deletes and checkpoints fail, so some of it is kept for winding up.

While the ballast is gone no new visit may start. Knows nothing of the database.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Final

SIZE: Final = 8 << 20
"""Octets: room to close every nest's visit and to record what the uploader still reports, many times over."""
MARGIN: Final = 4
"""Free space has to be this many times the ballast before it is made again."""


class Ballast:
    """A file of real blocks beside the database."""

    def __init__(self, database: Path, size: int = SIZE) -> None:
        self._path = database.with_suffix(".ballast")
        self._size = size
        self._lock = threading.Lock()

    @property
    def present(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return self._path.stat().st_size >= self._size
        return False

    def ensure(self) -> bool:
        """Makes it where it is missing and there is plenty of room. Whether it is there now."""
        with self._lock:
            if self.present:
                return True
            space = os.statvfs(self._path.parent)
            if space.f_bavail * space.f_frsize < MARGIN * self._size:
                return False
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._size)
            except OSError:
                # Somebody else took the room meanwhile: a half-made one helps nobody.
                self._path.unlink()
                return False
            finally:
                os.close(fd)
            return True

    def release(self) -> bool:
        """Gives the space back to the file system. Whether there was any."""
        with self._lock:
            try:
                self._path.unlink()
            except FileNotFoundError:
                return False
            return True
