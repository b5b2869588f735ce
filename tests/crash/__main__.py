"""`./dev crash`: kills each process at every durable write and every irreversible action of a unit's trip,
and judges.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.crash.campaign import BATCH, ORDER, PROCESSES, RECIPES, START, Campaign, Point, Result
from tests.crash.lines import Lines

TRIPS = (*RECIPES, BATCH, START, ORDER)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev crash", description=__doc__)
    add = parser.add_argument
    add("--process", action="append", choices=PROCESSES, help="only these (default: all)")
    add("--trip", action="append", choices=TRIPS, help="only these (default: all)")
    add("--site", default="", metavar="REGEX", help="only points where that is done (default: all)")
    add("--sample", type=int, metavar="N", help="N points, spread evenly over the trips (default: every one)")
    add("--all", action="store_true", help="power cuts also at TPM commands that change nothing lasting")
    add("--lines", type=int, default=2, help="lines side by side (default 2)")
    add("--keep", type=Path, metavar="DIR", help="where lines go on which something went wrong")
    args = parser.parse_args()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="hm-") as folder,
        Lines(Path(folder), args.lines, args.keep, every_effect=args.all) as lines,
    ):
        points = list(_points(lines.first, args.process or PROCESSES, args.trip or TRIPS))
        points = [point for point in points if re.search(args.site, point.site)]
        counts = Counter((point.trip, point.process) for point in points)
        for (trip, process), count in counts.items():
            print(f"{count:5} points: {process}, {trip}", flush=True)
        if args.sample and args.sample < len(points):
            points = [points[index * len(points) // args.sample] for index in range(args.sample)]
        random.Random(1).shuffle(points)  # spreads slow points over the lines and the time
        results = lines.run(points, Teller(len(points), began))
    return _report(results, len(points), time.monotonic() - began)


def _points(watcher: Campaign, processes: Sequence[str], trips: Sequence[str]) -> Iterator[Point]:
    for trip in trips:
        yield from watcher.points(trip, processes)


class Teller:
    """Prints what is wrong at once, and now and then how far it is."""

    def __init__(self, total: int, began: float) -> None:
        self._total, self._began, self._done = total, began, 0

    def __call__(self, result: Result) -> None:
        self._done += 1
        if result.problem or self._done % 20 == 0:
            print(
                f"{self._done}/{self._total} {time.monotonic() - self._began:.0f} s  {describe(result)}",
                flush=True,
            )


def describe(result: Result) -> str:
    point = result.point
    where = f"{point.process} {point.deed} ({result.died_at or point.site}), {point.trip}"
    return f"{'WRONG ' + result.problem if result.problem else 'fine'}  {where}"


def _report(results: list[Result], total: int, seconds: float) -> int:
    wrong = [result for result in results if result.problem]
    sites = Counter((result.point.process, result.died_at) for result in results if result.died_at)
    for (process, site), count in sorted(sites.items()):
        print(f"  {count:4} {process}: {site}")
    missed = Counter(result.point.process for result in results if not result.died_at and not result.problem)
    for process, count in sorted(missed.items()):
        print(f"  {count:4} {process}: did less than when it was watched, and passed")
    for result in wrong:
        print(describe(result))
    died = sum(1 for result in results if result.died_at)
    print(
        f"{total} points in {seconds / 60:.1f} minutes: {died} died, {total - len(wrong)} passed, {len(wrong)} failed"
    )
    return 0 if len(results) == total and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
