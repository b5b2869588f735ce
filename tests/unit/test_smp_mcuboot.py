"""MCUboot images: the board's digest is found, and anything that is no whole image is refused."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.emulated.image import build
from drivers.smp import mcuboot
from hal.errors import FlashRejected

BODY = bytes(range(256)) * 4
WHOLE = build("1.4.2+7", BODY)


def protected() -> bytes:
    """An image with a protected TLV (a dependency, type 0x40), as `imgtool sign --dependencies` makes."""
    area = struct.pack("<HHHH", 0x6908, 20, 0x40, 12) + bytes(12)
    head = struct.pack("<IIHHIIBBHII", 0x96F3B83D, 0, 32, len(area), len(BODY), 0, 2, 0, 1, 0, 0)
    hashed = head + BODY + area
    tlv = struct.pack("<HH", 0x10, 32) + hashlib.sha256(hashed).digest()
    signature = struct.pack("<HH", 0x22, 70) + bytes(70)
    return hashed + struct.pack("<HH", 0x6907, 4 + len(tlv) + len(signature)) + tlv + signature


def test_the_digest_is_that_of_header_and_body() -> None:
    found = mcuboot.parse(WHOLE)
    assert found.version == "1.4.2.7"
    assert found.digest == hashlib.sha256(WHOLE[: 0x200 + len(BODY)]).digest()


def test_protected_tlvs_are_part_of_the_digest() -> None:
    data = protected()
    assert mcuboot.parse(data).digest == hashlib.sha256(data[: 32 + len(BODY) + 20]).digest()


@pytest.mark.parametrize("size", [0, 31, 32, 0x200, len(WHOLE) - 37, len(WHOLE) - 1])
def test_a_cut_image_is_refused(size: int) -> None:
    with pytest.raises(FlashRejected):
        mcuboot.parse(WHOLE[:size])


def test_what_follows_an_image_is_refused() -> None:
    with pytest.raises(FlashRejected, match="something follows"):
        mcuboot.parse(WHOLE + b"\xff")


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 7))
def test_a_flipped_bit_is_refused(place: int, bit: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[place] ^= 1 << bit
    # Of an encrypted image (flags at 16) nobody but the board can check the hash.
    encrypted = struct.unpack_from("<I", damaged, 16)[0] & mcuboot.FLAGS_ENCRYPTED
    if not encrypted:
        with pytest.raises(FlashRejected):
            mcuboot.parse(bytes(damaged))


@given(st.binary(max_size=300).map(lambda data: mcuboot.MAGIC.to_bytes(4, "little") + data))
def test_any_octets_are_an_image_or_refused(data: bytes) -> None:
    with pytest.raises(FlashRejected):
        mcuboot.parse(data)
