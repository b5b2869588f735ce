"""Firmware images: only bytes that the signed manifest names leave this room, and they are the bytes that
were checked.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from hal.errors import ImageUntrusted
from station.messages import Image
from station.signed import load_signers, read_bounded, read_signed

MANIFEST: Final = "manifest.json"
IMAGE_LIMIT: Final = 256 << 20
MANIFEST_LIMIT: Final = 1 << 20


class ManifestEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """`sha256` in hex over the file; `size` in octets."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    version: Annotated[str, Meta(min_length=1, max_length=64)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Meta(ge=1, le=IMAGE_LIMIT)]


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    images: list[ManifestEntry]


class ImageStore:
    """The images folder. Read anew for each visit: an engineer may install a new image while the station runs."""

    def __init__(self, folder: Path, key: Path) -> None:
        self._folder, self._key = folder, key

    def manifest(self) -> dict[str, ManifestEntry]:
        """The entries by name, once a trusted signature over the file's octets holds; else ImageUntrusted."""
        signed = read_signed(
            self._folder / MANIFEST, load_signers(self._key), limit=MANIFEST_LIMIT, error=ImageUntrusted
        )
        try:
            manifest = msgspec.json.decode(signed.data, type=Manifest)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ImageUntrusted(f"{MANIFEST} can't be read: {error}") from error
        entries = {entry.name: entry for entry in manifest.images}
        if len(entries) != len(manifest.images):
            raise ImageUntrusted(f"{MANIFEST} names an image twice")
        return entries

    def sealed(self, name: str) -> tuple[Image, int]:
        """The image and a descriptor of a memory file that can't be changed any more; the caller closes it."""
        entry = self.manifest().get(name)
        if entry is None:
            raise ImageUntrusted(f"the signed manifest names no image {name!r}")
        data = read_bounded(self._folder / entry.name, entry.size, ImageUntrusted)
        if len(data) != entry.size or hashlib.sha256(data).digest() != bytes.fromhex(entry.sha256):
            raise ImageUntrusted(f"image {name!r} is not what the signed manifest says: other bytes")
        descriptor = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(descriptor, "wb", closefd=False) as stream:
            stream.write(data)
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL,
        )
        return Image(entry.name, entry.version, bytes.fromhex(entry.sha256), entry.size), descriptor
