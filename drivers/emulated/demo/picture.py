"""Makes docs/panel.svg: the real panel of a real line of emulated boards, at a moment when there is much to see."""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

from drivers.emulated.bench.layout import Layout, NestPlan
from drivers.emulated.bench.line import Line
from drivers.emulated.bench.process import run, wait_for

SECONDS: Final = 90.0
COLUMNS: Final = 112
FAST, SLOW = ("--baud", "921600"), ("--baud", "230400")


def main() -> int:
    """One board has passed, one is being flashed, one was refused, a nest is empty; the cloud is away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="the SVG to write")
    picture = parser.parse_args().file.absolute()
    with tempfile.TemporaryDirectory(prefix="hallmark-") as folder:
        root = Path(folder)
        (root / "dev").mkdir()
        recipes = ("gw-200.toml", "gw-300.toml", "gw-200.toml", "gw-300.toml")
        nests = tuple(
            NestPlan(name, root / f"dev/nest-{name.lower()}", recipe)
            for name, recipe in zip("ABCD", recipes, strict=True)
        )
        with Line(Layout(root, nests)) as line:
            # The first board brings the TPM maker that the trust store has to know before the station starts.
            line.put_in(nests[0], "SN-1001", *FAST)
            line.cloud.away()
            line.start_daemons()
            line.put_in(nests[2], "SN-1003", *FAST, "--ek-certificate", "foreign")
            for name in ("A", "C"):
                wait_for(f"nest {name}", SECONDS, partial(_outcome, line, name))
            line.put_in(nests[1], "SN-1002", *SLOW)
            wait_for("half of the flash", SECONDS, lambda: _written(line) > 0.4)
            run(line.layout.hallmark("status", "--columns", str(COLUMNS), "--svg", str(picture)))
    return 0


def _outcome(line: Line, name: str) -> str:
    return str(line.nests()[name]["outcome"])


def _written(line: Line) -> float:
    nest = line.nests()["B"]
    return nest["done"] / nest["total"] if nest["step"] == "flash" and nest["total"] else 0.0


if __name__ == "__main__":
    sys.exit(main())
