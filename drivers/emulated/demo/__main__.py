"""`./dev demo`: see `--help`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from drivers.emulated.demo.story import Story
from hal.errors import HallmarkError

MOST_UNITS = 16


def main() -> int:
    """0 only when every board passed, was uploaded, and has one certificate."""
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__, epilog=_EPILOG)
    parser.add_argument(
        "--units", type=int, default=3, metavar="N", help="boards a round, 1 to 16 (default 3)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-out"),
        metavar="DIR",
        help="where the records go (default demo-out)",
    )
    parser.add_argument("--baud", type=int, default=921600, help="speed of the boards' serial lines (921600)")
    parser.add_argument("--calm", action="store_true", help="only the first round: nothing is killed")
    args = parser.parse_args()
    if not 1 <= args.units <= MOST_UNITS:
        parser.error(f"--units takes 1 to {MOST_UNITS}")
    if args.out.exists() and any(args.out.iterdir()) and not (args.out / "report.json").exists():
        parser.error(f"{args.out} holds something else than a demo's records: name another folder")
    with tempfile.TemporaryDirectory(prefix="hallmark-") as root:
        story = Story(Path(root), args.out.absolute(), args.units, args.baud, calm=args.calm)
        try:
            return 0 if story.tell() else 1
        except HallmarkError as error:
            print(f"\nThe demo could not go on: {error}", file=sys.stderr)
            story.keep_logs()
            return 1
        except KeyboardInterrupt:
            return 130


_EPILOG = """
Round 1: N boards at once, the cloud away at first, then back. Round 2: N new boards; a worker, the signer and
the station are each killed once by SIGKILL while boards are under way. DIR then has report.json, ca/, officer/ and
units/REGISTRATION-ID/ for round 1; killed/ has the same for round 2."""

if __name__ == "__main__":
    sys.exit(main())
