"""Firmware images in MCUboot's format: builds them for the bench, and reads what is in a board's flash.

Bytes in, values out. Where an image lies in flash and which one boots is the bootloader's business, not this file's.

Format (MCUboot, docs/design.md and bootutil/image.h), all little-endian: a header of 32 octets, padded to its
`hdr_size`; the body; a TLV area with the SHA-256 over header and body.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAGIC: Final = 0x96F3B83D
"""IMAGE_MAGIC of image.h."""
TLV_INFO_MAGIC: Final = 0x6907
"""IMAGE_TLV_INFO_MAGIC: the unprotected TLV area."""
TLV_SHA256: Final = 0x10
"""IMAGE_TLV_SHA256: over header, body and protected TLVs."""
NON_BOOTABLE: Final = 0x10
"""IMAGE_F_NON_BOOTABLE."""
HEADER_SIZE: Final = 0x200
"""What Zephyr's build reserves for the header, so that the vector table behind it is aligned."""

# ih_magic, ih_load_addr, ih_hdr_size, ih_protect_tlv_size, ih_img_size, ih_flags,
# ih_ver (major, minor, revision, build), padding
_HEADER: Final = struct.Struct("<IIHHIIBBHII")
_TLV_INFO: Final = struct.Struct("<HH")
_TLV: Final = struct.Struct("<HH")
_VERSION: Final = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,5})(?:[+.](\d{1,10}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Image:
    """What an image says of itself. `digest`: SHA-256 out of its TLV, 32 octets; `size`: octets, TLVs included."""

    version: str
    digest: bytes
    size: int
    bootable: bool
    intact: bool
    """Whether header and body really have that digest."""


def build(version: str, body: bytes) -> bytes:
    """An image of `version` ("major.minor.revision", "+build" behind it if any). ValueError for other versions."""
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ValueError(f"{version!r} is not a version such as 1.4.2 or 1.4.2+7")
    major, minor, revision, build_number = (int(part or 0) for part in match.groups())
    try:
        header = _HEADER.pack(MAGIC, 0, HEADER_SIZE, 0, len(body), 0, major, minor, revision, build_number, 0)
    except struct.error as error:
        raise ValueError(f"version {version} does not fit (255.255.65535+4294967295 at most)") from error
    hashed = header.ljust(HEADER_SIZE, b"\0") + body
    tlv = _TLV.pack(TLV_SHA256, hashlib.sha256().digest_size) + hashlib.sha256(hashed).digest()
    return hashed + _TLV_INFO.pack(TLV_INFO_MAGIC, _TLV_INFO.size + len(tlv)) + tlv


def inspect(data: bytes) -> Image | None:
    """The image at the start of `data` (a whole flash slot, or a file), or None when there is none."""
    if len(data) < _HEADER.size:
        return None
    fields = _HEADER.unpack_from(data)
    magic, _, header_size, protected, body_size, flags, major, minor, revision, build_number, _ = fields
    end = header_size + body_size + protected
    if magic != MAGIC or header_size < _HEADER.size or end + _TLV_INFO.size > len(data):
        return None
    info_magic, total = _TLV_INFO.unpack_from(data, end)
    if info_magic != TLV_INFO_MAGIC or total < _TLV_INFO.size or end + total > len(data):
        return None
    digest = _find_digest(data[end + _TLV_INFO.size : end + total])
    if digest is None:
        return None
    # As Zephyr writes versions in its image list: the build number only where there is one.
    version = f"{major}.{minor}.{revision}" + (f".{build_number}" if build_number else "")
    return Image(
        version=version,
        digest=digest,
        size=end + total,
        bootable=not flags & NON_BOOTABLE,
        intact=hashlib.sha256(data[:end]).digest() == digest,
    )


def _find_digest(area: bytes) -> bytes | None:
    at = 0
    while at + _TLV.size <= len(area):
        kind, length = _TLV.unpack_from(area, at)
        value = area[at + _TLV.size : at + _TLV.size + length]
        if kind == TLV_SHA256:
            return value if length == len(value) == hashlib.sha256().digest_size else None
        at += _TLV.size + length
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m drivers.emulated.image", description="Build a firmware image for emulated boards."
    )
    parser.add_argument("--version", required=True, help="such as 1.4.2 or 1.4.2+7")
    parser.add_argument("--size", type=int, default=200_000, help="octets of its body (default: %(default)s)")
    parser.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args(arguments)
    if args.size < 0:
        parser.error("--size: a number of octets")
    # Like code, it doesn't compress to nothing; the same options give the same bytes.
    body = random.Random(f"{args.version} {args.size}").randbytes(args.size)  # noqa: S311 - no secret
    try:
        args.out.write_bytes(build(args.version, body))
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        print(f"{args.out}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
