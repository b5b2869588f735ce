"""One line, and board after board through it while one process dies at one deed. The judge has the last word.

First every process is only watched for a whole trip: the deeds that it did are the points at which it is killed later.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from drivers.emulated import image
from drivers.emulated.bench.layout import Layout, NestPlan
from drivers.emulated.bench.line import Board, Line
from drivers.emulated.bench.process import wait_for
from drivers.emulated.dps.control import Control
from hal.errors import StationError
from tests.crash import lasting
from tests.crash.judge import Evidence, Verdict, judge, software_tpm
from tests.crash.stock import Stock
from tests.crash.trap import Trap

PROCESSES: Final = ("run", "worker", "signer", "uploader", "board")
RECIPES: Final = ("gw-200.toml", "gw-300.toml")
BATCH: Final = "batch"
"""A trip of one board of each recipe at once, while the cloud is away; it comes back to a batch, and fails once."""
START: Final = "start"
"""The process is killed and started again, then a board of the first recipe comes."""
STARTED: Final = ("run", "signer")
TRIP_SECONDS: Final = 60.0
IMAGE_SIZE: Final = 16 * 1024
FACTORY_VERSION: Final = "1.0.0"
"""What boards of the second recipe come with, so that theirs is swapped, tried and kept; the first one's are blank."""
HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class Point:
    """`process` dies in that trip (a recipe, BATCH or START) when it is at `site` for the `times`-th time (from 1).

    "board": its power is cut in the middle of its `deed`-th effect.
    """

    process: str
    deed: int
    site: str
    times: int
    trip: str


@dataclass
class Result:
    """`died_at`: None when the process never did so many deeds. `problem`: None when the judge found nothing."""

    point: Point
    died_at: str | None
    problem: str | None
    seconds: float


@dataclass
class Campaign:
    """A line in a folder of its own, used from one thread."""

    root: Path
    every_effect: bool = False
    """Whether TPM commands that change nothing lasting are points of the board too."""
    seen: dict[str, str] = field(default_factory=dict)
    """The visit that each nest showed before its board came: an old verdict is nobody's."""

    def __enter__(self) -> Campaign:
        with ExitStack() as stack:
            self._open(stack)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _open(self, stack: ExitStack) -> None:
        (self.root / "dev").mkdir(parents=True)
        self.trap = Trap(self.root / "trap")
        nests = tuple(NestPlan(recipe[:6], self.root / "dev" / recipe[:6], recipe) for recipe in RECIPES)
        self.nests = {nest.recipe: nest for nest in nests}
        self.layout = Layout(self.root, nests, image_size=IMAGE_SIZE, quantity=100_000)
        words = [sys.executable, str(HERE / "launch.py"), str(self.trap.path)]
        self.line = stack.enter_context(Line(self.layout, launcher=lambda daemon: [*words, daemon]))
        factory = self.root / "bench/factory.bin"
        factory.write_bytes(image.build(FACTORY_VERSION, bytes(range(256)) * (IMAGE_SIZE // 256)))
        self.factory = {RECIPES[1]: ("--factory-image", str(factory))}
        self.stock = stack.enter_context(Stock(self.root / "bench/boards", self.layout.ek_ca))
        first = self.stock.take()  # its TPM's maker has to be known before the station starts
        with software_tpm(self.root / "bench/boards" / first / "tpm") as tool:
            lasting.write(self._lasting, lasting.codes(tool("tpm2_getcap", "commands")))
        self.line.start_daemons()
        self._until_ready()

    @property
    def _lasting(self) -> Path:
        return self.trap.path.with_suffix(".lasting")

    def points(self, trip: str, processes: Sequence[str] = PROCESSES) -> Iterator[Point]:
        """Watches whole trips: what was done there by those processes."""
        if trip == START:
            done = {process: self._start(process) for process in STARTED if process in processes}
        elif trip == BATCH:
            done = {"uploader": self._watched(BATCH)["uploader"]}
        else:
            done = self._watched(trip)
        for process in processes:
            found = done.get(process, [])
            for number, site in enumerate(found, 1):
                yield Point(process, number, site, found[:number].count(site), trip)

    def _start(self, process: str) -> list[str]:
        """What it did before the board came, which is watched by itself."""
        with_board, board = self._watched(START, process)[process], self._watched(RECIPES[0])[process]
        return with_board[: len(with_board) - len(board)]

    def _watched(self, trip: str, process: str = "") -> dict[str, list[str]]:
        """The deeds of each process in one trip, and the effects on its first board."""
        self.trap.record()
        try:
            boards = self._go(process, trip)
        finally:
            self.trap.disarm()
        return {**self.trap.recorded(), "board": boards[0].effects.read_text().splitlines()}

    def run(self, point: Point) -> Result:
        began = time.monotonic()
        died_at, problem = None, None
        try:
            died_at = self._power_cut(point) if point.process == "board" else self._kill(point)
        except (Verdict, StationError) as error:
            problem = str(error)
        finally:
            self.trap.disarm()
        return Result(point, died_at, problem, time.monotonic() - began)

    def _kill(self, point: Point) -> str | None:
        def arm() -> None:
            self.trap.arm(point.process, point.site, point.times)

        self._go(point.process, point.trip, arm)
        return point.site if self.trap.sprung() else None

    def _power_cut(self, point: Point) -> str | None:
        board = self._board(point.trip)
        cut = int(board.ask(f"cut-at {point.deed} 0.5")["effects"]) + point.deed
        self._finish([board])
        effects = board.effects.read_text().splitlines()
        return effects[cut - 1] if len(effects) >= cut else None

    def passed(self, recipe: str) -> Evidence:
        """What a whole trip without any death leaves behind; judged."""
        return self.evidence(self._go("", recipe)[0])

    # --- trips --------------------------------------------------------------------------------------------------

    def _go(self, process: str, trip: str, arm: Callable[[], None] = lambda: None) -> list[WatchedBoard]:
        """A whole trip. `process` is the one that is killed before a START."""
        if trip == BATCH:
            return self._batch(arm)
        arm()
        if trip == START:
            self.line.daemons[process].kill()
        return self._finish([self._board(RECIPES[0] if trip == START else trip)])

    def _batch(self, arm: Callable[[], None]) -> list[WatchedBoard]:
        self.line.cloud.away()
        try:
            boards = [self._board(recipe) for recipe in RECIPES]
            for board in boards:
                self._until_passed(board)
            arm()
            # The first request fails as a whole, so that each enrollment gets one of its own.
            Control(self.root / "bench/dps.sock").fail(500)
        finally:
            self.line.cloud.back()
        return self._finish(boards)

    def _board(self, recipe: str) -> WatchedBoard:
        self.seen = {name: str(nest["visit"]) for name, nest in self.line.nests().items()} or self.seen
        codes = "-" if self.every_effect else str(self._lasting)
        options = self.factory.get(recipe, ())
        board = WatchedBoard(self.layout, self.nests[recipe], self.stock.take(), codes, *options)
        board.switch_on()
        self.line.boards[:] = [board, *self.line.boards[:1]]  # at most two are in the nests
        return board

    def _finish(self, boards: list[WatchedBoard]) -> list[WatchedBoard]:
        """Passed, uploaded, switched off, judged."""
        for board in boards:
            board.registration_id = str(self._until_passed(board)["registration_id"])
        names = {board.registration_id for board in boards}
        wait_for(
            "the upload and its receipt",
            TRIP_SECONDS,
            lambda: self._status("outbox").get("queued") == 0 and names <= self._enrolled(),
        )
        self._until_ready()
        for board in boards:
            board.switch_off()
        for board in boards:
            self._until_empty(board)
        for board in boards:
            judge(self.evidence(board))
        return boards

    def evidence(self, board: WatchedBoard) -> Evidence:
        state = self.root / "var/lib/hallmark"
        return Evidence(
            sku=board.nest.sku,
            registration_id=board.registration_id,
            tpm=board.state / "tpm",
            ledger=state / "signer/ledger.db",
            database=state / "station/station.db",
            officer_key=self.layout.officer / "officer.key",
            officer_certificate=self.layout.officer / "officer.pem",
            root=state / "signer/ca-root.pem",
            intermediate=state / "signer/ca-chain.pem",
            cloud=self.line.cloud.enrollments(),
        )

    # --- what the line shows ------------------------------------------------------------------------------------

    def _status(self, part: str) -> dict[str, Any]:
        found: dict[str, Any] = (self.line.snapshot() or {}).get(part, {})
        return found

    def _enrolled(self) -> set[str]:
        return {item["registrationId"] for item in self.line.cloud.enrollments()}

    def _until_ready(self) -> None:
        wait_for(
            "the token", 30.0, lambda: self._status("station").get("token", {}).get("condition") == "ready"
        )

    def _until_passed(self, board: Board) -> dict[str, Any]:
        """The nest once it shows PASS. A board that got another verdict is plugged in again, as its hint says."""
        until = time.monotonic() + TRIP_SECONDS
        pause = threading.Event()
        while time.monotonic() < until:
            nest = self.line.nests().get(board.nest.name)
            if nest and nest["plugged"] and nest["state"] == "done" and self._is_new(nest):
                if nest["outcome"] == "PASS":
                    return nest
                if nest["outcome"] in ("FAIL", "REFUSED"):
                    where = f"{nest['step']}.{nest['action']}"
                    raise Verdict(f"{nest['outcome']} at {where}: {nest['message']}")
                self.seen[nest["name"]] = str(nest["visit"])
                board.ask("unplug")
                self._until_empty(board)
                board.ask("plug")
            pause.wait(0.03)
        raise Verdict(f"no PASS within {TRIP_SECONDS:.0f} s: {self.line.nests().get(board.nest.name)}")

    def _is_new(self, nest: dict[str, Any]) -> bool:
        return str(nest["visit"]) != self.seen.get(nest["name"])

    def _until_empty(self, board: Board) -> None:
        wait_for(
            "the nest to be empty",
            20.0,
            lambda: self.line.nests().get(board.nest.name, {"plugged": True})["plugged"] is False,
        )


class WatchedBoard(Board):
    """A board whose durable effects are written down, one name a line."""

    def __init__(self, layout: Layout, nest: NestPlan, serial: str, codes: str, *options: str) -> None:
        self.registration_id = ""
        self.effects = layout.root / "bench/boards" / f"{serial}.effects"
        self.effects.touch()
        super().__init__(
            layout,
            nest,
            serial,
            *("--baud", "0", "--boot-ms", "5", *options),
            program=(sys.executable, str(HERE / "board.py"), str(self.effects), codes),
        )
