"""USB devices as the kernel shows them in sysfs, in a folder of the test's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ACM = (0x02, 0x02)
DATA = (0x0A, 0x00)
VENDOR = (0xFF, 0x00)
STORAGE = (0x08, 0x06)


@dataclass(frozen=True)
class UsbDevice:
    """`interfaces`: (class, subclass) each; ttys are named by the test."""

    path: str = "1-1.4"
    interfaces: tuple[tuple[int, int], ...] = (VENDOR,)
    serial: bytes | None = b"A1"
    number: int = 7
    vendor: str = "0403"
    product: str = "6001"

    @property
    def descriptors(self) -> bytes:
        """Device (18 octets) and one configuration, as /sys/bus/usb/devices/*/descriptors shows them."""
        body = b"".join(
            bytes([9, 4, index, 0, 2, kind, subclass, 0, 0]) + bytes([7, 5, 0x81 + index, 2, 64, 0, 0])
            for index, (kind, subclass) in enumerate(self.interfaces)
        )
        total = (9 + len(body)).to_bytes(2, "little")
        device = bytes([18, 1, 0, 2, 0, 0, 0, 64]) + bytes.fromhex("0304016000010102") + bytes([3, 1])
        return device + bytes([9, 2]) + total + bytes([len(self.interfaces), 1, 0, 0x80, 50]) + body

    def write(self, sys: Path) -> Path:
        """The device's folder below `sys`, with its interfaces."""
        folder = sys / "devices/pci0/usb1/1-1" / self.path
        folder.mkdir(parents=True)
        values = {"idVendor": self.vendor, "idProduct": self.product, "devnum": str(self.number)}
        for name, value in values.items():
            (folder / name).write_text(f"{value}\n")
        (folder / "product").write_text("Emulated bridge\n")
        (folder / "descriptors").write_bytes(self.descriptors)
        if self.serial is not None:
            (folder / "serial").write_bytes(self.serial + b"\n")
        for index, (kind, subclass) in enumerate(self.interfaces):
            interface = folder / f"{self.path}:1.{index}"
            interface.mkdir()
            (interface / "bInterfaceNumber").write_text(f"{index:02x}\n")
            (interface / "bInterfaceClass").write_text(f"{kind:02x}\n")
            (interface / "bInterfaceSubClass").write_text(f"{subclass:02x}\n")
        return folder


def write_tty(
    device: Path, name: str, *, minor: int = 0, interface: int = 0, port: int | None = None
) -> Path:
    """A tty of `device` (see `UsbDevice.write`); `port` for a bridge, where usb-serial puts a folder between."""
    folder = device / f"{device.name}:1.{interface}"
    if port is not None:
        folder /= name
        folder.mkdir()
        (folder / "port_number").write_text(f"{port}\n")
    folder = folder / "tty" / name
    folder.mkdir(parents=True)
    (folder / "dev").write_text(f"188:{minor}\n")
    (folder / "uevent").write_text(f"MAJOR=188\nMINOR={minor}\nDEVNAME={name}\n")
    classes = next(above for above in device.parents if above.name == "devices").parent / "class/tty"
    classes.mkdir(parents=True, exist_ok=True)
    (folder / "subsystem").symlink_to(os.path.relpath(classes, folder))
    (classes / name).symlink_to(os.path.relpath(folder, classes))
    return folder
