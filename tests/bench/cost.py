"""What processes cost, as the kernel counts it: processor seconds and memory, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def _times(pid: int) -> tuple[float, float]:
    """User and system time of the process, and of those children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, reaped = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return own * TICK, reaped * TICK


def cpu(pid: int) -> float:
    """Processor seconds of the process with its children, those that live and those that are gone."""
    total = sum(_times(pid))
    for child in children(pid):
        try:
            total += sum(_times(child))
        except (FileNotFoundError, ProcessLookupError):
            continue  # gone meanwhile: its parent's count of the dead has it at the next look
    return total


def own_cpu(pid: int) -> float:
    """Processor seconds of its living threads, to the nanosecond: for differences over a time in which none ends."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def memory(pid: int) -> tuple[float, float]:
    """MiB: resident, and its proportional share (pages that several processes use are split between them)."""
    fields = {
        line.split(":")[0]: line.split()[1]
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    }
    return int(fields["Rss"]) / 1024, int(fields["Pss"]) / 1024
