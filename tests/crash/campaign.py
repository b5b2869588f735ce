"""One line, and board after board through it while one process dies at one deed. The judge has the last word.

First every process is only watched for a whole trip: the deeds that it did are the points at which it is killed later.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from drivers.emulated.bench.layout import Layout, NestPlan
from drivers.emulated.bench.line import Board, Line
from drivers.emulated.bench.process import wait_for
from hal.errors import StationError

from tests.crash.judge import Evidence, Verdict, judge
from tests.crash.trap import Trap

PROCESSES: Final = ("run", "worker", "signer", "uploader")
RECIPES: Final = ("gw-200.toml", "gw-300.toml")
TRIP_SECONDS: Final = 60.0
IMAGE_SIZE: Final = 16 * 1024
LAUNCH: Final = Path(__file__).with_name("launch.py")


@dataclass(frozen=True)
class Point:
    """`process` dies at its `deed`-th deed (from 1) of a unit's trip; "board": its power is cut at that effect."""

    process: str
    deed: int
    site: str
    recipe: str


@dataclass
class Result:
    point: Point
    died_at: str | None
    problem: str | None
    seconds: float


@dataclass
class Campaign:
    """A line in a folder of its own, used from one thread."""

    root: Path
    serials: int = 0
    seen: dict[str, str] = field(default_factory=dict)
    """The visit that each nest showed before its board came: an old verdict is nobody's."""
    results: list[Result] = field(default_factory=list)

    def __enter__(self) -> Campaign:
        (self.root / "dev").mkdir(parents=True)
        self.trap = Trap(self.root / "trap")
        nests = tuple(NestPlan(recipe[:6], self.root / "dev" / recipe[:6], recipe) for recipe in RECIPES)
        self.nests = {nest.recipe: nest for nest in nests}
        self.layout = Layout(self.root, nests, image_size=IMAGE_SIZE, quantity=100_000)
        self.line = Line(
            self.layout, launcher=lambda word: [sys.executable, str(LAUNCH), str(self.trap._path), word]
        )
        first = self.board(RECIPES[0])  # its TPM's maker has to be known before the station starts
        first.switch_off()
        self.line.start_daemons()
        wait_for(
            "the token",
            30.0,
            lambda: (
                (self.line.snapshot() or {}).get("station", {}).get("token", {}).get("condition") == "ready"
            ),
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.line.__exit__(*error)

    def board(self, recipe: str, *options: str) -> Board:
        self.serials += 1
        self.seen = {name: str(nest["visit"]) for name, nest in self.line.nests().items()}
        board = Board(
            self.layout,
            self.nests[recipe],
            f"SN-{self.serials:05}",
            "--baud",
            "0",
            "--boot-ms",
            "5",
            *options,
        )
        board.switch_on()
        return board

    def points(self, recipe: str) -> list[Point]:
        """Watches one whole trip for each process, and one for the board."""
        found: list[Point] = []
        for process in PROCESSES:
            self.trap.record(process)
            self.trip(recipe)
            self.trap.disarm()
            found += [
                Point(process, number, site, recipe) for number, site in enumerate(self.trap.recorded(), 1)
            ]
        board = self.board(recipe)
        before = int(board.ask("status")["effects"])
        self._until_passed(board)
        effects = int(board.ask("status")["effects"]) - before
        board.switch_off()
        self._until_empty(recipe)
        found += [Point("board", number, f"effect {number}", recipe) for number in range(1, effects + 1)]
        return found

    def run(self, point: Point) -> Result:
        began = time.monotonic()
        died_at, problem = None, None
        try:
            died_at = self._power_cut(point) if point.process == "board" else self._kill(point)
        except (Verdict, StationError) as error:
            problem = str(error)
        finally:
            self.trap.disarm()
        result = Result(point, died_at, problem, time.monotonic() - began)
        self.results.append(result)
        return result

    def trip(self, recipe: str) -> None:
        board = self.board(recipe)
        self._finish(board, recipe)

    def _kill(self, point: Point) -> str | None:
        self.trap.arm(point.process, point.deed)
        board = self.board(point.recipe)
        self._finish(board, point.recipe)
        return self.trap.sprung()

    def _power_cut(self, point: Point) -> str | None:
        board = self.board(point.recipe)
        board.ask(f"cut-at {point.deed} 0.5")
        self._finish(board, point.recipe)
        return point.site

    def _finish(self, board: Board, recipe: str) -> None:
        """Passed, uploaded, switched off, judged."""
        nest = self._until_passed(board)
        name = str(nest["registration_id"])
        wait_for(
            "the upload",
            TRIP_SECONDS,
            lambda: any(item["registrationId"] == name for item in self.line.cloud.enrollments()),
        )
        wait_for(
            "its receipt",
            TRIP_SECONDS,
            lambda: (self.line.snapshot() or {}).get("outbox", {}).get("queued") == 0,
        )
        board.switch_off()
        self._until_empty(recipe)
        state = self.root / "var/lib/hallmark"
        judge(
            Evidence(
                sku=board.nest.sku,
                registration_id=name,
                tpm=board.state / "tpm",
                ledger=state / "signer/ledger.db",
                database=state / "station/station.db",
                officer_key=self.layout.officer / "officer.key",
                officer_certificate=self.layout.officer / "officer.pem",
                root=state / "signer/ca-root.pem",
                intermediate=state / "signer/ca-chain.pem",
                cloud=self.line.cloud.enrollments(),
            )
        )

    def _until_passed(self, board: Board) -> dict[str, Any]:
        """The nest once it shows PASS. A board that got another verdict is plugged in again, as its hint says."""
        until = time.monotonic() + TRIP_SECONDS
        pause = threading.Event()
        while time.monotonic() < until:
            nest = self.line.nests().get(board.nest.name)
            if (
                nest
                and nest["plugged"]
                and nest["state"] == "done"
                and nest["visit"] != self.seen.get(nest["name"])
            ):
                if nest["outcome"] == "PASS":
                    return nest
                if nest["outcome"] in ("FAIL", "REFUSED"):
                    raise Verdict(f"{nest['outcome']} at {nest['step']}.{nest['action']}: {nest['message']}")
                board.ask("unplug")
                self._until_empty(board.nest.recipe)
                board.ask("plug")
            pause.wait(0.03)
        raise Verdict(f"no PASS within {TRIP_SECONDS:.0f} s: {self.line.nests().get(board.nest.name)}")

    def _until_empty(self, recipe: str) -> None:
        name = self.nests[recipe].name
        wait_for(
            "the nest to be empty",
            20.0,
            lambda: self.line.nests().get(name, {"plugged": True})["plugged"] is False,
        )
