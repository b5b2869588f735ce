"""The demo's two rounds, in the order in which they are told."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from drivers.emulated.bench.layout import Layout, NestPlan
from drivers.emulated.bench.line import Board, Line
from drivers.emulated.bench.process import wait_for
from drivers.emulated.demo import report
from drivers.emulated.demo.killing import Killer
from hal.errors import StationError

RECIPES: Final = ("gw-200.toml", "gw-300.toml")
"""The first enrolls by TPM, the second by X.509."""
VISIT_SECONDS: Final = 180.0
UPLOAD_SECONDS: Final = 60.0
AWAY_SECONDS: Final = 2.0
"""How long the cloud stays away once all boards have passed: so that one sees the queue."""


class Story:
    """`root` is the bench's folder, `out` where the records go."""

    def __init__(self, root: Path, out: Path, units: int, baud: int, *, calm: bool) -> None:
        (root / "dev").mkdir()
        nests = tuple(
            NestPlan(
                f"{number:02}" if units > 9 else str(number),
                root / f"dev/nest-{number}",
                RECIPES[(number - 1) % 2],
            )
            for number in range(1, units + 1)
        )
        self._layout = Layout(root, nests)
        self._out, self._baud, self._calm = out, baud, calm
        self._began = time.monotonic()

    def tell(self) -> bool:
        """Whether all of it went as it has to."""
        out, layout = self._out, self._layout
        if out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True)
        self._say(
            f"Setting up a bench line: CA token, cloud, {len(layout.nests)} boards, each with a TPM of its own"
        )
        with Line(layout) as line:
            line.cloud.away()
            boards = self._boards(line, 1)
            line.start_daemons()
            self._say("Round 1: all boards at once. The cloud is away: passed units wait in the outbox.")
            with self._panel():
                first = self._round(line, boards, None)
                threading.Event().wait(AWAY_SECONDS)
                queued = self._outbox(line)["queued"]
                line.cloud.back()
                self._uploaded(line, len(boards))
            self._say(f"All passed; {queued} enrollments waited for the cloud, and went up when it was back.")
            for board in boards:
                board.switch_off()
            killer, second, others = None, [], []
            if not self._calm:
                wait_for("the nests to be empty", 20.0, lambda: self._empty(line))
                self._say(
                    "Round 2: new boards. A worker, the signer and the station are killed in mid-flight."
                )
                others = self._boards(line, 2)
                killer = Killer(line)
                with self._panel():
                    second = self._round(line, others, killer)
                    self._uploaded(line, len(boards) + len(others))
                for kill in killer.kills:
                    self._say(
                        f"  killed {kill.process} (pid {kill.pid}) while nest {kill.nest} was at {kill.step}"
                    )
                for board in others:
                    board.switch_off()
            picture = out / "panel.svg"
            self._hallmark("status", "--svg", str(picture))
            rounds = [report.Round(out, boards, first)]
            if others:
                rounds.append(report.Round(out / "killed", others, second))
            found = report.write(line, rounds, killer.kills if killer else [], queued)
        for round_ in rounds:
            report.keep_tpms(round_)
        for problem in found.problems:
            self._say(f"  WRONG: {problem}")
        units = sum(len(round_.boards) for round_ in rounds)
        seconds = time.monotonic() - self._began
        if found.ok:
            self._say(
                f"{units} boards, {units} certificates, {units} enrollments, in {seconds:.0f} s. Records: {out}"
            )
            self._say(
                "Look at: report.json, panel.svg, units/*/unit.json; the device's certificate is device.pem."
            )
        else:
            self.keep_logs()
        return found.ok

    def keep_logs(self) -> None:
        if self._layout.logs.is_dir():
            shutil.copytree(self._layout.logs, self._out / "log", dirs_exist_ok=True)
            self._say(f"The daemons' logs are in {self._out / 'log'}")

    # --- parts ---

    def _boards(self, line: Line, round_number: int) -> list[Board]:
        """Made side by side: each manufactures its TPM first."""
        boards = [
            Board(
                self._layout,
                nest,
                f"SN-{round_number}{number:03}",
                *(
                    "--baud",
                    str(self._baud),
                    "--garble-start",
                    "24",
                    "--reset-absence",
                    "0.3",
                    "--seed",
                    str(number),
                ),
            )
            for number, nest in enumerate(self._layout.nests, 1)
        ]
        for board in boards:
            board.switch_on()
            line.boards.append(board)
        return boards

    def _round(self, line: Line, boards: list[Board], killer: Killer | None) -> list[dict[str, Any]]:
        """Until each nest shows PASS for the board that is in it; what the nests showed then."""
        if killer:
            killer.start()
        wanted = {board.nest.name: board for board in boards}
        before = {name: nest["visit"] for name, nest in line.nests().items() if nest["outcome"]}
        until = time.monotonic() + VISIT_SECONDS
        while True:
            nests = line.nests()
            done = {
                name: nest
                for name, nest in nests.items()
                if name in wanted
                and nest["outcome"]
                and nest["state"] == "done"
                and nest["visit"] != before.get(name)
            }
            bad = [nest for nest in done.values() if nest["outcome"] in ("FAIL", "REFUSED")]
            if bad:
                raise StationError(f"nest {bad[0]['name']}: {bad[0]['outcome']} {bad[0]['message']}")
            if len(done) == len(wanted) and all(nest["outcome"] == "PASS" for nest in done.values()):
                if killer:
                    killer.finish()
                return [done[name] for name in wanted]
            if time.monotonic() > until:
                raise StationError(f"boards did not pass within {VISIT_SECONDS:.0f} s: {nests}")
            threading.Event().wait(0.1)

    def _uploaded(self, line: Line, count: int) -> None:
        wait_for("the uploads", UPLOAD_SECONDS, lambda: self._outbox(line).get("acknowledged") == count)

    def _empty(self, line: Line) -> bool:
        nests = line.nests()
        return bool(nests) and not any(nest["plugged"] for nest in nests.values())

    def _outbox(self, line: Line) -> dict[str, Any]:
        found = line.snapshot()
        outbox: dict[str, Any] = found["outbox"] if found else {}
        return outbox

    @contextmanager
    def _panel(self) -> Iterator[None]:
        """The real panel, live, while this lasts: the tiles on a terminal, a line a change elsewhere."""
        process = subprocess.Popen(self._layout.hallmark("status", "--watch"), stdin=None)
        try:
            yield
            if sys.stdout.isatty():
                threading.Event().wait(1.5)  # the verdicts stay to be seen
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()

    def _hallmark(self, *words: str) -> None:
        subprocess.run(
            self._layout.hallmark(*words),
            env={**os.environ, **self._layout.environment},
            stdout=subprocess.DEVNULL,
            check=False,
        )

    def _say(self, text: str) -> None:
        print(text, flush=True)
