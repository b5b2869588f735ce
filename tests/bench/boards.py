"""Boards for the line: made beforehand, waiting on the table, then plugged in one after the other."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from drivers.emulated.bench.layout import Layout, NestPlan
from drivers.emulated.bench.process import wait_for
from drivers.emulated.board.control import BoardControl
from drivers.emulated.board.tpm import EkCertificate, manufacture
from tests.bench import cost


class TableBoard:
    """An emulated board without a cable until `plug`. Ends with this process."""

    def __init__(self, layout: Layout, nest: NestPlan, serial: str, baud: int) -> None:
        self.nest = nest
        self._state = layout.root / "bench/boards" / serial
        self._socket = self._state / "control"
        options = ("--unplugged", "--until-eof", "--baud", str(baud), "--board", nest.sku, "--serial", serial)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "drivers.emulated.board", "--state", str(self._state)),
                *("--port", str(nest.port), "--ek-ca", str(layout.ek_ca), *options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )

    def ready(self) -> TableBoard:
        wait_for("a board", 30.0, self._socket.exists)
        self.control = BoardControl(self._socket)
        return self

    def ask(self, verb: str) -> dict[str, Any]:
        return self.control.ask(verb)

    def cpu(self) -> float:
        return cost.cpu(self._process.pid)

    def scrap(self) -> None:
        self.control.close()
        self._process.terminate()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


class Maker:
    """Gives boards their TPMs ahead of time: making one takes a second of processor time."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._count = 0

    def make(self, count: int) -> list[str]:
        """Serial numbers of `count` new boards."""
        serials = [f"SN-{self._count + index:04}" for index in range(1, count + 1)]
        self._count += count
        folders = [self._layout.root / "bench/boards" / serial for serial in serials]
        with ThreadPoolExecutor(2) as pool:
            for made in [pool.submit(self._manufacture, folder) for folder in folders]:
                made.result()
        return serials

    def _manufacture(self, state: Path) -> None:
        state.mkdir(parents=True)
        manufacture(state / "tpm", self._layout.ek_ca, EkCertificate.VENDOR)
