"""Boards made ahead: making a TPM takes longer than a unit's trip, so a thread makes the next ones meanwhile."""

from __future__ import annotations

import itertools
import queue
import threading
from pathlib import Path
from typing import Final

from drivers.emulated.board.tpm import EkCertificate, manufacture
from hal.errors import HallmarkError

AHEAD: Final = 3


class Stock:
    """A context manager: leaving it ends the making."""

    def __init__(self, boards: Path, ek_ca: Path) -> None:
        """`boards`: the folder of boards, one folder a serial number."""
        self._boards, self._ek_ca = boards, ek_ca
        self._made: queue.Queue[str | HallmarkError] = queue.Queue(AHEAD)
        self._ending = threading.Event()
        self._maker = threading.Thread(target=self._make, name="stock", daemon=True)

    def __enter__(self) -> Stock:
        self._boards.mkdir(parents=True, exist_ok=True)
        self._maker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        while self._maker.is_alive():
            try:
                self._made.get(timeout=0.05)
            except queue.Empty:
                continue
        self._maker.join()

    def take(self) -> str:
        """The serial number of a new board."""
        made = self._made.get()
        if isinstance(made, HallmarkError):
            raise made
        return made

    def _make(self) -> None:
        for number in itertools.count(1):
            if self._ending.is_set():
                return
            serial = f"SN-{number:05}"
            board = self._boards / serial
            board.mkdir()
            try:
                manufacture(board / "tpm", self._ek_ca, EkCertificate.VENDOR)
            except HallmarkError as error:
                self._made.put(error)
                return
            self._made.put(serial)
