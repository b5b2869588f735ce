"""What a board keeps besides flash and TPM: settings, files, its serial number and, without a TPM, its key.

Each is one file of the host, replaced as a whole, so that a power cut leaves the old or the new. Names that come from
the wire never become paths. SMP must not come in.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from drivers.emulated.board.power import Power

NAME_LIMIT: Final = 128
SETTING_LIMIT: Final = 1024
"""Octets of a setting's value."""
SETTINGS_LIMIT: Final = 256
"""How many settings."""
FILE_LIMIT: Final = 64 * 1024
FILES_LIMIT: Final = 64
"""How many files."""

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def replace(path: Path, data: bytes, power: Power) -> None:
    """`data` at `path`, readable by the owner only: either the old content or all of the new."""
    fresh = path.with_name(path.name + ".new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:  # noqa: PTH123 - the mode from the first moment on
        file.write(data)
    power.point()
    fresh.replace(path)


class Settings:
    """Zephyr's settings: written to memory, kept by `save`."""

    def __init__(self, path: Path, power: Power) -> None:
        self._path = path
        self._power = power
        self.values: dict[str, bytes] = {}
        self.load()

    def load(self) -> None:
        try:
            stored = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            stored = {}
        self.values = {name: bytes.fromhex(value) for name, value in stored.items()}

    def save(self) -> None:
        stored = {name: value.hex() for name, value in sorted(self.values.items())}
        replace(self._path, json.dumps(stored, indent=1).encode(), self._power)


class Files:
    """A flat file system. A name's file on the host is the name in hexadecimal."""

    def __init__(self, folder: Path, power: Power) -> None:
        self._folder = folder
        self._power = power
        folder.mkdir(exist_ok=True, mode=0o700)

    def _path(self, name: str) -> Path:
        return self._folder / (name.encode().hex() or "_")

    def read(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        replace(self._path(name), data, self._power)

    def has_room(self, name: str) -> bool:
        return self._path(name).exists() or sum(1 for _ in self._folder.iterdir()) < FILES_LIMIT


class KeyStore:
    """The device key of a board without a TPM: made once, never replaced, never given out."""

    def __init__(self, path: Path, power: Power) -> None:
        self._path = path
        self._power = power

    def key(self) -> Key | None:
        try:
            pem = self._path.read_bytes()
        except FileNotFoundError:
            return None
        key = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise TypeError("the board's key file holds another kind of key than boards make")
        return key

    def make(self, kind: str) -> Key | None:
        """A key of type p256, p384 or rsa2048, or None for a type that this board can't make."""
        key: Key
        if kind == "p256":
            key = ec.generate_private_key(ec.SECP256R1())
        elif kind == "p384":
            key = ec.generate_private_key(ec.SECP384R1())
        elif kind == "rsa2048":
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        else:
            return None
        self.keep(key)
        return key

    def keep(self, key: Key) -> None:
        """Where there is none yet: whoever calls has looked."""
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        replace(self._path, pem, self._power)


class SecretStore:
    """The symmetric key that the board was given: written once."""

    def __init__(self, path: Path, power: Power) -> None:
        self._path = path
        self._power = power

    def read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, key: bytes) -> None:
        replace(self._path, key, self._power)


def spki(key: Key) -> bytes:
    """DER SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def csr(key: Key, common_name: str) -> bytes:
    """PKCS#10, DER, subject CN only."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def sign(key: Key, data: bytes) -> bytes:
    """With SHA-256; ECDSA as DER, RSA as PKCS#1 v1.5."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    return key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def burn_serial(state: Path, wanted: str | None) -> None:
    """What the board's maker does, once: `wanted` or a random number, which no later start changes."""
    if not (state / "serial").exists():
        replace(state / "serial", (wanted or secrets.token_hex(4).upper()).encode(), Power())


def read_serial(state: Path) -> str:
    return (state / "serial").read_text()


def mac_address(serial: str) -> str:
    """A locally administered address that goes with the serial number."""
    return ":".join(f"{octet:02x}" for octet in b"\x02" + hashlib.sha256(serial.encode()).digest()[:5])
