"""The bench line itself: boards in nests, the cloud, and the station's three daemons, kept alive."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from drivers.emulated.bench import layout as files
from drivers.emulated.bench import status
from drivers.emulated.bench.layout import Layout, NestPlan
from drivers.emulated.bench.process import Equipment, KeptProcess, wait_for
from hal.errors import StationError

DAEMONS: Final = ("signer", "run", "uploader")
BOARD: Final = (sys.executable, "-m", "drivers.emulated.board")
START_SECONDS: Final = 60.0


class Board:
    """One emulated board in its own process, with a TPM of its own."""

    def __init__(
        self, line: Layout, nest: NestPlan, serial: str, *options: str, program: Sequence[str] = BOARD
    ) -> None:
        self.nest, self.serial = nest, serial
        self.state = line.root / "bench/boards" / serial
        self.state.parent.mkdir(exist_ok=True)
        self._command = [
            *(*program, "--state", str(self.state)),
            *("--port", str(nest.port), "--ek-ca", str(line.ek_ca)),
            *("--board", nest.sku, "--serial", serial, "--until-eof", *options),
        ]
        self._log = line.logs / f"board-{serial}.log"
        self._equipment: Equipment | None = None

    def switch_on(self) -> None:
        self._equipment = Equipment(f"board {self.serial}", self._command, self._log)

    def switch_off(self) -> None:
        """Unplugged and shut down in order: its TPM's state can be opened by others."""
        if self._equipment is not None:
            self._equipment.stop()
            self._equipment = None

    def cut_power(self) -> None:
        if self._equipment is not None:
            self._equipment.kill()
            self._equipment = None

    def ask(self, command: str) -> dict[str, Any]:
        """One command to its control socket."""
        return _control(
            Path(str(self._equipment.ready["control"])) if self._equipment else self.state, command
        )


class Cloud:
    """The DPS emulator, which can go away and come back."""

    def __init__(self, line: Layout, *options: str) -> None:
        self._control = line.root / "bench/dps.sock"
        command = [
            *(sys.executable, "-m", "drivers.emulated.dps", "--state", str(line.root / "bench/dps.db")),
            *("--policy", files.POLICY, "--key-file", str(line.dps_key_file)),
            *("--control", str(self._control), *options),
        ]
        self._equipment = Equipment("DPS emulator", command, line.logs / "dps.log")
        self.endpoint = str(self._equipment.ready["endpoint"])

    def away(self) -> None:
        """Unreachable from now on: connections are refused."""
        self.tell("away")

    def back(self) -> None:
        self.tell("back")

    def tell(self, what: str) -> None:
        if status.ask(self._control, f"/emulator/{what}", "POST") is None:
            raise StationError("the DPS emulator's control socket does not answer")

    def enrollments(self) -> Any:
        """What the service has, as its API would give it."""
        return status.ask(self._control, "/emulator/enrollments")

    def stop(self) -> None:
        self._equipment.stop()


def _plain(_daemon: str) -> Sequence[str]:
    return files.HALLMARK


class Line:
    """A context manager: leaving it ends every process."""

    def __init__(
        self,
        line: Layout,
        cloud_options: Sequence[str] = (),
        launcher: Callable[[str], Sequence[str]] = _plain,
    ) -> None:
        """`launcher` gives the words that start one of DAEMONS: other than the `hallmark` command, for test benches."""
        self.layout, self._launcher = line, launcher
        files.make(line)
        self.cloud = Cloud(line, *cloud_options)
        files.write_station(line, self.cloud.endpoint)
        self._make_ca()
        self.boards: list[Board] = []
        self.daemons: dict[str, KeptProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        problems = []
        for ending in (
            *(daemon.stop for daemon in reversed(self.daemons.values())),
            *(board.switch_off for board in self.boards),
            self.cloud.stop,
        ):
            try:
                ending()
            except StationError as error:
                problems.append(str(error))
        if problems:
            raise StationError("; ".join(problems))

    def start_daemons(self) -> None:
        """Signer, station and uploader, until the station answers."""
        files.trust_ek_ca(self.layout)
        self.start_as_configured()

    def start_as_configured(self) -> None:
        """The same with the configuration as it is: a signed one bears no late change."""
        for word in DAEMONS:
            self.daemons[word] = KeptProcess(
                word,
                [*self._launcher(word), "--root", str(self.layout.root), word],
                self.layout.logs / f"{word}.log",
                self.layout.environment,
            )
        wait_for("the station to answer", START_SECONDS, self.snapshot)

    def _make_ca(self) -> None:
        files.make_ca(self.layout)

    def put_in(self, nest: NestPlan, serial: str, *options: str) -> Board:
        """A new board into a nest; the one that was there has to be out."""
        board = Board(self.layout, nest, serial, *options)
        board.switch_on()
        self.boards.append(board)
        return board

    def snapshot(self) -> dict[str, Any] | None:
        """`/v1/status`, or None while the station is away."""
        found = status.ask(self.layout.root / "run/hallmark/status.sock", "/v1/status")
        return found if isinstance(found, dict) and "nests" in found else None

    def nests(self) -> dict[str, dict[str, Any]]:
        """The nests by name; empty while the station is away."""
        found = self.snapshot()
        return {nest["name"]: nest for nest in found["nests"]} if found else {}

    def unit(self, name: str) -> dict[str, Any]:
        found = status.ask(self.layout.root / "run/hallmark/status.sock", f"/v1/units/{name}")
        return found if isinstance(found, dict) else {}


def _control(path: Path, command: str) -> dict[str, Any]:
    """One line to a control socket, one line of JSON back; StationError when it says no."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(START_SECONDS)
        connection.connect(str(path))
        connection.sendall(command.encode() + b"\n")
        with connection.makefile("rb") as stream:
            answer = json.loads(stream.readline())
    if not isinstance(answer, dict) or not answer.get("ok", True):
        raise StationError(f"{command}: {answer}")
    return answer
