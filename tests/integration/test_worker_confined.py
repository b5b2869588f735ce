"""A worker process has its device and its socket and nothing else, and whatever becomes of it costs its nest alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.emulated.bench.process import wait_for
from station.nest.worker_process import WorkerProcess
from tests.fixtures_line import Bench, bench_line

DRIVERS = ["serial", "smp-serial"]
GONE_SECONDS = 10.0
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    made = WorkerProcess(DRIVERS)
    made.wait_ready()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    yield from bench_line({"A": "gw-200.toml", "D": "gw-100.toml"})


def descriptors(pid: int) -> dict[int, str]:
    """What a process has open."""
    folder = Path(f"/proc/{pid}/fd")
    return {int(entry.name): str(entry.readlink()) for entry in folder.iterdir()}


def gone(pid: int) -> bool:
    """Whether it has ended; one that nobody has waited for yet counts as ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="what a process that can't be traced has open, only root may look at"
)


# --- alone ------------------------------------------------------------------------------------------------------


@as_root
def test_a_worker_has_no_environment_and_no_descriptor_but_its_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HALLMARK_SECRET", "must not come in")
    leak = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(leak, True)
    worker = WorkerProcess(DRIVERS)
    try:
        worker.wait_ready()
        assert Path(f"/proc/{worker.pid}/environ").read_bytes() == b""
        found = descriptors(worker.pid)
        assert [found.pop(number) for number in (0, 1, 2)] == ["/dev/null"] * 3
        assert len(found) == 1, found
        assert next(iter(found.values())).startswith("socket:")
    finally:
        worker.stop()
        os.close(leak)


def test_a_worker_can_gain_no_rights_leaves_no_core_and_names_no_path(worker: WorkerProcess) -> None:
    status = Path(f"/proc/{worker.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    core = next(
        line
        for line in Path(f"/proc/{worker.pid}/limits").read_text().splitlines()
        if line.startswith("Max core file size")
    )
    assert core.split()[4:6] == ["0", "0"]
    words = Path(f"/proc/{worker.pid}/cmdline").read_bytes().split(b"\0")
    assert not [word for word in words[1:] if b"/" in word]
    assert b"-I" in words


def test_another_user_can_not_look_into_it(worker: WorkerProcess) -> None:
    """It is not dumpable: its entries below /proc are root's."""
    assert Path(f"/proc/{worker.pid}/environ").stat().st_uid == 0


def test_a_worker_ends_with_its_socket(worker: WorkerProcess) -> None:
    worker.link.close()
    wait_for("the worker to end", GONE_SECONDS, lambda: not worker.alive())


def test_a_worker_dies_with_its_station_even_when_it_hangs() -> None:
    code = (
        "import signal, sys, os\n"
        "from station.nest.worker_process import WorkerProcess\n"
        f"worker = WorkerProcess({DRIVERS!r})\n"
        "worker.wait_ready()\n"
        "os.kill(worker.pid, signal.SIGSTOP)\n"
        "print(worker.pid, flush=True)\n"
        "signal.pause()\n"
    )
    station = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert station.stdout is not None
        pid = int(station.stdout.readline())
        assert not gone(pid)
        station.kill()
        wait_for("the worker to die", GONE_SECONDS, lambda: gone(pid))
    finally:
        station.kill()
        station.wait()
        if station.stdout is not None:
            station.stdout.close()


# --- in a nest --------------------------------------------------------------------------------------------------


def served(bench: Bench, label: str, *options: str) -> tuple[int, str]:
    """A board in nest D, its image on the way; the worker's PID and the visit before."""
    before = bench.visit_of("D")
    bench.plug(bench.board("D", label, "--no-tpm", "--baud", "115200", *options))
    seen = bench.until("D", lambda nest: nest["visit"] != before and nest["done"] > 0 and nest["worker"])
    return int(seen["worker"]), before


@as_root
def test_a_worker_that_serves_has_its_device_and_nothing_else_of_the_station(bench: Bench) -> None:
    pid, before = served(bench, "SN-LOOKED-AT")
    found = descriptors(pid)
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    assert bench.verdict("D", after=before)["outcome"] == "PASS"
    targets = [target for number, target in found.items() if number > 2]
    devices = [target for target in targets if target.startswith("/dev/")]
    assert len(devices) == 1, found
    assert devices[0].startswith("/dev/pts/")
    assert not [target for target in targets if target.startswith(("/tmp", "/var", "/etc"))], found
    assert len([target for target in targets if target.startswith("socket:")]) == 1, found


def test_a_worker_that_is_killed_is_replaced_and_its_board_passes(bench: Bench) -> None:
    pid, before = served(bench, "SN-KILLED")
    os.kill(pid, signal.SIGKILL)
    seen = bench.until("D", lambda nest: nest["outcome"] == "PASS" and nest["visit"] != before)
    assert seen["worker"] == 0


def test_a_board_under_which_workers_keep_dying_gets_a_verdict_that_blames_the_station(bench: Bench) -> None:
    pid, before = served(bench, "SN-DEADLY")
    killed: list[int] = []

    def look() -> bool:
        nest = bench.nest("D")
        if nest["state"] == "done" and nest["visit"] != before and len(killed) >= 3:
            return True
        if nest["worker"] and nest["worker"] not in killed and nest["done"] > 0:
            killed.append(int(nest["worker"]))
            os.kill(killed[-1], signal.SIGKILL)
        return False

    wait_for("the verdict", 30, look)
    seen = bench.nest("D")
    assert pid == killed[0]
    assert len(killed) == 3
    assert (seen["outcome"], seen["problem"]) == ("ERROR", "StationError"), seen
    assert "SIGKILL" in seen["message"]
    assert seen["hint"]
    assert bench.again("D")["outcome"] == "PASS"


def test_a_call_that_hangs_is_killed_when_its_board_goes_and_the_nest_serves_the_next(bench: Bench) -> None:
    """A stopped process is what a call that hangs in a C library looks like from outside."""
    pid, before = served(bench, "SN-HANGS")
    os.kill(pid, signal.SIGSTOP)
    board = bench.line.boards[-1]
    began = time.monotonic()
    board.ask("unplug")
    seen = bench.verdict("D", after=before)
    assert time.monotonic() - began < 6
    assert (seen["outcome"], seen["problem"]) == ("ABORTED", "DeviceGone")
    assert gone(pid)
    board.ask("plug")
    assert bench.verdict("D", after=seen["visit"])["outcome"] == "PASS"


def test_a_call_that_hangs_under_its_board_is_killed_when_its_time_and_grace_are_over(bench: Bench) -> None:
    before = bench.visit_of("D")
    board = bench.board("D", "SN-OVERRUN", "--no-tpm", "--boot-ms", "1500")
    bench.plug(board)
    seen = bench.until(
        "D", lambda nest: nest["visit"] != before and nest["action"] == "boot" and nest["worker"]
    )
    pid = int(seen["worker"])
    os.kill(pid, signal.SIGSTOP)
    seen = bench.verdict("D", after=before)
    assert (seen["outcome"], seen["problem"]) == ("FAIL", "DeadlineExceeded"), seen
    assert "could not be stopped" in seen["message"]
    assert gone(pid)
    assert bench.again("D")["outcome"] == "PASS"
