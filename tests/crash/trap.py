"""A trap that several processes share: it counts what they do, and the one that is armed dies at its n-th deed.

The count is in a small mapped file, so that it survives the deaths, and costs nothing while no one is armed.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import threading
from pathlib import Path

SIZE = 4096
_STATE = struct.Struct("<16sII")  # who is armed ("" for nobody), deeds left, whether deeds are written down


class Trap:
    """`deed` is called by taps; `arm`, `record` and `sprung` by the campaign."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.write_bytes(bytes(SIZE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE)
        self._lock = threading.Lock()

    @property
    def log(self) -> Path:
        return self.path.with_suffix(".log")

    def arm(self, process: str, deeds: int) -> None:
        """The process dies at its `deeds`-th deed from now."""
        self._map[64:SIZE] = bytes(SIZE - 64)
        self._map[: _STATE.size] = _STATE.pack(process.encode(), deeds, 0)

    def record(self, process: str) -> None:
        """From now on the process's deeds are written down, and nobody dies."""
        self.log.write_text("")
        self._map[: _STATE.size] = _STATE.pack(process.encode(), 0, 1)

    def disarm(self) -> None:
        self._map[: _STATE.size] = _STATE.pack(b"", 0, 0)

    def sprung(self) -> str | None:
        """Where the armed process died, once it did."""
        armed, _left, _recording = _STATE.unpack(self._map[: _STATE.size])
        return None if armed.rstrip(b"\0") else self._where()

    def recorded(self) -> list[str]:
        return self.log.read_text().splitlines()

    def deed(self, process: str, site: str) -> None:
        """Something durable or irreversible is about to be done, or was just done, by `process`."""
        with self._lock:
            armed, left, recording = _STATE.unpack(self._map[: _STATE.size])
            if armed.rstrip(b"\0") != process.encode():
                return
            if recording:
                with self.log.open("a") as log:
                    log.write(site + "\n")
                return
            if left > 1:
                self._map[: _STATE.size] = _STATE.pack(armed, left - 1, 0)
                return
            self._map[64:SIZE] = site.encode()[: SIZE - 64].ljust(SIZE - 64, b"\0")
            self.disarm()
            os.kill(os.getpid(), signal.SIGKILL)

    def _where(self) -> str:
        return bytes(self._map[64:SIZE]).rstrip(b"\0").decode(errors="replace")
