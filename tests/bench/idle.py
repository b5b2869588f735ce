"""What a line costs that waits: processor and memory of each daemon, and how long each takes to be ready."""

from __future__ import annotations

import subprocess
import sys
import time

from station.nest.worker_process import WorkerProcess
from tests.bench import cost
from tests.bench.rig import Rig
from tests.bench.table import Row

DRIVERS = ["serial", "smp-serial", "tcti-tunnel"]
PYTHON = "bare Python"


def run(rig: Rig, seconds: float) -> list[Row]:
    workers = rig.wait_warm()
    names = {rig.pid(word): word for word in rig.line.daemons}
    names |= dict.fromkeys(workers, "worker")
    before = {pid: cost.own_cpu(pid) for pid in names}
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    share = {pid: (cost.own_cpu(pid) - before[pid]) / took * 100 for pid in names}
    memory = {pid: cost.memory(pid) for pid in names}
    bare_start, bare_memory = _bare()
    rows = []
    for word in (*rig.line.daemons, "worker"):
        pids = [pid for pid, name in names.items() if name == word]
        name = f"{len(pids)} warm workers" if word == "worker" else word
        resident, part = (sum(memory[pid][kind] for pid in pids) for kind in (0, 1))
        rows += [
            Row(f"idle: {name}, of one processor", sum(share[pid] for pid in pids), "%"),
            Row(
                f"idle: {name}, PSS (RSS {resident:.0f} MiB)",
                part,
                "MiB",
                len(pids) * bare_memory,
                PYTHON + "s" * (len(pids) > 1),
            ),
        ]
    rows += [
        Row(f"time to ready: {word}", seconds, "s", bare_start, PYTHON) for word, seconds in rig.ready.items()
    ]
    rows.append(Row("time to ready: a worker", _worker_start(), "s", bare_start, PYTHON))
    return rows


def _bare() -> tuple[float, float]:
    """Seconds and PSS of an interpreter that imports nothing of ours."""
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-I", "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        took = time.monotonic() - began
        _, part = cost.memory(process.pid)
        process.communicate(b"\n")
    return took, part


def _worker_start() -> float:
    began = time.monotonic()
    worker = WorkerProcess(DRIVERS)
    worker.wait_ready()
    took = time.monotonic() - began
    worker.stop()
    return took
