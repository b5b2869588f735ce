"""A real line for tests: signer, station, uploader and cloud as processes, with nests for boards that come one by one.

Boards are made beside the tests that need them: each has a TPM of its own. What a board does wrong on purpose is in
`tests/lying_board.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from drivers.emulated.bench import status
from drivers.emulated.bench.layout import Layout, NestPlan
from drivers.emulated.bench.line import Board, Line
from drivers.emulated.bench.process import KeptProcess, run, wait_for
from drivers.emulated.board.tpm import EkCertificate, manufacture

VISIT_SECONDS: Final = 45.0
FAST: Final = ("--baud", "0", "--boot-ms", "1")
"""A board on a wire without pace, for tests of what is decided and not of how long it takes."""
KEYED: Final = """
sku = "gw-100"
drivers = { link = "smp-serial" }

[settings.channel]
baud = 921600

[settings.link]
sync_timeout = 1.5
timeout = 1.0
tries = 3

[[step]]
use = "flash"
image = "gw-200-1.4.2.bin"
within = 3

[[step]]
use = "key-identity"

[[step]]
use = "certificate"
profile = "client-p256"
place = "link"

[[step]]
use = "configure"
id_scope = "0ne00000000"

[[step]]
use = "final-check"

[[step]]
use = "enroll"
attestation = "x509"
"""
"""For boards without a TPM: their firmware keeps the key."""

Nest = dict[str, Any]


class Bench:
    """A line, and what a technician does at it."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.layout = line.layout
        self._plans = {plan.name: plan for plan in line.layout.nests}
        self._in: dict[str, Board] = {}

    # --- boards ---

    def board(self, nest: str, label: str, *options: str, lie: str = "") -> Board:
        """A board for `nest`, not yet switched on. `label` is its serial unless `options` say otherwise."""
        board = Board(self.layout, self._plans[nest], label, *FAST, *options)
        if lie:
            board._command[1:3] = [str(Path(__file__).with_name("lying_board.py")), lie]
        self.line.boards.append(board)
        return board

    def plug(self, board: Board) -> Board:
        """Into its nest, once the one that was there is out and the nest knows."""
        nest = board.nest.name
        if nest in self._in:
            self.unplug(self._in[nest])
        wait_for(f"nest {nest} to be empty", VISIT_SECONDS, lambda: self.nest(nest).get("plugged") is False)
        board.switch_on()
        self._in[nest] = board
        return board

    def unplug(self, board: Board) -> None:
        board.switch_off()
        self._in.pop(board.nest.name, None)
        wait_for("the nest to notice", VISIT_SECONDS, lambda: not self.nest(board.nest.name)["plugged"])

    def visit(self, board: Board) -> Nest:
        """Plugs `board` in; what its nest shows when the visit has its verdict."""
        before = self.visit_of(board.nest.name)
        self.plug(board)
        return self.verdict(board.nest.name, after=before)

    def passed(self, board: Board) -> Nest:
        seen = self.visit(board)
        assert seen["outcome"] == "PASS", seen
        return seen

    # --- what the nests show ---

    def nest(self, name: str) -> Nest:
        found = self.line.nests().get(name)
        return found if found is not None else {}

    def visit_of(self, nest: str) -> str:
        return str(self.nest(nest).get("visit", ""))

    def verdict(self, nest: str, *, after: str) -> Nest:
        """The verdict of the first visit that isn't `after`."""

        def look() -> Nest | None:
            seen = self.nest(nest)
            return seen if seen.get("outcome") and seen["visit"] not in ("", after) else None

        return _found(f"a verdict in nest {nest}", VISIT_SECONDS, look)

    def until(self, nest: str, what: Callable[[Nest], bool], seconds: float = VISIT_SECONDS) -> Nest:
        """What the nest shows as soon as `what` holds of it."""

        def look() -> Nest | None:
            seen = self.nest(nest)
            return seen if seen and what(seen) else None

        return _found(f"nest {nest} to show it", seconds, look)

    def again(self, nest: str) -> Nest:
        """Another visit of the board that is in `nest`, as `hallmark` or a button asks for it; its verdict."""
        before = self.visit_of(nest)
        self.post(f"/v1/retry?nest={nest}")
        return self.verdict(nest, after=before)

    def post(self, path: str) -> Any:
        return status.ask(self.status_socket, path, "POST")

    @property
    def status_socket(self) -> Path:
        return self.layout.root / "run/hallmark/status.sock"

    # --- the station ---

    def hallmark(self, *words: str) -> str:
        """A command that has to succeed; what it said."""
        return run(self.layout.hallmark(*words), self.layout.environment)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command that may fail."""
        return subprocess.run(
            self.layout.hallmark(*words),
            env={**os.environ, **self.layout.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def check(self) -> subprocess.CompletedProcess[str]:
        return self.run("check", "--json")

    def restart(self, daemon: str) -> None:
        """Ended in order and started again, as after `systemctl restart`."""
        self.line.daemons[daemon].stop()
        self.begin(daemon)

    def begin(self, daemon: str) -> None:
        """Starts a daemon that was stopped."""
        self.line.daemons[daemon] = KeptProcess(
            daemon,
            [*self.layout.hallmark(), daemon],
            self.layout.logs / f"{daemon}.log",
            self.layout.environment,
        )
        wait_for("the station to answer", VISIT_SECONDS, self.line.snapshot)

    def token(self) -> dict[str, Any]:
        found = self.line.snapshot()
        return dict(found["station"]["token"]) if found else {}

    def edit(self, old: str, new: str, path: str = "station.toml") -> None:
        """Changes a configuration file; `old` has to be there."""
        file = self.layout.etc / path
        text = file.read_text()
        assert old in text, f"{path} does not say {old!r}"
        file.write_text(text.replace(old, new))


def _found(what: str, seconds: float, look: Callable[[], Nest | None]) -> Nest:
    found = wait_for(what, seconds, look)
    assert found is not None
    return found


def bench_line(
    names: dict[str, str], prepare: Callable[[Bench], None] | None = None, image_size: int = 16 * 1024
) -> Iterator[Bench]:
    """A running line with these nests and recipes; `gw-100.toml` is the one for boards without a TPM.

    `prepare` is called before the daemons start.
    """
    root = Path(tempfile.mkdtemp(prefix="hm-"))  # short: sockets lie below it
    try:
        (root / "dev").mkdir()
        plans = tuple(NestPlan(name, root / f"dev/{name}", recipe) for name, recipe in names.items())
        shipped = tuple(
            NestPlan(plan.name, plan.port, "gw-200.toml" if plan.recipe == "gw-100.toml" else plan.recipe)
            for plan in plans
        )
        with Line(Layout(root, shipped, image_size=image_size)) as line:
            bench = Bench(line)
            bench._plans = {plan.name: plan for plan in plans}
            if "gw-100.toml" in names.values():
                _add_keyed(bench, [name for name, recipe in names.items() if recipe == "gw-100.toml"])
            _make_ek_ca(bench)
            if prepare is not None:
                prepare(bench)
            line.start_daemons()
            yield bench
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _add_keyed(bench: Bench, names: list[str]) -> None:
    etc = bench.layout.etc
    (etc / "recipes/gw-100.toml").write_text(KEYED)
    for name in names:
        place = f'name = "{name}"\nplace = "{bench._plans[name].port}"\nrecipe = '
        bench.edit(f'{place}"gw-200.toml"', f'{place}"gw-100.toml"')
    with (etc / "station.toml").open("a") as stream:
        stream.write('\n[[work_order]]\nid = "WO-100"\nsku = "gw-100"\nquantity = 1000\n')


def _make_ek_ca(bench: Bench) -> None:
    """The CA of the TPMs' maker, by a board that is only made for it: the station wants its root at the start."""
    board = Board(bench.layout, next(iter(bench._plans.values())), "first", *FAST, "--unplugged")
    board.state.mkdir(mode=0o700)
    manufacture(board.state / "tpm", bench.layout.ek_ca, EkCertificate.VENDOR)
