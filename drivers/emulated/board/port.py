"""Where the host finds the board: a pseudo-terminal behind a stable link, there while it is plugged in.

Octets pass as they are. Pace, noise and power are not the port's business.
"""

from __future__ import annotations

import errno
import os
import tty
from pathlib import Path

from hal.errors import ConfigError


class Port:
    """Unplugged at first. `link` is made when it is plugged in, and removed when it is not."""

    def __init__(self, link: Path) -> None:
        self._link = link
        self._board: int | None = None
        self._host: int | None = None
        if link.is_symlink():
            link.unlink()  # left by a board that lost its process
        elif link.exists():
            raise ConfigError(f"{link} is not a board's port; it is left alone")

    @property
    def plugged(self) -> bool:
        return self._board is not None

    def fileno(self) -> int:
        """The board's end; only while plugged in."""
        if self._board is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return self._board

    def plug(self) -> None:
        if self._board is not None:
            return
        self._board, self._host = os.openpty()
        # Kept open by us as well: a terminal that nobody has open falls back to echo and line editing, and would
        # answer the board with its own words before the host has set it up.
        tty.setraw(self._host)
        os.set_blocking(self._board, False)
        fresh = self._link.with_name(f".{self._link.name}.{os.getpid()}")
        fresh.symlink_to(os.ttyname(self._host))
        fresh.replace(self._link)

    def unplug(self) -> None:
        """The link goes, then the terminal: whoever has it open sees a hang-up, as with a USB adapter."""
        if self._board is None or self._host is None:
            return
        self._link.unlink(missing_ok=True)
        os.close(self._host)
        os.close(self._board)
        self._board = self._host = None

    def read(self, limit: int) -> bytes:
        """What the host has written; empty when there is nothing."""
        try:
            return os.read(self.fileno(), limit)
        except BlockingIOError:
            return b""

    def write(self, data: bytes) -> int:
        """Octets that the host's side took. The rest is lost, as when a driver's buffer is full."""
        try:
            return os.write(self.fileno(), data)
        except BlockingIOError:
            return 0
