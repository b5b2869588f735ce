"""libudev's events and enumeration of ttys, through pyudev. Its types end here."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyudev

CONTROL: Final = Path("/run/udev/control")
"""udevd's socket. libudev looks for it once: a monitor that was made before udevd ran stays deaf for ever
(systemd, src/libsystemd/sd-device/device-monitor.c)."""


@dataclass(frozen=True, slots=True)
class TtyDevice:
    """One tty as udev knows it. `key`: its path in sysfs, the same in each event about it.

    `made`: USEC_INITIALIZED, the microsecond at which udev first saw it: another plug-in has another one, and "remove"
    still carries that of the device removed. Empty where udev didn't say.
    """

    key: str
    folder: Path
    node: str | None
    made: str
    initialized: bool


class Libudev:
    """An enumeration and a running monitor; to be used by the thread that made it. Errors are OSError.

    Made before the enumeration is read, so that nothing falls between the two.
    """

    def __init__(self) -> None:
        try:
            self._context = pyudev.Context()
        except ImportError as error:
            raise OSError(str(error)) from error
        self._monitor = pyudev.Monitor.from_netlink(self._context)
        self._monitor.filter_by("tty")
        self._monitor.start()
        self._errors = socket.socket(fileno=os.dup(self._monitor.fileno()))

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def close(self) -> None:
        self._errors.close()

    def receive(self) -> tuple[str, TtyDevice] | None:
        """The next event (action, device), or None when there is none now. OSError(ENOBUFS) when any were lost."""
        # pyudev's poll() takes the POLLERR of an overflow for a broken descriptor and never reads, and so never
        # clears, the socket's error. Asking for it does.
        number = self._errors.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
        try:
            device = self._monitor.poll(0)
        except OSError as error:
            # Without a number it is that POLLERR: the overflow happened between the two lines above.
            raise OSError(error.errno or errno.ENOBUFS, str(error)) from error
        except ValueError as error:
            # So pyudev says EINVAL: libudev could not read the event. One that can't be read is one that was lost.
            raise OSError(errno.ENOBUFS, "an event can't be read") from error
        return None if device is None else (str(device.action), describe(device))

    def devices(self) -> Iterator[TtyDevice]:
        """Every tty that is there now."""
        return (describe(device) for device in self._context.list_devices(subsystem="tty"))


def describe(device: Any) -> TtyDevice:
    """A pyudev.Device as ours."""
    return TtyDevice(
        key=str(device.device_path),
        folder=Path(device.sys_path),
        node=device.device_node,
        made=str(device.properties.get("USEC_INITIALIZED", "")),
        initialized=bool(device.is_initialized),
    )
