"""Configuration as it is released: keys of a release, and folders that they sign."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from station.cli import main
from station.paths import Paths
from station.signed import PrivateKey


def write_key(private: Path, key: PrivateKey | None = None) -> Path:
    """An Ed25519 key, or `key`, as PEM; the path of its public part beside it."""
    key = key or Ed25519PrivateKey.generate()
    private.parent.mkdir(parents=True, exist_ok=True)
    private.touch(mode=0o600)
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public = private.with_suffix(".pem")
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return public


@dataclass(frozen=True)
class Releaser:
    """Who releases the configuration of the station below `root`: its key is kept beside it, its public part pinned."""

    root: Path

    @property
    def paths(self) -> Paths:
        return Paths(self.root)

    @property
    def folder(self) -> Path:
        return self.paths.configuration.parent

    @property
    def key(self) -> Path:
        return self.root / "office/release.key"

    def pin(self) -> None:
        """Makes the key, and installs its public part on the station."""
        public = write_key(self.key)
        shutil.copy(public, self.paths.release_key)
        self.paths.release_key.chmod(0o644)

    def release(self, *words: str) -> None:
        """Signs what is in the folder now."""
        if not self.key.exists():
            self.pin()
        assert main(["config", "sign", str(self.folder), "--key", str(self.key), *words]) == 0


@pytest.fixture
def released(tmp_path: Path) -> Releaser:
    """A production station's configuration, small and signed."""
    found = Releaser(tmp_path)
    (found.folder / "recipes").mkdir(parents=True)
    (found.folder / "trust/ek").mkdir(parents=True)
    (found.folder / "profiles").mkdir()
    (found.folder / "profiles/p.toml").write_text("# a profile\n")
    (found.folder / "recipes/gw.toml").write_text('sku = "gw"\n')
    found.paths.configuration.write_text('[station]\nname = "line-1"\ndrivers = ["pkcs11"]\n')
    found.release()
    return found
