"""Places on the USB must follow from where and what a device is, never from order; descriptors are untrusted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.discovery.usb import TEXT_LIMIT, clean, locate, port_interfaces
from tests.usb_tree import ACM, DATA, STORAGE, VENDOR, UsbDevice, write_tty


def place(tmp_path: Path, device: UsbDevice, *, interface: int = 0, port: int | None = None) -> str | None:
    tty = write_tty(device.write(tmp_path), "ttyX0", interface=interface, port=port)
    found = locate(tty)
    return found.place if found else None


@pytest.mark.parametrize(
    ("interfaces", "interface", "port", "expected"),
    [
        ((VENDOR,), 0, 0, "usb:1-1.4"),  # FT232, CP2102
        ((ACM, DATA), 0, None, "usb:1-1.4"),  # a CDC ACM board
        ((VENDOR, VENDOR), 0, 0, "usb:1-1.4:1.0"),  # FT2232: known to be one of two though alone so far
        ((VENDOR, VENDOR), 1, 0, "usb:1-1.4:1.1"),
        ((ACM, DATA, ACM, DATA), 2, None, "usb:1-1.4:1.2"),
        ((STORAGE, ACM, DATA, VENDOR), 1, None, "usb:1-1.4"),  # a debug probe: its one serial port
        (
            (ACM, DATA, VENDOR),
            2,
            0,
            "usb:1-1.4:1.2",
        ),  # a bridge beside an ACM port: other name than the ACM's
        ((VENDOR,), 0, 1, "usb:1-1.4:1.0.1"),  # several ports on one interface
    ],
)
def test_the_place_is_the_usb_path_and_the_interface_where_there_are_several(
    tmp_path: Path,
    interfaces: tuple[tuple[int, int], ...],
    interface: int,
    port: int | None,
    expected: str,
) -> None:
    assert place(tmp_path, UsbDevice(interfaces=interfaces), interface=interface, port=port) == expected


def test_what_the_descriptors_say_is_read(tmp_path: Path) -> None:
    found = locate(write_tty(UsbDevice().write(tmp_path), "ttyX0", port=0))
    assert found is not None
    assert (found.vendor_id, found.product_id) == (0x0403, 0x6001)
    assert (found.serial_number, found.description, found.number) == ("A1", "Emulated bridge", "7")


def test_a_tty_off_the_usb_or_of_a_vanished_device_has_no_place(tmp_path: Path) -> None:
    folder = tmp_path / "devices/platform/serial8250/tty/ttyS0"
    folder.mkdir(parents=True)
    assert locate(folder) is None
    assert locate(tmp_path / "devices/pci0/usb1/1-1/1-1.4/1-1.4:1.0/tty/ttyACM0") is None


@pytest.mark.parametrize("vendor", ["", "40", "zzzz", "0x403", "10403", "٠٤٠٣"])
def test_ids_that_are_no_ids_are_left_out(tmp_path: Path, vendor: str) -> None:
    found = locate(write_tty(UsbDevice(vendor=vendor).write(tmp_path), "ttyX0", port=0))
    assert found is not None
    assert found.vendor_id is None
    assert found.product_id == 0x6001


@given(st.binary(max_size=300))
def test_any_string_descriptor_becomes_bounded_printable_text(text: bytes) -> None:
    cleaned = clean(text)
    assert cleaned is None or (0 < len(cleaned) <= TEXT_LIMIT and cleaned.isascii() and cleaned.isprintable())


@given(st.binary(max_size=400), st.integers(0, 255), st.booleans())
def test_any_descriptors_give_a_count_and_never_an_error(
    descriptors: bytes, configuration: int, acm: bool
) -> None:
    assert 0 <= port_interfaces(descriptors, configuration, acm=acm) <= len(descriptors) // 9


@given(
    st.lists(st.sampled_from([ACM, DATA, VENDOR, STORAGE]), max_size=8),
    st.binary(max_size=2),
)
def test_the_count_is_of_the_interfaces_that_may_carry_a_port(
    interfaces: list[tuple[int, int]], rest: bytes
) -> None:
    descriptors = UsbDevice(interfaces=tuple(interfaces)).descriptors
    assert port_interfaces(descriptors, 1, acm=True) == interfaces.count(ACM)
    assert port_interfaces(descriptors, 1, acm=False) == interfaces.count(ACM) + interfaces.count(VENDOR)
    assert port_interfaces(descriptors, 2, acm=True) == 0, "another configuration's interfaces don't count"
