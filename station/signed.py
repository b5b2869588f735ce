"""Files that stand only with a detached signature beside them, in a form that plain openssl checks.

`FILE.sig` holds the raw signature over FILE's octets: Ed25519 (RFC 8032, 64 octets; `openssl pkeyutl -verify -rawin`),
ECDSA with SHA-256 as DER, or RSA PKCS#1 v1.5 with SHA-256 (`openssl dgst -sha256 -verify`). What the file means, and
whose signature is wanted for it, is for the rooms that read it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hal.errors import ConfigError, HallmarkError
from station.whole_file import replace_file

SUFFIX: Final = ".sig"
SIGNATURE_LIMIT: Final = 1024
"""Octets: RSA-8192 has 1,024."""
KEY_LIMIT: Final = 64 * 1024
LEAST_RSA_BITS: Final = 2048

PublicKey = Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Signer:
    """Somebody whose signature counts. `name` is the key file's; `sha256` is over its DER SubjectPublicKeyInfo."""

    name: str
    sha256: bytes
    key: PublicKey


@dataclass(frozen=True, slots=True)
class SignedFile:
    """Octets whose signature holds, and whose it is. `sha256` is over `data`."""

    data: bytes
    sha256: bytes
    signer: Signer


def load_signers(path: Path) -> tuple[Signer, ...]:
    """The public keys (PEM) of a file, or of each `*.pem` in a folder. ConfigError when there is none."""
    files = sorted(path.glob("*.pem")) if path.is_dir() else [path]
    if not files:
        raise ConfigError("expected at least one public key (*.pem) in this folder", file=str(path))
    return tuple(_load_signer(file) for file in files)


def check_signature(data: bytes, signature: bytes, signers: Sequence[Signer]) -> Signer | None:
    """The one of `signers` whose signature over `data` this is, else None."""
    return next((signer for signer in signers if _holds(signer.key, data, signature)), None)


def read_signed(
    path: Path,
    signers: Sequence[Signer],
    *,
    limit: int,
    error: type[HallmarkError] = ConfigError,
) -> SignedFile:
    """`path` and its signature, read once. `error` when either can't be read, is too large, or no signer made it."""
    data = read_bounded(path, limit, error)
    signature = read_bounded(path.with_name(path.name + SUFFIX), SIGNATURE_LIMIT, error)
    signer = check_signature(data, signature, signers)
    if signer is None:
        names = ", ".join(item.name for item in signers)
        raise error(f"{path.name} is not signed by {names}")
    return SignedFile(data, hashlib.sha256(data).digest(), signer)


def sign(data: bytes, key: PrivateKey) -> bytes:
    """The detached signature that `check_signature` takes."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(data)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    return key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def write_signed(path: Path, data: bytes, key: PrivateKey) -> None:
    """`path` and `path`.sig, each whole or not at all; the signature last: a crash leaves no file that stands."""
    replace_file(path, data)
    replace_file(path.with_name(path.name + SUFFIX), sign(data, key))


def load_private_key(path: Path) -> PrivateKey:
    """An unencrypted private key in PEM, as a person keeps offline; ConfigError names the file."""
    try:
        key = serialization.load_pem_private_key(read_bounded(path, KEY_LIMIT, ConfigError), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("is no readable private key in PEM, without a password", file=str(path)) from error
    if not isinstance(key, PrivateKey):
        raise ConfigError("is another kind of key; expected Ed25519, EC or RSA", file=str(path))
    return key


def read_bounded(path: Path, limit: int, error: type[HallmarkError]) -> bytes:
    """The file's octets, at most `limit`; `error` with the file's name otherwise."""
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as problem:
        raise error(f"{path} can't be read: {problem.strerror}") from problem
    if len(data) > limit:
        raise error(f"{path} is larger than the {limit} octets that it may have")
    return data


def _load_signer(path: Path) -> Signer:
    try:
        key = serialization.load_pem_public_key(read_bounded(path, KEY_LIMIT, ConfigError))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("is no public key in PEM", file=str(path)) from error
    if not isinstance(key, PublicKey):
        raise ConfigError("is another kind of key; expected Ed25519, EC or RSA", file=str(path))
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < LEAST_RSA_BITS:
        raise ConfigError(f"has {key.key_size} bits; expected at least {LEAST_RSA_BITS}", file=str(path))
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Signer(path.name, hashlib.sha256(spki).digest(), key)


def _holds(key: PublicKey, data: bytes, signature: bytes) -> bool:
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, data)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        else:
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True
