"""Whole trips: seconds a unit from plug-in to PASS against what wire, TPM and token alone took for that unit."""

from __future__ import annotations

import queue
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from hal.errors import HallmarkError, StationError
from tests.bench.boards import TableBoard
from tests.bench.rig import Rig
from tests.bench.signing import raw_sign_seconds
from tests.bench.table import Row

VERDICT_SECONDS = 180.0
BITS_PER_OCTET = 10
SIGNATURES = 2
"""Of the token for one unit: a canary before it, and its certificate."""


@dataclass
class Unit:
    seconds: float
    wire: float
    tpm: float
    commands: int
    octets: int
    board_cpu: float


@dataclass
class Verdicts:
    """Follows the station's events; a nest's verdict wakes whoever waits for it."""

    rig: Rig
    nests: dict[str, queue.SimpleQueue[tuple[float, str]]] = field(default_factory=dict)

    def follow(self) -> None:
        for plan in self.rig.layout.nests:
            self.nests[plan.name] = queue.SimpleQueue()
        self._events = self.rig.client.events()
        next(self._events)  # the stream has begun
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            for event in self._events:
                if event.kind == "visit-closed":
                    self.nests[event.nest].put((event.at, str(event.detail.get("outcome"))))
        except HallmarkError:
            return  # the station has ended: the bench is over

    def wait(self, nest: str) -> float:
        at, outcome = self.nests[nest].get(timeout=VERDICT_SECONDS)
        if outcome != "PASS":
            raise StationError(f"nest {nest}: {outcome}")
        return at


def run(rig: Rig, nests: int, rounds: int, baud: int) -> list[Row]:
    verdicts = Verdicts(rig)
    verdicts.follow()
    plans = rig.layout.nests[:nests]
    serials = iter(rig.boards.make(nests * rounds))
    boards = {
        plan.name: [TableBoard(rig.layout, plan, next(serials), baud) for _ in range(rounds)]
        for plan in plans
    }
    for waiting in boards.values():
        for board in waiting:
            board.ready()
    rig.wait_warm()
    sign = raw_sign_seconds(rig)
    before, began = rig.cpu(), time.monotonic()
    with ThreadPoolExecutor(nests) as pool:
        lanes = [pool.submit(_lane, rig, verdicts, boards[plan.name], baud) for plan in plans]
        units = [unit for lane in lanes for unit in lane.result()]
    took = time.monotonic() - began
    rig.wait_warm()
    after = rig.cpu()
    for waiting in boards.values():
        for board in waiting:
            board.scrap()
    return _rows(f"{nests} nest{'s' * (nests > 1)}, {baud} baud", units, took, sign, before, after)


def _lane(rig: Rig, verdicts: Verdicts, boards: list[TableBoard], baud: int) -> list[Unit]:
    """One nest's boards, exchanged as fast as the station sees that the nest is empty."""
    done = []
    for board in boards:
        cpu, plugged = board.cpu(), time.time()
        board.ask("plug")
        seconds = verdicts.wait(board.nest.name) - plugged
        said = board.ask("status")
        octets = said["octets_in"] + said["octets_out"]
        done.append(
            Unit(
                seconds=seconds,
                wire=octets * BITS_PER_OCTET / baud,
                tpm=said["tpm_seconds"],
                commands=said["tpm_commands"],
                octets=octets,
                board_cpu=board.cpu() - cpu,
            )
        )
        board.ask("unplug")
        while rig.line.nests()[board.nest.name]["plugged"]:
            time.sleep(0.05)
    return done


def _rows(
    name: str, units: list[Unit], took: float, sign: float, before: dict[str, float], after: dict[str, float]
) -> list[Row]:
    middle = statistics.median
    trip, wire, tpm = (
        middle(unit.seconds for unit in units),
        middle(unit.wire for unit in units),
        middle(unit.tpm for unit in units),
    )
    token = SIGNATURES * sign
    spent = {word: (after[word] - before[word]) / len(units) for word in after}
    against = f"wire {wire:.2f} + TPM {tpm:.2f} + token {token:.4f}"
    octets, commands = (
        middle(unit.octets for unit in units) / 1000,
        middle(unit.commands for unit in units),
    )
    parts = ", ".join(f"{word} {seconds * 1000:.0f} ms" for word, seconds in spent.items())
    return [
        Row(f"{name}: trip, median of {len(units)}", trip, "s", wire + tpm + token, against),
        Row(f"{name}: {octets:.0f} kB, {commands:.0f} TPM commands", len(units) / took * 3600, "units/h"),
        Row(f"{name}: station's CPU a unit ({parts})", sum(spent.values()), "s"),
        Row(f"{name}: emulated board's CPU a unit", middle(unit.board_cpu for unit in units), "s"),
    ]
