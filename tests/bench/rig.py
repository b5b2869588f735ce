"""The line that is measured: nests without boards, the three daemons, and how long each took until it was ready."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from drivers.emulated.bench import layout as files
from drivers.emulated.bench.layout import Layout, NestPlan
from drivers.emulated.bench.line import DAEMONS, Line
from drivers.emulated.bench.process import KeptProcess, wait_for
from station.paths import Paths
from station.status.client import StatusClient
from tests.bench import cost
from tests.bench.boards import Maker

READY_SECONDS = 60.0


class Rig:
    def __init__(self, line: Line) -> None:
        self.line, self.layout = line, line.layout
        self.paths = Paths(self.layout.root)
        self.client = StatusClient(self.paths.status_socket)
        self.boards = Maker(self.layout)
        self.ready: dict[str, float] = {}
        """Seconds from the start of each daemon to its READY=1, as systemd would see it."""

    def start(self, *daemons: str) -> None:
        for word in daemons or DAEMONS:
            self._start(word)

    def _start(self, word: str) -> None:
        path = self.layout.root / f"notify-{word}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
            heard.bind(str(path))
            heard.settimeout(READY_SECONDS)
            began = time.monotonic()
            self.line.daemons[word] = KeptProcess(
                word,
                self.layout.hallmark(word),
                self.layout.logs / f"{word}.log",
                {**self.layout.environment, "NOTIFY_SOCKET": str(path)},
            )
            while b"READY=1" not in heard.recv(4096):
                pass
            self.ready[word] = time.monotonic() - began

    def pid(self, word: str) -> int:
        return self.line.daemons[word].pid

    def cpu(self) -> dict[str, float]:
        """Processor seconds so far, by daemon; the workers are the station's children."""
        return {word: cost.cpu(self.pid(word)) for word in self.line.daemons}

    def wait_warm(self) -> list[int]:
        """PIDs of the workers that wait for boards, one a nest, all past their imports."""

        def idle() -> list[int]:
            workers = cost.children(self.pid("run"))
            before = [cost.own_cpu(pid) for pid in workers]
            time.sleep(0.3)
            still = before == [cost.own_cpu(pid) for pid in workers] and all(before)
            return workers if still and len(workers) == len(self.layout.nests) else []

        return wait_for("warm workers", READY_SECONDS, idle)


@contextlib.contextmanager
def rig(nests: int, image_size: int = 64 * 1024) -> Iterator[Rig]:
    """A line of its own with so many nests, below a short temporary folder; its daemons are not started yet."""
    with tempfile.TemporaryDirectory(prefix="hm-bench-") as folder:
        root = Path(folder)
        (root / "dev").mkdir()
        plans = tuple(NestPlan(f"{at}", root / f"dev/nest-{at}", "gw-300.toml") for at in range(1, nests + 1))
        with Line(Layout(root, plans, image_size=image_size, quantity=1_000_000)) as line:
            made = Rig(line)
            made.boards.make(1)  # with the first board its TPM's maker comes to be
            files.trust_ek_ca(line.layout)
            yield made
