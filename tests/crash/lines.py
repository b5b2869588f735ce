"""Several lines side by side that share the points. A line on which something went wrong is replaced by a new one."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from hal.errors import StationError
from tests.crash.campaign import Campaign, Point, Result


class Lines:
    """A context manager. `first` is there from the start, to watch trips on."""

    def __init__(self, folder: Path, count: int, keep: Path | None, *, every_effect: bool = False) -> None:
        self._folder, self._count, self._keep, self._every = folder, count, keep, every_effect
        self._made = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def __enter__(self) -> Lines:
        self.first = self._new()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(
            StationError
        ):  # what a stubborn process means was said by the judge, or will be by the next run
            self.first.__exit__()

    def run(self, points: list[Point], tell: Callable[[Result], None]) -> list[Result]:
        """A result for each point, in any order; for those that were reached when it is interrupted."""
        waiting, results = list(reversed(points)), list[Result]()

        def work(number: int) -> None:
            line = self.first if number == 0 else self._new()
            try:
                while not self._stop.is_set():
                    with self._lock:
                        if not waiting:
                            return
                        point = waiting.pop()
                    result = line.run(point)
                    with self._lock:
                        results.append(result)
                        tell(result)
                    if result.problem:
                        line = self._replace(line, number)
            finally:
                if line is not self.first:
                    self._end(line)

        with ThreadPoolExecutor(self._count) as pool:
            futures = [pool.submit(work, number) for number in range(self._count)]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stop.set()
                raise
        return results

    def _new(self) -> Campaign:
        with self._lock:
            self._made += 1
            root = self._folder / str(self._made)
        return Campaign(root, self._every).__enter__()

    def _replace(self, line: Campaign, number: int) -> Campaign:
        self._end(line)
        if self._keep:
            shutil.copytree(line.root, self._keep / line.root.name, symlinks=True, ignore=_sockets)
        fresh = self._new()
        if number == 0:
            self.first = fresh
        return fresh

    def _end(self, line: Campaign) -> None:
        """What does not stop in order is killed; why something went wrong was said already."""
        with suppress(StationError):
            line.__exit__()


def _sockets(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if Path(folder, name).is_socket()}
