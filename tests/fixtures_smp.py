"""Boards for the tests of drivers/serial and drivers/smp: the emulated one, as a process, behind the real driver."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from drivers.serial.driver import DRIVER as SERIAL
from drivers.serial.driver import Settings as SerialSettings
from drivers.smp.driver import DRIVER as SMP
from drivers.smp.settings import Settings
from hal.driver import opened
from hal.interfaces import Channel
from hal.types import Sighting

ROOT = Path(__file__).parent.parent


@dataclass
class Board:
    """One emulated board."""

    port: str
    control: Path
    settings: Settings = field(default_factory=lambda: Settings(sync_timeout=10, boot_timeout=15))

    def command(self, line: str) -> dict[str, object]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(self.control))
            client.sendall(line.encode() + b"\n")
            with client.makefile("rb") as answers:
                answer: dict[str, object] = json.loads(answers.readline())
        assert answer["ok"], answer
        return answer

    @contextmanager
    def open(self, interface: type) -> Iterator[object]:
        with self.open_all() as offered:
            yield offered[interface]

    @contextmanager
    def open_all(self) -> Iterator[Mapping[type, object]]:
        sighting = Sighting(place=f"tty:{self.port}", port=self.port)
        plan: list[tuple[str, object]] = [("channel", SerialSettings()), ("link", self.settings)]
        drivers = {"channel": SERIAL, "link": SMP}
        steps = [(role, drivers[role], settings) for role, settings in plan]
        with opened(steps, {Sighting: sighting}) as bindings:
            found: dict[type, object] = {Channel: bindings.get(Channel)}
            found |= {interface: bindings.get(interface) for interface in SMP.offers}
            yield found

    @contextmanager
    def silence(self) -> Iterator[None]:
        self.command("hang")
        try:
            yield
        finally:
            self.command("resume")


MakeBoard = Callable[..., Board]


@contextmanager
def started_boards(folder: Path) -> Iterator[MakeBoard]:
    """Starts boards with the given options; `settings` for the driver. They end with the context."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*options: str, settings: Settings | None = None) -> Board:
        state = folder / f"board-{len(running)}"
        process = subprocess.Popen(
            [sys.executable, "-m", "drivers.emulated.board", "--state", str(state), *options],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        running.append(process)
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        board = Board(ready["port"], Path(ready["control"]))
        if settings is not None:
            board.settings = settings
        return board

    try:
        yield start
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def emulated_board(tmp_path: Path) -> Iterator[MakeBoard]:
    """Starts boards that end with the test."""
    with started_boards(tmp_path) as start:
        yield start
