"""Driver "udev" on the real libudev and the kernel's uevents, with made-up hardware (see tests/udev_bench.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drivers.discovery.libudev import Libudev
from drivers.discovery.udev import DRIVER, Settings, UdevDiscovery
from hal.call import Call
from hal.conformance.discovery import PROMPT
from hal.driver import opened
from hal.errors import DeadlineExceeded
from hal.interfaces import Discovery
from hal.types import DiscoveryFault, Sighting
from tests import udev_bench

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = ("unshare", "--net", "--mount") + (() if os.geteuid() == 0 else ("--user", "--map-root-user"))


@pytest.fixture(scope="module")
def _namespaces() -> None:
    tried = subprocess.run(
        [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"this machine gives no namespaces: {tried.stderr.decode(errors='replace').strip()}")


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("scenario", [scenario.__name__ for scenario in udev_bench.SCENARIOS])
def test_hot_plug(scenario: str) -> None:
    ended = subprocess.run(
        [*NAMESPACE, sys.executable, "-W", "error", "-m", "tests.udev_bench", scenario],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_the_ttys_of_this_machine_are_enumerated() -> None:
    source = Libudev()
    found = list(source.devices())
    source.close()
    listed = {entry.name for entry in Path("/sys/class/tty").iterdir()}
    assert {Path(device.key).name for device in found} == listed
    assert all(device.folder.is_dir() for device in found)


def test_a_real_monitor_is_left_at_once_by_cancel(tmp_path: Path) -> None:
    control = tmp_path / "control"
    control.touch()
    call = Call()
    watch = UdevDiscovery(control=control).watch(call.within(0.3))
    with pytest.raises(DeadlineExceeded):
        while True:
            assert isinstance(next(watch), Sighting)
    call.cancel.set()
    begun = time.monotonic()
    assert list(UdevDiscovery(control=control).watch(call)) == []
    assert time.monotonic() - begun < PROMPT


def test_the_driver_offers_a_discovery_that_tells_of_a_missing_udev(tmp_path: Path) -> None:
    with opened([("discovery", DRIVER, Settings())], {}) as bindings:
        assert isinstance(bindings.get(Discovery), UdevDiscovery)
    events = UdevDiscovery(control=tmp_path / "nothing").watch(Call.lasting(5))
    fault = next(events)
    assert isinstance(fault, DiscoveryFault)
    assert "port-polling" in fault.error.hint


def test_a_broken_monitor_is_told_once_and_made_anew() -> None:
    made: list[int] = []

    def broken() -> Libudev:
        made.append(len(made))
        raise OSError(24, "Too many open files")

    watch = UdevDiscovery(broken, control=Path("/dev/null")).watch(Call.lasting(1.3))
    fault = next(watch)
    assert isinstance(fault, DiscoveryFault)
    assert "Too many open files" in str(fault.error)
    with pytest.raises(DeadlineExceeded):
        next(watch)
    assert len(made) == 2
