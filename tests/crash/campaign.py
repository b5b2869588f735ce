"""One line, and board after board through it while one process dies at one deed. The judge has the last word.

First every process is only watched for a whole trip: the deeds that it did are the points at which it is killed later.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from drivers.emulated import image
from drivers.emulated.bench.layout import DPS_KEY, TOKEN, Layout, NestPlan, softhsm_module
from drivers.emulated.bench.line import Board, Line
from drivers.emulated.bench.process import wait_for
from drivers.emulated.dps.control import Control
from hal.errors import StationError
from tests.crash import lasting, token_keys
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
ORDER: Final = "order"
"""A board of the first recipe in a work order for one, whose key for copies of secrets is then destroyed; the audit
trail is signed up to there. Points are what comes after the PASS, and what the key wraps: all else is in RECIPES[0]."""
ORDERED: Final = ("run", "signer")
TRIP_SECONDS: Final = 60.0
IMAGE_SIZE: Final = 16 * 1024
FACTORY_VERSION: Final = "1.0.0"
"""What boards of the second recipe come with, so that theirs is swapped, tried and kept; the first one's are blank."""
HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class Point:
    """`process` dies in that trip (a recipe or a word above) when it is at `site` for the `times`-th time (from 1).

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
    orders: int = 0
    """Work orders for one unit that were begun."""
    until_pass: dict[str, list[str]] = field(default_factory=dict)
    """The deeds of each process up to the PASS of the ORDER that was watched."""

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
        self._station = self._configuration.read_text()
        for (
            recipe
        ) in RECIPES:  # what is done once in a line's life, the first key of a work order too, is no point
            self._go("", recipe)

    @property
    def _lasting(self) -> Path:
        return self.trap.path.with_suffix(".lasting")

    @property
    def _configuration(self) -> Path:
        return self.layout.etc / "station.toml"

    @property
    def _database(self) -> Path:
        return self.root / "var/lib/hallmark/station/station.db"

    def points(self, trip: str, processes: Sequence[str] = PROCESSES) -> Iterator[Point]:
        """Watches whole trips: what was done there by those processes."""
        if trip == START:
            done = {process: self._start(process) for process in STARTED if process in processes}
        elif trip == BATCH:
            done = {"uploader": self._watched(BATCH)["uploader"]}
        elif trip == ORDER:
            yield from self._order_points([process for process in ORDERED if process in processes])
            return
        else:
            done = self._watched(trip)
        for process in processes:
            found = done.get(process, [])
            for number, site in enumerate(found, 1):
                yield Point(process, number, site, found[:number].count(site), trip)

    def _order_points(self, processes: Sequence[str]) -> Iterator[Point]:
        done = self._watched(ORDER)
        for process in processes:
            found, before = done.get(process, []), len(self.until_pass.get(process, []))
            for number, site in enumerate(found, 1):
                if number > before or "SecretWrap" in site:
                    yield Point(process, number, site, found[:number].count(site), ORDER)

    def _start(self, process: str) -> list[str]:
        """What it did before the board came, which is watched by itself."""
        with_board, board = self._watched(START, process)[process], self._watched(RECIPES[0])[process]
        return with_board[: len(with_board) - len(board)]

    def _watched(self, trip: str, process: str = "") -> dict[str, list[str]]:
        """The deeds of each process in one trip, and the effects on its first board."""
        try:
            boards = self._go(process, trip, self.trap.record)
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
        if trip == ORDER:
            return self._order(arm)
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

    def _order(self, arm: Callable[[], None]) -> list[WatchedBoard]:
        """The order comes first in the configuration, so the next board is for it."""
        self.orders += 1
        name, sku = f"ONE-{self.orders}", self.nests[RECIPES[0]].sku
        one = f'[[work_order]]\nid = "{name}"\nsku = "{sku}"\nquantity = 1\n\n'
        self._configuration.write_text(self._station.replace("[[work_order]]", f"{one}[[work_order]]", 1))
        self.line.daemons["run"].kill()
        wait_for("the work order", TRIP_SECONDS, lambda: name in self._orders())
        self._until_ready()
        arm()
        board = self._board(RECIPES[0])
        self._until_passed(board)
        self.until_pass = self.trap.recorded()
        wait_for(f"the end of the key of {name}", TRIP_SECONDS, lambda: self._destroyed(f"order-{name}.1"))
        wait_for("a signature over it", TRIP_SECONDS, self._signed_to_the_end)
        return self._finish([board])

    def _orders(self) -> set[str]:
        return {order["id"] for order in self._status("station").get("work_orders", [])}

    def _destroyed(self, key: str) -> bool:
        query = "SELECT count(*) FROM wrap_keys WHERE key = ? AND destroyed IS NOT NULL"
        with sqlite3.connect(f"file:{self._database}?mode=ro", uri=True) as database:
            return bool(database.execute(query, (key,)).fetchone()[0])

    def _signed_to_the_end(self) -> bool:
        """Whether a checkpoint covers each visit that has ended."""
        with sqlite3.connect(f"file:{self._database}?mode=ro", uri=True) as database:
            ended, signed = database.execute(
                "SELECT (SELECT max(seq) FROM audit WHERE kind = 'visit-closed'),"
                " (SELECT max(size) FROM audit_checkpoints)"
            ).fetchone()
        return ended is not None and signed is not None and bool(signed >= ended)

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
        self._until_signed(boards)
        for board in boards:
            board.switch_off()
        for board in boards:
            self._until_empty(board)
        for board in boards:
            judge(self.evidence(board))
        return boards

    def evidence(self, board: WatchedBoard) -> Evidence:
        state = self.root / "var/lib/hallmark"
        credentials = self.layout.etc / "credentials"
        pin = credentials / "ca-pin"
        return Evidence(
            sku=board.nest.sku,
            registration_id=board.registration_id,
            tpm=board.state / "tpm",
            ledger=state / "signer/ledger.db",
            database=self._database,
            officer_key=self.layout.officer / "officer.key",
            officer_certificate=self.layout.officer / "officer.pem",
            root=state / "signer/ca-root.pem",
            intermediate=state / "signer/ca-chain.pem",
            cloud=self.line.cloud.enrollments(),
            token_keys=token_keys.labels(softhsm_module(), TOKEN, pin, self.layout.environment),
            folders=(self.root / "var", self.root / "log", self.root / "run", self.root / "bench/dps.db"),
            secrets={path.name: path.read_bytes() for path in (pin, credentials / DPS_KEY)},
        )

    # --- what the line shows ------------------------------------------------------------------------------------

    def _status(self, part: str) -> Any:
        return (self.line.snapshot() or {}).get(part, {})

    def _enrolled(self) -> set[str]:
        return {item["registrationId"] for item in self.line.cloud.enrollments()}

    def _until_ready(self) -> None:
        wait_for(
            "the token", 30.0, lambda: self._status("station").get("token", {}).get("condition") == "ready"
        )

    def _until_signed(self, boards: list[WatchedBoard]) -> None:
        """The audit trail's checkpoint over the boards' verdicts: the signer then does nothing more by itself."""
        last = max(
            event["seq"]
            for board in boards
            for event in self.line.unit(board.registration_id)["events"]
            if event["kind"] == "visit-closed"
        )
        wait_for(
            "the audit trail to be signed",
            30.0,
            lambda: self._status("station").get("audit", {}).get("signed", 0) >= last,
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
