"""NOR flash in a file: writing clears bits, erasing sets whole sectors, and power may fail in the middle of either.

No layout comes in (that is the bootloader's) and no sync to disk: what is emulated is the board's power,
not the host's.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from drivers.emulated.board.power import Power

SECTOR: Final = 4096
"""Octets erased at once."""
ERASED: Final = 0xFF


class Flash:
    """`size` octets, made erased when the file is not there."""

    def __init__(self, path: Path, size: int, power: Power, erase_seconds: float = 0.0) -> None:
        self.size = size
        self._power = power
        self._erase_seconds = erase_seconds
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        have = os.fstat(self._fd).st_size
        if have < size:
            # A crash here leaves a shorter file, which the next start fills up.
            os.pwrite(self._fd, bytes([ERASED]) * (size - have), have)

    def close(self) -> None:
        os.close(self._fd)

    def read(self, at: int, length: int) -> bytes:
        self._check(at, length)
        return os.pread(self._fd, length, at)

    def write(self, at: int, data: bytes) -> None:
        """Programs `data`: bits go from 1 to 0 only, as on NOR. Over what is not erased this makes a mess, as there."""
        old = self.read(at, len(data))
        programmed = bytes(a & b for a, b in zip(old, data, strict=True)) if old.strip(b"\xff") else data
        self._store(at, programmed)

    def erase(self, at: int, length: int) -> None:
        """Erases whole sectors; takes the erase time of each."""
        if at % SECTOR or length % SECTOR:
            raise ValueError(f"an erase of {length} octets at {at} is not of whole sectors")
        self._check(at, length)
        for sector in range(at, at + length, SECTOR):
            if self._erase_seconds:
                time.sleep(self._erase_seconds)
            self._store(sector, bytes([ERASED]) * SECTOR)

    def is_erased(self, at: int, length: int) -> bool:
        return not self.read(at, length).strip(b"\xff")

    def _store(self, at: int, data: bytes) -> None:
        if self._power.fails():
            os.pwrite(self._fd, data[: self._power.torn(len(data))], at)
            self._power.die()
        os.pwrite(self._fd, data, at)

    def _check(self, at: int, length: int) -> None:
        if at < 0 or length < 0 or at + length > self.size:
            raise ValueError(f"{length} octets at {at} are outside of a flash of {self.size}")
