"""`./dev crash`: kills each process at every durable write and every irreversible action of a unit's trip, and judges."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.crash.campaign import PROCESSES, RECIPES, Campaign, Point, Result


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev crash", description=__doc__)
    parser.add_argument(
        "--process", action="append", choices=(*PROCESSES, "board"), help="only these (default: all)"
    )
    parser.add_argument("--recipe", choices=RECIPES, action="append", help="only these (default: all)")
    parser.add_argument(
        "--sample", type=int, metavar="N", help="only N points, spread evenly (default: every one)"
    )
    parser.add_argument("--lines", type=int, default=2, help="lines side by side (default 2)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the lines' folders here when something is wrong"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hm-") as folder:
        with Campaign(Path(folder) / "0") as watcher:
            points = [point for recipe in args.recipe or RECIPES for point in watcher.points(recipe)]
            if args.process:
                points = [point for point in points if point.process in args.process]
            counts = Counter(point.process for point in points)
            print(
                "points: " + ", ".join(f"{process} {count}" for process, count in counts.items()), flush=True
            )
            if args.sample and args.sample < len(points):
                points = [points[index * len(points) // args.sample] for index in range(args.sample)]
            random.Random(1).shuffle(points)  # noqa: S311 - spreads slow points over the lines
            results = _run(Path(folder), watcher, points, args.lines)
    return _report(results, len(points))


def _run(folder: Path, first: Campaign, points: list[Point], lines: int) -> list[Result]:
    waiting, lock, results = list(points), threading.Lock(), list[Result]()
    began = time.monotonic()

    def work(campaign: Campaign) -> None:
        while True:
            with lock:
                if not waiting:
                    return
                point = waiting.pop()
            result = campaign.run(point)
            with lock:
                results.append(result)
                if result.problem or len(results) % 20 == 0:
                    _line(result, len(results), len(points), time.monotonic() - began)

    def other(number: int) -> None:
        with Campaign(folder / str(number)) as campaign:
            work(campaign)

    with ThreadPoolExecutor(lines) as pool:
        futures = [pool.submit(work, first), *(pool.submit(other, number) for number in range(1, lines))]
        for future in futures:
            future.result()
    return results


def _line(result: Result, done: int, total: int, seconds: float) -> None:
    point = result.point
    where = f"{point.process} {point.deed} ({result.died_at or point.site}), {point.recipe}"
    print(
        f"{done}/{total} {seconds:.0f} s  {'WRONG ' + result.problem if result.problem else 'fine'}  {where}",
        flush=True,
    )


def _report(results: list[Result], total: int) -> int:
    wrong = [result for result in results if result.problem]
    died = Counter(result.point.process for result in results if result.died_at)
    for process, count in sorted(died.items()):
        print(f"{process}: died {count} times")
    sites = Counter(f"{result.point.process}: {result.died_at}" for result in results if result.died_at)
    for site, count in sorted(sites.items()):
        print(f"  {count:4} {site}")
    for result in wrong:
        print(f"WRONG {result.point}: {result.problem}")
    print(f"{total - len(wrong)} passed, {len(wrong)} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
