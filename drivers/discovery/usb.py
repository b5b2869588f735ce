"""Where on the USB a tty is, and what its descriptors claim: read from sysfs, which asks nothing of the device.

The place must not depend on the order in which things were plugged in, nor on which ttys have appeared so far: two
nests must never swap names. Everything that the device says is untrusted text. No port is opened here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TEXT_LIMIT: Final = 64
"""Characters kept of a string descriptor; USB 2.0 (9.6.7) allows 126."""
FILE_LIMIT: Final = 1 << 16
"""Octets read of a sysfs attribute: eight configurations of the largest size that the kernel takes fit in."""
PARENT_LIMIT: Final = 64

# Names that the kernel gives (drivers/usb/core: usb_alloc_dev, usb_set_configuration).
_DEVICE: Final = re.compile(r"\d{1,3}-\d{1,3}(?:\.\d{1,3}){0,6}")
_INTERFACE: Final = re.compile(r"[0-9.-]+:((\d{1,3})\.\d{1,3})")
_HEX16: Final = re.compile(r"[0-9a-fA-F]{4}")
_NUMBER: Final = re.compile(r"\d{1,5}")

# USB 2.0, table 9-5: descriptor types; tables 9-10 and 9-12: offsets in them.
CONFIGURATION: Final = 2
INTERFACE: Final = 4
CONFIGURATION_LENGTH: Final = 9
INTERFACE_LENGTH: Final = 9
# USB class codes: communications with the abstract control model (a CDC ACM port), and vendor specific (a bridge).
ACM: Final = (0x02, 0x02)
VENDOR_CLASS: Final = 0xFF


@dataclass(frozen=True, slots=True)
class UsbTty:
    """A tty on the USB. `number`: the address that its enumeration got (a replug gets another one)."""

    place: str
    number: str
    vendor_id: int | None
    product_id: int | None
    serial_number: str | None
    description: str | None


def locate(tty: Path) -> UsbTty | None:
    """The tty at the sysfs folder `tty` (no symbolic link), or None when it isn't on the USB or is just vanishing.

    The place is `usb:BUS-PORTS` (`usb:1-1.4`), followed by `:CONFIGURATION.INTERFACE` where the device has several
    interfaces that carry ttys, and by `.PORT` for the second and further ports of one interface.
    """
    interface, device = _above(tty)
    if interface is None or device is None:
        return None
    named = _INTERFACE.fullmatch(interface.name)
    if named is None or not _DEVICE.fullmatch(device.name):
        return None
    place = f"usb:{device.name}"
    port = _number(_text(tty.parent.parent / "port_number"))
    descriptors = _read(device / "descriptors")
    kind = (_hex(_text(interface / "bInterfaceClass")), _hex(_text(interface / "bInterfaceSubClass")))
    if port or port_interfaces(descriptors, int(named[2]), acm=kind == ACM) > 1:
        place += f":{named[1]}" + (f".{port}" if port else "")
    return UsbTty(
        place=place,
        number=_text(device / "devnum") or "",
        vendor_id=_hex16(_text(device / "idVendor")),
        product_id=_hex16(_text(device / "idProduct")),
        serial_number=_text(device / "serial"),
        description=_text(device / "product"),
    )


def port_interfaces(descriptors: bytes, configuration: int, *, acm: bool) -> int:
    """How many interfaces of `configuration` may carry a tty of its kind, by the device's own descriptors.

    Read from the descriptors and not from what has appeared yet: the first tty of four must know that it is one of
    four. For an ACM port the other ACM ports count; for a bridge's interface, ACM and vendor-specific ones, so that
    the names of a device with both kinds differ. `descriptors`: device, then configurations, as sysfs shows them
    (USB 2.0, 9.5); what can't be read ends the count.
    """
    count, at, current = 0, 0, None
    while at + 2 <= len(descriptors):
        length, kind = descriptors[at], descriptors[at + 1]
        if length < 2 or at + length > len(descriptors):
            break
        if kind == CONFIGURATION and length >= CONFIGURATION_LENGTH:
            current = descriptors[at + 5]
        elif kind == INTERFACE and length >= INTERFACE_LENGTH and current == configuration:
            alternate, interface_class, subclass = (
                descriptors[at + 3],
                descriptors[at + 5],
                descriptors[at + 6],
            )
            is_acm = (interface_class, subclass) == ACM
            count += alternate == 0 and (is_acm or (not acm and interface_class == VENDOR_CLASS))
        at += length
    return count


def clean(text: bytes) -> str | None:
    """A string descriptor as printable ASCII of at most TEXT_LIMIT characters; None when nothing is left."""
    decoded = text.decode("utf-8", "replace").strip()
    kept = "".join(letter if " " <= letter <= "~" else "?" for letter in decoded[:TEXT_LIMIT])
    return kept or None


def _above(tty: Path) -> tuple[Path | None, Path | None]:
    """The USB interface and the USB device that `tty` hangs from."""
    interface = None
    for folder in list(tty.parents)[:PARENT_LIMIT]:
        if interface is None and (folder / "bInterfaceNumber").is_file():
            interface = folder
        elif (folder / "idVendor").is_file() and (folder / "devnum").is_file():
            return interface, folder
    return interface, None


def _read(file: Path) -> bytes:
    """A sysfs attribute; empty when it isn't there or its device is gone: the departure follows by itself."""
    try:
        with file.open("rb") as stream:
            return stream.read(FILE_LIMIT)
    except OSError:
        return b""


def _text(file: Path) -> str | None:
    return clean(_read(file))


def _hex16(text: str | None) -> int | None:
    return int(text, 16) if text and _HEX16.fullmatch(text) else None


def _hex(text: str | None) -> int | None:
    return int(text, 16) if text and re.fullmatch(r"[0-9a-fA-F]{2}", text) else None


def _number(text: str | None) -> int:
    return int(text) if text and _NUMBER.fullmatch(text) else 0
