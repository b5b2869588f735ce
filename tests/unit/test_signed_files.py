"""Detached signatures: what stands, what doesn't, and that plain openssl agrees."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hal.errors import ConfigError, ImageUntrusted
from station.signed import PrivateKey, load_private_key, load_signers, read_signed, write_signed

KEYS: dict[str, Callable[[], PrivateKey]] = {
    "ed25519": Ed25519PrivateKey.generate,
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}
DATA = b'{"images": []}\n'


def write_keys(folder: Path, key: PrivateKey) -> tuple[Path, Path]:
    private, public = folder / "release.key", folder / "release.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.mark.parametrize("kind", KEYS)
def test_what_is_signed_here_is_read_back_with_its_signer(tmp_path: Path, kind: str) -> None:
    private, public = write_keys(tmp_path, KEYS[kind]())
    write_signed(tmp_path / "set.json", DATA, load_private_key(private))
    found = read_signed(tmp_path / "set.json", load_signers(public), limit=100)
    assert (found.data, found.signer.name) == (DATA, "release.pem")


@pytest.mark.parametrize("kind", KEYS)
def test_openssl_accepts_the_signature_and_refuses_it_over_other_octets(tmp_path: Path, kind: str) -> None:
    private, public = write_keys(tmp_path, KEYS[kind]())
    file = tmp_path / "set.json"
    write_signed(file, DATA, load_private_key(private))
    if kind == "ed25519":
        command: list[str | Path] = [
            "openssl",
            "pkeyutl",
            "-verify",
            "-pubin",
            "-inkey",
            public,
            "-rawin",
            "-in",
            file,
        ]
        command += ["-sigfile", f"{file}.sig"]
    else:
        command = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", f"{file}.sig", file]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    file.write_bytes(DATA + b" ")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("harm", ["data", "signature", "signer", "no-signature", "too-large"])
def test_what_is_changed_truncated_unsigned_or_signed_by_another_does_not_stand(
    tmp_path: Path, harm: str
) -> None:
    private, public = write_keys(tmp_path, Ed25519PrivateKey.generate())
    file, signature = tmp_path / "set.json", tmp_path / "set.json.sig"
    write_signed(file, DATA, load_private_key(private))
    signers = load_signers(public)
    if harm == "data":
        file.write_bytes(DATA[:-1])
    elif harm == "signature":
        signature.write_bytes(signature.read_bytes()[:-1])
    elif harm == "signer":
        _, other = write_keys(tmp_path, Ed25519PrivateKey.generate())
        signers = load_signers(other)
    elif harm == "no-signature":
        signature.unlink()
    with pytest.raises(ImageUntrusted, match=r"set\.json"):
        read_signed(file, signers, limit=5 if harm == "too-large" else 100, error=ImageUntrusted)


def test_a_folder_of_signers_takes_any_of_them_and_an_empty_one_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "signers"
    folder.mkdir()
    with pytest.raises(ConfigError, match="at least one public key"):
        load_signers(folder)
    private, public = write_keys(tmp_path, Ed25519PrivateKey.generate())
    public.rename(folder / "bob.pem")
    write_keys(folder, Ed25519PrivateKey.generate())
    write_signed(tmp_path / "x", DATA, load_private_key(private))
    assert read_signed(tmp_path / "x", load_signers(folder), limit=100).signer.name == "bob.pem"
