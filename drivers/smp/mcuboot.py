"""MCUboot's image format, read strictly: header, body, TLVs, and the hash by which a board names the image.

Source: MCUboot, docs/design.md, "Image format", and boot/bootutil/include/bootutil/image.h. All little-endian.
Nothing is flashed here.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from hal.errors import FlashRejected

MAGIC: Final = 0x96F3B83D
TLV_INFO_MAGIC: Final = 0x6907
PROTECTED_TLV_INFO_MAGIC: Final = 0x6908
TLV_SHA256: Final = 0x10
FLAGS_ENCRYPTED: Final = 0x04 | 0x08  # IMAGE_F_ENCRYPTED_AES128, IMAGE_F_ENCRYPTED_AES256
HASH_SIZE: Final = 32

# magic, load address, header size, protected TLV size, body size, flags, version (major, minor, revision, build), pad
_HEADER: Final = struct.Struct("<IIHHIIBBHII")
_TLV_INFO: Final = struct.Struct("<HH")  # magic, octets with this info
_TLV: Final = struct.Struct("<HH")  # type, octets of value


@dataclass(frozen=True, slots=True)
class McubootImage:
    """What an image says about itself. `digest`: SHA-256 over header, body and protected TLVs."""

    version: str
    digest: bytes


def parse(data: bytes) -> McubootImage:
    """Reads `data` as a whole image with nothing after it. FlashRejected says what is wrong with it."""
    if len(data) < _HEADER.size:
        raise _rejected("it is shorter than a header")
    fields = _HEADER.unpack_from(data)
    magic, _load, header_size, protected_size, body_size, flags, major, minor, revision, build, _pad = fields
    if magic != MAGIC:
        raise _rejected("it does not begin with MCUboot's magic number")
    if header_size < _HEADER.size:
        raise _rejected("its header size is too small")
    hashed = header_size + body_size
    if hashed > len(data):
        raise _rejected("it is shorter than its header says")
    if protected_size:
        end, _ = _tlvs(data, hashed, PROTECTED_TLV_INFO_MAGIC)
        if end - hashed != protected_size:
            raise _rejected("its protected TLVs are not as long as the header says")
        hashed = end
    end, found = _tlvs(data, hashed, TLV_INFO_MAGIC)
    if end != len(data):
        raise _rejected("something follows its TLVs; images padded to a slot's size can't be uploaded")
    digests = [value for kind, value in found if kind == TLV_SHA256]
    if len(digests) != 1 or len(digests[0]) != HASH_SIZE:
        raise _rejected("it has not exactly one SHA-256 TLV")
    # The hash of an encrypted image is over its plain text, which we don't have.
    if not flags & FLAGS_ENCRYPTED and hashlib.sha256(data[:hashed]).digest() != digests[0]:
        raise _rejected("its SHA-256 TLV is not the hash of its content")
    version = f"{major}.{minor}.{revision}" + (f".{build}" if build else "")
    return McubootImage(version, digests[0])


def _tlvs(data: bytes, offset: int, magic: int) -> tuple[int, list[tuple[int, bytes]]]:
    """The offset after a TLV area, and its (type, value) pairs."""
    if offset + _TLV_INFO.size > len(data):
        raise _rejected("its TLVs are missing")
    found_magic, total = _TLV_INFO.unpack_from(data, offset)
    end = offset + total
    if found_magic != magic or total < _TLV_INFO.size or end > len(data):
        raise _rejected("its TLV area is damaged")
    found: list[tuple[int, bytes]] = []
    place = offset + _TLV_INFO.size
    while place < end:
        if place + _TLV.size > end:
            raise _rejected("its last TLV is cut")
        kind, size = _TLV.unpack_from(data, place)
        place += _TLV.size
        if place + size > end:
            raise _rejected("a TLV is longer than its area")
        found.append((kind, data[place : place + size]))
        place += size
    return end, found


def _rejected(why: str) -> FlashRejected:
    return FlashRejected(f"this is no MCUboot image: {why}")
