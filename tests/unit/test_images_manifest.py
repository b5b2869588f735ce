"""Only bytes that the signed manifest names leave the image store, and they are the bytes that were checked."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hal.errors import ConfigError, ImageUntrusted
from station.images import MANIFEST, MANIFEST_LIMIT, ImageStore

DATA = b"firmware" * 1000
NAME = "gw-1.2.3.bin"

SIGNATURE = f"{MANIFEST}.sig"


class Folder:
    """An images folder, signed by a key of its own."""

    def __init__(self, root: Path) -> None:
        self.path, self.key_file = root / "images", root / "firmware.pem"
        self.path.mkdir()
        self.key = Ed25519PrivateKey.generate()
        self.key_file.write_bytes(
            self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        (self.path / NAME).write_bytes(DATA)
        self.sign({"images": [self.entry()]})

    @property
    def store(self) -> ImageStore:
        return ImageStore(self.path, self.key_file)

    def entry(self, **changed: Any) -> dict[str, Any]:
        digest = hashlib.sha256(DATA).hexdigest()
        return {"name": NAME, "version": "1.2.3", "sha256": digest, "size": len(DATA), **changed}

    def sign(self, manifest: object) -> None:
        raw = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        (self.path / MANIFEST).write_bytes(raw)
        (self.path / SIGNATURE).write_bytes(self.key.sign(raw))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_signed_image_comes_out_sealed_with_the_bytes_that_were_checked(folder: Folder) -> None:
    image, descriptor = folder.store.sealed(NAME)
    (folder.path / NAME).write_bytes(b"swapped after the check")
    with os.fdopen(descriptor, "r+b") as stream:
        seals = fcntl.fcntl(stream, fcntl.F_GET_SEALS)
        wanted = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        assert seals & wanted == wanted
        with pytest.raises(PermissionError):
            os.write(stream.fileno(), b"x")
        stream.seek(0)
        data = stream.read()
    assert data == DATA
    assert (image.name, image.version, image.size) == (NAME, "1.2.3", len(DATA))
    assert image.sha256 == hashlib.sha256(DATA).digest()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda _data: b"",
    ],
    ids=["short", "long", "flipped", "empty"],
)
def test_other_bytes_than_the_manifests_are_refused(folder: Folder, change: Callable[[bytes], bytes]) -> None:
    (folder.path / NAME).write_bytes(change(DATA))
    with pytest.raises(ImageUntrusted):
        folder.store.sealed(NAME)


@pytest.mark.parametrize("name", ["gw-9.bin", "", "../firmware.pem", "/etc/passwd", MANIFEST])
def test_what_the_manifest_does_not_name_is_refused(folder: Folder, name: str) -> None:
    with pytest.raises(ImageUntrusted, match="names no image"):
        folder.store.sealed(name)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "../secret"},
        {"name": "/etc/passwd"},
        {"name": ".hidden"},
        {"name": "a/b"},
        {"name": ""},
        {"sha256": "00"},
        {"sha256": "Z" * 64},
        {"size": 0},
        {"size": -1},
        {"size": 1 << 40},
        {"size": "8000"},
        {"version": ""},
        {"extra": 1},
    ],
)
def test_a_signed_manifest_that_makes_no_sense_is_refused(folder: Folder, changed: dict[str, Any]) -> None:
    folder.sign({"images": [folder.entry(**changed)]})
    with pytest.raises(ImageUntrusted, match="can't be read"):
        folder.store.manifest()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(max_size=300))
def test_garbage_is_refused_signed_or_not(folder: Folder, raw: bytes) -> None:
    folder.sign(raw)
    with pytest.raises(ImageUntrusted):
        folder.store.manifest()
    (folder.path / SIGNATURE).write_bytes(raw)
    with pytest.raises(ImageUntrusted):
        folder.store.manifest()


def test_a_signature_by_another_key_over_other_bytes_or_none_is_refused(folder: Folder) -> None:
    manifest, signature = folder.path / MANIFEST, folder.path / SIGNATURE
    raw = manifest.read_bytes()
    for signed in (Ed25519PrivateKey.generate().sign(raw), folder.key.sign(raw + b" "), b"", b"\0" * 64):
        signature.write_bytes(signed)
        with pytest.raises(ImageUntrusted, match="not signed by"):
            folder.store.manifest()
    signature.unlink()
    with pytest.raises(ImageUntrusted):
        folder.store.manifest()


def test_a_manifest_that_is_too_long_is_not_even_verified(folder: Folder) -> None:
    folder.sign(b" " * (MANIFEST_LIMIT + 1))
    with pytest.raises(ImageUntrusted, match="larger"):
        folder.store.manifest()


def test_an_image_named_twice_is_refused(folder: Folder) -> None:
    folder.sign({"images": [folder.entry(), folder.entry(version="6.6.6")]})
    with pytest.raises(ImageUntrusted, match="twice"):
        folder.store.manifest()


def test_an_image_that_is_not_there_or_is_no_file_is_refused(folder: Folder) -> None:
    (folder.path / NAME).unlink()
    with pytest.raises(ImageUntrusted, match="can't be read"):
        folder.store.sealed(NAME)
    (folder.path / NAME).mkdir()
    with pytest.raises(ImageUntrusted, match="can't be read"):
        folder.store.sealed(NAME)


def test_a_key_that_can_sign_nothing_is_told_by_its_file(folder: Folder) -> None:
    for content, said in (
        (b"no PEM", "no public key"),
        (
            x25519.X25519PrivateKey.generate()
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "another kind of key",
        ),
    ):
        folder.key_file.write_bytes(content)
        with pytest.raises(ConfigError, match=said) as found:
            folder.store.manifest()
        assert found.value.file == str(folder.key_file)
    folder.key_file.unlink()
    with pytest.raises(ConfigError, match="can't be read"):
        folder.store.manifest()
