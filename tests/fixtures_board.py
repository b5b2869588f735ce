"""Emulated boards as processes, for tests of any room: `boards.start(...)`; all are gone when the test ends."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.emulated import image
from drivers.emulated.board.control import BoardControl
from hal.types import FirmwareImage

ROOT: Final = Path(__file__).resolve().parents[1]
START_SECONDS: Final = 30


def firmware(version: str, size: int = 20_000) -> FirmwareImage:
    """An image as a step would hand it to a driver."""
    data = image.build(version, hashlib.sha256(version.encode()).digest() * (size // 32))
    return FirmwareImage(f"gw-200-{version}.bin", data, hashlib.sha256(data).digest(), version)


class Board:
    """One board's process. `options` are the command line's, without their dashes."""

    def __init__(self, state: Path, ek_ca: Path, options: dict[str, object]) -> None:
        self.state = state
        self.port = state / "port"
        named = {"state": state, "ek-ca": ek_ca, "baud": 0, **options}
        arguments = [
            text
            for name, value in named.items()
            if value is not False
            for text in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "drivers.emulated.board", "--until-eof", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def await_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read().decode()
        assert json.loads(line)["ready"]

    def ask(self, verb: str, *arguments: object) -> dict[str, Any]:
        with BoardControl(self.state / "control") as control:
            return control.ask(verb, *arguments)

    def kill(self) -> None:
        """A power cut, and the end of the board's process."""
        self.process.kill()
        self._close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self._close()

    def _close(self) -> int:
        status = self.process.wait(START_SECONDS)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status

    def processes(self) -> list[int]:
        """All processes that have this board's TPM state as their working directory, or were started with its name."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    arguments = (entry / "cmdline").read_bytes()
                    folder = str((entry / "cwd").readlink())
                except (FileNotFoundError, PermissionError, ProcessLookupError):
                    continue
                if folder.startswith(f"{self.state}/") or os.fsencode(self.state) in arguments.split(b"\0"):
                    found.append(int(entry.name))
        return found


class Boards:
    def __init__(self, folder: Path, ek_ca: Path) -> None:
        self.ek_ca = ek_ca
        self._folder = folder
        self._made: list[Board] = []

    def start(self, name: str = "board", **options: object) -> Board:
        """A board that is ready. Options: underscores for dashes; `factory_version` makes an image and puts it in."""
        return self.start_all(name, **options)[0]

    def start_all(self, *names: str, **options: object) -> list[Board]:
        """Several, made at the same time."""
        made = [self.begin(name, **options) for name in names]
        for board in made:
            board.await_ready()
        return made

    def begin(self, name: str, **options: object) -> Board:
        """One that is being made; `await_ready` returns once it is plugged in."""
        version = options.pop("factory_version", "1.0.0")
        if version is not None:
            made = self._folder / f"factory-{version}.bin"
            made.write_bytes(firmware(str(version)).data)
            options["factory-image"] = made
        board = Board(
            self._folder / name,
            self.ek_ca,
            {option.replace("_", "-"): value for option, value in options.items()},
        )
        self._made.append(board)
        return board

    def stop(self) -> None:
        for board in self._made:
            if board.process.poll() is None:
                board.kill()
            elif board.process.stdout is not None and not board.process.stdout.closed:
                board.stop()


@pytest.fixture(scope="session")
def ek_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CA of the maker of all TPMs of this test run."""
    return tmp_path_factory.mktemp("ek-ca")


@pytest.fixture
def boards(tmp_path: Path, ek_ca: Path) -> Iterator[Boards]:
    made = Boards(tmp_path, ek_ca)
    yield made
    made.stop()
