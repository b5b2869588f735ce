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
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta, Struct

from hal.errors import ConfigError, ImageUntrusted
from station.messages import Image

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.json.sig"
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
        """The entries by name, once the Ed25519 signature over the file's bytes holds; else ImageUntrusted."""
        raw = _read(self._folder / MANIFEST, MANIFEST_LIMIT)
        signature = _read(self._folder / SIGNATURE, 1024)
        try:
            self._public_key().verify(signature, raw)
            manifest = msgspec.json.decode(raw, type=Manifest)
        except InvalidSignature as error:
            raise ImageUntrusted(f"{MANIFEST} is not signed by {self._key.name}") from error
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
        data = _read(self._folder / entry.name, entry.size)
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

    def _public_key(self) -> Ed25519PublicKey:
        try:
            key = serialization.load_pem_public_key(self._key.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"can't be read ({error.strerror}); expected a public key", file=str(self._key)
            ) from error
        except ValueError as error:
            raise ConfigError("is no public key in PEM; expected Ed25519", file=str(self._key)) from error
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError("is another kind of key; expected Ed25519", file=str(self._key))
        return key


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise ImageUntrusted(f"{path.name} can't be read: {error.strerror}") from error
    if len(data) > limit:
        raise ImageUntrusted(f"{path.name} is larger than the {limit} octets that it may have")
    return data
