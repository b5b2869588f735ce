"""The ports that are there at one moment, without udev: configured paths and globs, and pyserial's list.

Nothing is opened; a port is known by what `stat` says of it. No memory of earlier looks is kept here.
"""

from __future__ import annotations

import itertools
import os
import stat
from dataclasses import dataclass, replace
from glob import iglob
from pathlib import Path
from typing import Final

from serial.tools import list_ports

from drivers.discovery.presence import Port
from drivers.discovery.usb import locate
from hal.errors import StationError, quote
from hal.types import Sighting

PATH_SHOWN: Final = 300
"""Characters of a configured path in a message: long enough to find it."""
PATH_LIMIT: Final = 4096
"""Paths that one pattern may lead to."""
SYSFS_TTY: Final = Path("/sys/class/tty")
PTS_MAJORS: Final = range(136, 144)
"""Major numbers of pseudo-terminals' devices (Linux, Documentation/admin-guide/devices.txt)."""
PORT_UNKNOWN: Final = "0"
"""`type` in sysfs of an 8250 port without hardware behind it (include/uapi/linux/serial_core.h)."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen. `ports` is None when nothing can be said of them; `problem` may come with ports."""

    ports: tuple[Port, ...] | None
    problem: StationError | None = None


def configured(pattern: str) -> Look:
    """The character devices that `pattern`, an absolute path or glob, leads to now; places are the paths themselves."""
    found = iglob(pattern)  # noqa: PTH207 - Path.glob takes no absolute pattern
    paths = sorted(itertools.islice(found, PATH_LIMIT + 1))
    problem = None
    if len(paths) > PATH_LIMIT:
        problem = StationError(
            f"{quote(pattern, PATH_SHOWN)} leads to more than {PATH_LIMIT} paths; the rest is left out"
        )
    ports = []
    for path in paths[:PATH_LIMIT]:
        try:
            port = _port(path, path)
        except OSError as error:
            problem = StationError(f"{quote(path, PATH_SHOWN)} can't be looked at: {error.strerror}")
            continue
        if port is not None:
            ports.append(port)
    return Look(tuple(ports), problem)


def listed() -> Look:
    """The list of pyserial: places as driver "udev" names them for ports on the USB, `tty:NODE` for others."""
    try:
        nodes = sorted(info.device for info in list_ports.comports())
        ports = [port for node in nodes if (port := _listed_port(node)) is not None]
    except (TypeError, ValueError, OSError) as error:
        # pyserial 3.5 reads a port's ids without asking whether it is still there: a removal breaks its whole list.
        return Look(None, StationError(f"the list of serial ports can't be read ({type(error).__name__})"))
    return Look(tuple(ports))


def _listed_port(node: str) -> Port | None:
    folder = SYSFS_TTY / Path(node).name
    if _is_ghost(folder):
        return None
    usb = locate(folder.resolve())
    port = _port(usb.place if usb else f"tty:{node}", node)
    if port is None or usb is None:
        return port
    sighting = replace(
        port.sighting,
        vendor_id=usb.vendor_id,
        product_id=usb.product_id,
        serial_number=usb.serial_number,
        description=usb.description,
    )
    return Port(sighting, (port.identity, usb.number))


def _port(place: str, path: str) -> Port | None:
    """What `path` is now, or None when there is no character device. OSError when the system doesn't let us look.

    An emulated board's path is a link to a pseudo-terminal, whose number is soon used again; so the identity is that
    of the link and of the node together.
    """
    try:
        link = os.lstat(path)
        target = os.path.realpath(path)
        node = Path(target).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISCHR(node.st_mode):
        return None
    # A pseudo-terminal's inode number follows from its number, but its ctime is that of its making. Elsewhere a
    # changed ctime may be udev setting the mode, on the same device.
    made = node.st_ctime_ns if os.major(node.st_rdev) in PTS_MAJORS else None
    linked = (link.st_ino, link.st_mtime_ns) if stat.S_ISLNK(link.st_mode) else None
    return Port(Sighting(place=place, port=target), (target, node.st_ino, node.st_rdev, made, linked))


def _is_ghost(folder: Path) -> bool:
    """Whether it is one of the 8250 ports that the kernel lists though nothing is wired to them."""
    try:
        return (folder / "type").read_text().strip() == PORT_UNKNOWN
    except (OSError, UnicodeDecodeError):
        return False
