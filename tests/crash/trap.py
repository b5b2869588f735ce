"""A trap that several processes share: it counts what they do, and the one that is armed dies at a deed of its own.

It is a small mapped file, so that it survives the deaths, and costs nothing while no one is armed.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import threading
from pathlib import Path

SIZE = 4096
_STATE = struct.Struct("<16s1024sII")
"""Who is armed and at which site ("" for nobody), deeds left there, whether everybody's deeds are written down."""


class Trap:
    """`deed` is called by taps; the rest by the campaign."""

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

    def arm(self, process: str, site: str, times: int) -> None:
        """The process dies when it is at `site` for the `times`-th time from now (1: the next)."""
        self._set(process, site, times)

    def record(self) -> None:
        """From now on everybody's deeds are written down, and nobody dies."""
        self.log.write_text("")
        self._set(recording=True)

    def disarm(self) -> None:
        self._set()

    def sprung(self) -> bool:
        """Whether the armed process has died there."""
        armed, _site, _left, _recording = self._get()
        return not armed

    def recorded(self) -> dict[str, list[str]]:
        """Sites by process, in order."""
        found: dict[str, list[str]] = {}
        if not self.log.exists():
            return found
        for line in self.log.read_text().splitlines():
            process, site = line.split("\t")
            found.setdefault(process, []).append(site)
        return found

    def deed(self, process: str, site: str) -> None:
        """Something durable or irreversible is about to be done, or was just done, by `process`."""
        with self._lock:
            armed, wanted, left, recording = self._get()
            if recording:
                with self.log.open("a") as log:
                    log.write(f"{process}\t{site}\n")
                return
            if (armed, wanted) != (process, site):
                return
            if left > 1:
                self._set(armed, wanted, left - 1)
                return
            self.disarm()
            os.kill(os.getpid(), signal.SIGKILL)

    def _get(self) -> tuple[str, str, int, bool]:
        armed, site, left, recording = _STATE.unpack(self._map[: _STATE.size])
        return armed.rstrip(b"\0").decode(), site.rstrip(b"\0").decode(), left, bool(recording)

    def _set(self, process: str = "", site: str = "", left: int = 0, *, recording: bool = False) -> None:
        self._map[: _STATE.size] = _STATE.pack(process.encode(), site.encode(), left, recording)
