"""Durable steps a second (an action's intent and its result), against bare appends with fdatasync in one folder."""

from __future__ import annotations

import functools
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from station.messages import Facts
from station.store import Store
from tests.bench.table import Row

SYNCS = 2
RECORD = b"\0" * 1024
BOOT = "3f2b1c00-0000-4000-8000-000000000000"


def raw_sync_rate(folder: Path, threads: int, seconds: float = 1.0) -> float:
    """Appends of 1 KiB with fdatasync a second, of all threads together; each has a file of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as place:

        def lane(number: int, over: Callable[[], bool]) -> int:
            count = 0
            fd = os.open(Path(place, str(number)), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            while not over():
                os.write(fd, RECORD)
                os.fdatasync(fd)
                count += 1
            os.close(fd)
            return count

        return _rate(lane, threads, seconds)


def run(seconds: float) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="hm-store-", dir="/var/tmp") as place:
        for threads in (1, 4, 8):
            raw = raw_sync_rate(Path(place), threads, seconds) / SYNCS
            with Store.open(Path(place, f"{threads}.db")) as store:
                rate = _rate(functools.partial(_steps, store), threads, seconds)
            against = "two raw fdatasync" if threads == 1 else f"the same, {threads} files"
            rows.append(Row(f"durable steps, {threads} at a time", rate, "/s", raw, against, is_rate=True))
    return rows


def _steps(store: Store, nest: int, over: Callable[[], bool]) -> int:
    """A visit whose actions each begin and are done; how many."""
    visit = store.open_visit(str(nest), f"usb:1-{nest}", "gw-200", "final", b"\1" * 32, BOOT)
    facts: Facts = {"digest": b"\2" * 32, "version": "1.4.2"}
    count = 0
    while not over():
        action = f"action-{count % 30}"
        store.begin(visit, "bench", action)
        store.done(visit, "bench", action, facts)
        count += 1
    return count


def _rate(lane: Callable[[int, Callable[[], bool]], int], threads: int, seconds: float) -> float:
    over = threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        began = time.monotonic()
        lanes = [pool.submit(lane, number, over.is_set) for number in range(threads)]
        over.wait(seconds)
        over.set()
        total = sum(done.result() for done in lanes)
        return total / (time.monotonic() - began)
