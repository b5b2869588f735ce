"""The driver serial on a pseudo-terminal: the HAL's contract tests, and what it does with ports that it can't have."""

from __future__ import annotations

import os
import select
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from drivers.serial.driver import DRIVER, Settings
from drivers.serial.port import SerialPort
from hal.call import Call
from hal.conformance import channel
from hal.driver import Bindings
from hal.errors import ConfigError, DeviceBusy, DeviceGone
from hal.interfaces import Channel
from hal.types import Sighting


class PtyBench:
    """A pseudo-terminal whose other end is the test's."""

    def __init__(self) -> None:
        self._master = -1

    @contextmanager
    def open(self) -> Iterator[Channel]:
        self._master, slave = os.openpty()
        tty.setraw(slave)
        bindings = Bindings()
        name = os.ttyname(slave)
        bindings.add("station", Sighting, Sighting(place=f"tty:{name}", port=name))
        try:
            with DRIVER.open(Settings(), bindings) as offered:
                os.close(slave)
                yield offered[Channel]  # type: ignore[misc]  # a mapping by type knows no more than object
        finally:
            if self._master >= 0:
                os.close(self._master)

    def send(self, data: bytes) -> None:
        assert os.write(self._master, data) == len(data)

    def receive(self, count: int) -> bytes:
        found, until = b"", time.monotonic() + 20
        while len(found) < count:
            ready, _, _ = select.select([self._master], [], [], until - time.monotonic())
            assert ready, f"only {len(found)} of {count} octets came"
            found += os.read(self._master, count - len(found))
        return found

    def unplug(self) -> None:
        os.close(self._master)
        self._master = -1


@pytest.fixture
def pty() -> Iterator[SimpleNamespace]:
    master, slave = os.openpty()
    yield SimpleNamespace(master=master, slave=slave, path=os.ttyname(slave))
    os.close(master)
    os.close(slave)


def test_a_pseudo_terminal_keeps_the_contract() -> None:
    channel.check(PtyBench())


def test_a_port_is_held_by_one_and_free_after_it(pty: SimpleNamespace) -> None:
    first = SerialPort(pty.path, 115200)
    with pytest.raises(DeviceBusy, match="another program holds it"):
        SerialPort(pty.path, 115200)
    first.close()
    SerialPort(pty.path, 115200).close()


def test_a_port_that_is_not_there_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DeviceGone):
        SerialPort(str(tmp_path / "board-A"), 115200)


def test_what_is_no_terminal_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match="no serial port"):
        SerialPort(str(file), 115200)


def test_a_rate_that_the_kernel_does_not_know_is_refused_and_leaves_the_port_free(
    pty: SimpleNamespace,
) -> None:
    with pytest.raises(ConfigError, match="12345 baud"):
        SerialPort(pty.path, 12345)
    SerialPort(pty.path, 921600).close()


def test_a_port_is_not_inherited_by_children(pty: SimpleNamespace) -> None:
    port = SerialPort(pty.path, 115200)
    try:
        assert not os.get_inheritable(port._fd)
    finally:
        port.close()


def test_a_cut_write_does_not_hold_up_closing() -> None:
    bench = PtyBench()
    began = time.monotonic()
    with pytest.raises(TimeoutError), bench.open() as port:
        port.write(Call.lasting(0.1), bytes(1 << 20))
    assert time.monotonic() - began < 2


def test_removal_wakes_a_read_at_once() -> None:
    bench = PtyBench()
    with bench.open() as port:
        timer = threading.Timer(0.1, bench.unplug)
        timer.start()
        began = time.monotonic()
        with pytest.raises(DeviceGone):
            port.read(Call.lasting(20), 1)
        assert time.monotonic() - began < 2
        timer.join()
