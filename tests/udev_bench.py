"""Hot-plug without hardware: the real libudev on a sysfs and a netlink of its own. Run as

    unshare --net --mount python -m tests.udev_bench SCENARIO

(with --user --map-root-user when not root). The kernel delivers multicast uevents from a namespace's root just as it
delivers udevd's; only the hardware and udevd's rules are made up. Prints nothing; a failed scenario is a traceback.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.discovery import presence
from drivers.discovery.libudev import CONTROL, Libudev
from drivers.discovery.udev import UdevDiscovery
from hal.call import Call
from hal.conformance import discovery as conformance
from hal.errors import DeviceBusy, StationError
from hal.interfaces import Discovery
from hal.types import Departure, DiscoveryFault
from tests.usb_tree import VENDOR, UsbDevice, write_tty

NETLINK_KOBJECT_UEVENT = 15
UDEV_GROUP = 2  # MONITOR_GROUP_UDEV of systemd's device-monitor.c
SYS = Path("/sys")
DATABASE = Path("/run/udev/data")


def murmur2(key: bytes) -> int:
    """MurmurHash2 with seed 0: how libudev's socket filter knows a subsystem."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = len(key)
    whole = len(key) - len(key) % 4
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if key[whole:]:
        h = (h ^ int.from_bytes(key[whole:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


class UdevBench:
    """Two ports of a hub, and bridges to plug into them."""

    def __init__(self) -> None:
        for folder in ("/run", "/sys", "/dev"):
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
        Path("/dev/null").touch()  # ctypes looks for libudev through ldconfig, which wants one
        (SYS / "class/tty").mkdir(parents=True)
        DATABASE.mkdir(parents=True)
        CONTROL.touch()
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT)
        self.sequence = itertools.count(1)
        self.plugs = itertools.count(1)
        self.devices: dict[int, tuple[UsbDevice, Path]] = {}
        self.denied: set[str] = set()

    def open(self) -> AbstractContextManager[Discovery]:
        return nullcontext(UdevDiscovery(may_open=lambda node: node not in self.denied))

    def plug(self, number: int) -> None:
        self.attach(number)
        self.send("add", number)

    def attach(self, number: int, *, initialized: bool = True) -> None:
        """The kernel's part: no event yet. Another serial number, address and time each time."""
        plug = next(self.plugs)
        device = UsbDevice(path=f"1-1.{number + 1}", number=plug, serial=f"SN\xff{plug}".encode("latin-1"))
        folder = device.write(SYS)
        write_tty(folder, f"ttyUSB{number}", minor=number, port=0)
        self.devices[number] = (device, folder)
        os.mknod(f"/dev/ttyUSB{number}")  # touch() would open it, and that is what a check looks for
        if initialized:
            (DATABASE / f"c188:{number}").write_text(f"I:{plug * 1000}\n")

    def unplug(self, number: int) -> None:
        self.send("remove", number)
        self.detach(number)

    def detach(self, number: int) -> None:
        _, folder = self.devices.pop(number)
        shutil.rmtree(folder)
        (SYS / f"class/tty/ttyUSB{number}").unlink()
        Path(f"/dev/ttyUSB{number}").unlink()
        (DATABASE / f"c188:{number}").unlink(missing_ok=True)

    def swap(self, number: int) -> None:
        """The removal's event never comes."""
        self.detach(number)
        self.plug(number)

    def send(self, action: str, number: int, made: str | None = None) -> None:
        """An event as udevd sends it (systemd, device-monitor.c: monitor_netlink_header)."""
        device, _ = self.devices[number]
        name = f"ttyUSB{number}"
        tty = (SYS / f"class/tty/{name}").resolve()
        properties = {
            "ACTION": action,
            "DEVPATH": str(tty).removeprefix("/sys"),
            "SUBSYSTEM": "tty",
            "SEQNUM": str(next(self.sequence)),
            "DEVNAME": f"/dev/{name}",
            "MAJOR": "188",
            "MINOR": str(number),
        }
        made = str(device.number * 1000) if made is None else made
        if made:
            properties["USEC_INITIALIZED"] = made
        body = b"".join(f"{key}={value}\0".encode() for key, value in properties.items())
        header = b"libudev\0" + struct.pack(">I", 0xFEEDCAFE) + struct.pack("=III", 40, 40, len(body))
        self.socket.sendto(header + struct.pack(">II", murmur2(b"tty"), 0) + bytes(8) + body, (0, UDEV_GROUP))


# --- scenarios ---


def contract(bench: UdevBench) -> None:
    conformance.check(bench)


def sighting(bench: UdevBench) -> None:
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        bench.plug(0)
        found = watching.sighting()
        assert found.place == "usb:1-1.1"
        assert found.port == "/dev/ttyUSB0"
        assert (found.vendor_id, found.product_id, found.serial_number) == (0x0403, 0x6001, "SN?1")


def repeated_events_tell_nothing_new(bench: UdevBench) -> None:
    bench.attach(0)
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        watching.sighting()
        for action in ("add", "change", "bind"):
            bench.send(action, 0)
        bench.send("remove", 0, made="1")  # a late one, of an earlier plug-in
        watching.quiet()
        bench.send("remove", 0, made="")  # udev lost its record: what it says still counts
        watching.departure("usb:1-1.1")


def not_yet_initialized_waits_for_its_event(bench: UdevBench) -> None:
    bench.attach(0, initialized=False)
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        watching.quiet()
        (DATABASE / "c188:0").write_text("I:1000\n")
        bench.send("add", 0)
        watching.sighting()


def permissions_that_come_late(bench: UdevBench) -> None:
    bench.denied.add("/dev/ttyUSB0")
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        bench.plug(0)
        watching.quiet()
        bench.denied.clear()
        watching.sighting()


def permissions_that_never_come(bench: UdevBench) -> None:
    presence.ACCESS_PATIENCE, presence.ACCESS_RETRY_LATER = 0.5, 0.3  # type: ignore[misc]
    bench.denied.add("/dev/ttyUSB0")
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        bench.plug(0)
        fault = watching.event()
        assert isinstance(fault, DiscoveryFault)
        assert isinstance(fault.error, DeviceBusy)
        assert "/dev/ttyUSB0" in str(fault.error)
        bench.plug(1)
        assert watching.sighting().place == "usb:1-1.2", "the other nest goes on"
        bench.denied.clear()
        assert watching.sighting().place == "usb:1-1.1"


def an_overflow_is_made_up_for(bench: UdevBench) -> None:
    """What was lost is found by looking; what was queued before it can't undo that."""
    sources: list[Libudev] = []

    def small() -> Libudev:
        source = Libudev()
        source._monitor.set_receive_buffer_size(4096)
        sources.append(source)
        return source

    bench.attach(0)
    watch = UdevDiscovery(small).watch(call := Call())
    first = next(watch)
    bench.send("remove", 0)
    for _ in range(500):
        bench.send("change", 0)
    # Lost from here on: the board in place 0 is swapped, one is plugged in at place 1.
    bench.swap(0)
    bench.plug(1)
    told = [next(watch), next(watch), next(watch)]
    assert told[0] == Departure("usb:1-1.1")
    assert {event.place for event in told[1:]} == {"usb:1-1.1", "usb:1-1.2"}  # type: ignore[union-attr]
    assert first not in told, "the swapped board is another one"
    call.cancel.set()
    assert list(watch) == []
    assert len(sources) == 1, "an overflow doesn't need another monitor"


def overflow_is_what_libudev_reports(bench: UdevBench) -> None:
    source = Libudev()
    source._monitor.set_receive_buffer_size(4096)
    bench.attach(0)
    for _ in range(500):
        bench.send("change", 0)
    with pytest.raises(OSError, match=os.strerror(errno.ENOBUFS)):
        source.receive()
    assert source.receive() is not None, "after it was told, what is queued can be read"
    source.close()


def an_event_that_cannot_be_read_is_made_up_for(bench: UdevBench) -> None:
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        watching.quiet()
        bench.attach(0)
        bench.send("change", 0, made="not a number")
        watching.sighting()
        bench.plug(1)
        watching.sighting()


def without_udev_a_person_is_told_and_it_goes_on_when_udev_starts(bench: UdevBench) -> None:
    CONTROL.unlink()
    bench.attach(0)
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        fault = watching.event()
        assert isinstance(fault, DiscoveryFault)
        assert isinstance(fault.error, StationError)
        watching.quiet()
        CONTROL.touch()
        watching.sighting()
        bench.plug(1)
        watching.sighting()


def a_tty_that_moves_to_another_name_at_its_place_is_a_swap(bench: UdevBench) -> None:
    """The old name lingers while somebody holds the port open: a re-plugged board becomes ttyUSB1."""
    bench.attach(0)
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        place = watching.sighting().place
        device, folder = bench.devices[0]
        shutil.rmtree(folder)
        moved = replace(device, number=99, interfaces=(VENDOR,))
        write_tty(moved.write(SYS), "ttyUSB1", minor=1, port=0)
        (DATABASE / "c188:1").write_text("I:99000\n")
        bench.devices[1] = (moved, folder)
        Path("/dev/ttyUSB1").touch()
        bench.send("add", 1)
        watching.departure(place)
        again = watching.sighting()
        assert (again.place, again.port) == (place, "/dev/ttyUSB1")


def waiting_costs_nothing(bench: UdevBench) -> None:
    bench.attach(0)
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        watching.sighting()
        before = time.process_time()
        time.sleep(1)
        assert time.process_time() - before < 0.02


SCENARIOS = (
    contract,
    sighting,
    repeated_events_tell_nothing_new,
    not_yet_initialized_waits_for_its_event,
    permissions_that_come_late,
    permissions_that_never_come,
    an_overflow_is_made_up_for,
    overflow_is_what_libudev_reports,
    an_event_that_cannot_be_read_is_made_up_for,
    without_udev_a_person_is_told_and_it_goes_on_when_udev_starts,
    a_tty_that_moves_to_another_name_at_its_place_is_a_swap,
    waiting_costs_nothing,
)


if __name__ == "__main__":
    os.environ["SYSTEMD_DEVICE_VERIFY_SYSFS"] = "0"  # libudev: our /sys is no sysfs
    {scenario.__name__: scenario for scenario in SCENARIOS}[sys.argv[1]](bench := UdevBench())
    bench.socket.close()
