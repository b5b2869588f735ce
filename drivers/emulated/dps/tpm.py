"""The service's side of a TPM's proof: public areas read, credentials made, a key wrapped for import. No TPM needed.

TPM 2.0 Library, Part 1: 24 (credential protection), 23.3 (duplication), 11.4.10.2 (KDFa); Part 2 for the structures.
Integers are big-endian. Bench equipment, written apart from the station's TPM code so that each can judge the other.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

ALG_RSA: Final = 0x0001
ALG_AES: Final = 0x0006
ALG_KEYEDHASH: Final = 0x0008
ALG_SHA256: Final = 0x000B
ALG_NULL: Final = 0x0010
ALG_HMAC: Final = 0x0005
ALG_CFB: Final = 0x0043
RESTRICTED_DECRYPT: Final = 1 << 16 | 1 << 17
IDENTITY_KEY_ATTRIBUTES: Final = 1 << 6 | 1 << 10 | 1 << 18
"""TPMA_OBJECT userWithAuth, noDA, sign: importable, so neither fixedTPM nor fixedParent."""
DEFAULT_EXPONENT: Final = 65537
AES_KEY: Final = 16
DIGEST: Final = 32


def sized(data: bytes) -> bytes:
    """TPM2B: a 2-octet size and that many octets."""
    return struct.pack(">H", len(data)) + data


@dataclass(frozen=True, slots=True)
class StorageKey:
    """A TPM2B_PUBLIC of an RSA restricted decryption key with AES-128-CFB and SHA-256: an EK or SRK by template."""

    key: rsa.RSAPublicKey
    name: bytes


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            message = "it ends too early"
            raise ValueError(message)
        self._at += count
        return part

    def u16(self) -> int:
        return int.from_bytes(self.take(2))

    def u32(self) -> int:
        return int.from_bytes(self.take(4))

    @property
    def rest(self) -> int:
        return len(self._data) - self._at


def storage_key(data: bytes) -> StorageKey:
    """Reads TPM2B_PUBLIC, big-endian with its size. ValueError says what is wrong with it."""
    outer = _Reader(data)
    size = outer.u16()
    if outer.rest != size:
        message = f"its size field says {size}, but {outer.rest} octets follow"
        raise ValueError(message)
    area = data[2:]
    reader = _Reader(area)
    if (kind := reader.u16()) != ALG_RSA:
        message = f"key type 0x{kind:04x} is not RSA"
        raise ValueError(message)
    if (name_algorithm := reader.u16()) != ALG_SHA256:
        message = f"name algorithm 0x{name_algorithm:04x} is not SHA-256"
        raise ValueError(message)
    if reader.u32() & RESTRICTED_DECRYPT != RESTRICTED_DECRYPT:
        message = "it is no restricted decryption key"
        raise ValueError(message)
    reader.take(reader.u16())  # authPolicy
    if (reader.u16(), reader.u16(), reader.u16()) != (ALG_AES, AES_KEY * 8, ALG_CFB):
        message = "its symmetric algorithm is not AES-128-CFB"
        raise ValueError(message)
    if reader.u16() != ALG_NULL:
        message = "it has a scheme"
        raise ValueError(message)
    bits, exponent = reader.u16(), reader.u32() or DEFAULT_EXPONENT
    modulus = reader.take(reader.u16())
    if reader.rest or len(modulus) * 8 != bits or bits < 2048:
        message = "its modulus has not the length that it says, or is under 2048 bits"
        raise ValueError(message)
    key = rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus)).public_key()
    return StorageKey(key, object_name(area))


def object_name(area: bytes) -> bytes:
    """TPM2B_NAME's content for a TPMT_PUBLIC with nameAlg SHA-256 (Part 1, 16)."""
    return struct.pack(">H", ALG_SHA256) + hashlib.sha256(area).digest()


def kdfa(key: bytes, label: bytes, context_u: bytes, context_v: bytes, bits: int) -> bytes:
    """KDFa with SHA-256: SP 800-108 in counter mode."""
    made, counter = b"", 1
    while len(made) * 8 < bits:
        block = struct.pack(">I", counter) + label + b"\0" + context_u + context_v + struct.pack(">I", bits)
        made += hmac.digest(key, block, "sha256")
        counter += 1
    return made[: bits // 8]


def _cfb(key: bytes, data: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def _seed_for(parent: StorageKey, label: bytes) -> tuple[bytes, bytes]:
    """A fresh seed, and TPM2B_ENCRYPTED_SECRET: RSAES-OAEP with the label and its final zero (Part 1, B.10)."""
    seed = secrets.token_bytes(DIGEST)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label + b"\0")
    return seed, sized(parent.key.encrypt(seed, oaep))


def _protect(seed: bytes, name: bytes, plain: bytes) -> bytes:
    """Outer wrap: TPM2B integrity and the encrypted octets, both bound to the object's Name."""
    encrypted = _cfb(kdfa(seed, b"STORAGE", name, b"", AES_KEY * 8), plain)
    mac = hmac.digest(kdfa(seed, b"INTEGRITY", b"", b"", DIGEST * 8), encrypted + name, "sha256")
    return sized(mac) + encrypted


def make_credential(ek: StorageKey, name: bytes, credential: bytes) -> tuple[bytes, bytes]:
    """(TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET): only the TPM with `ek` and the object `name` gives `credential`."""
    seed, secret = _seed_for(ek, b"IDENTITY")
    return sized(_protect(seed, name, sized(credential))), secret


def wrap_hmac_key(parent: StorageKey, key: bytes, inner_key: bytes) -> tuple[bytes, bytes, bytes]:
    """(TPM2B_PRIVATE, TPM2B_ENCRYPTED_SECRET, TPM2B_PUBLIC) for TPM2_Import of an HMAC-SHA256 key below `parent`.

    `inner_key`: 16 octets, the AES-128-CFB key of the inner wrap.
    """
    unique_seed = secrets.token_bytes(DIGEST)
    area = struct.pack(">HHI", ALG_KEYEDHASH, ALG_SHA256, IDENTITY_KEY_ATTRIBUTES) + sized(b"")
    area += struct.pack(">HH", ALG_HMAC, ALG_SHA256) + sized(hashlib.sha256(unique_seed + key).digest())
    name = object_name(area)
    sensitive = sized(struct.pack(">H", ALG_KEYEDHASH) + sized(b"") + sized(unique_seed) + sized(key))
    inner = _cfb(inner_key, sized(hashlib.sha256(sensitive + name).digest()) + sensitive)
    seed, secret = _seed_for(parent, b"DUPLICATE")
    return sized(_protect(seed, name, inner)), secret, sized(area)


def challenge(ek: StorageKey, srk: StorageKey, key: bytes, data: bytes = b"") -> bytes:
    """The authenticationKey that the service answers to a TPM's first registration, before base64.

    TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET (activated with `ek` for the SRK: the inner key), TPM2B_PRIVATE,
    TPM2B_ENCRYPTED_SECRET, TPM2B_PUBLIC (imported below `srk`: the HMAC key), UINT16 and `data`: the layout that the C
    and Node.js clients parse (azure-iot-sdk-c, hsm_client_tpm.c, insert_key_in_tpm).
    """
    inner_key = secrets.token_bytes(AES_KEY)
    blob, secret = make_credential(ek, srk.name, inner_key)
    private, wrap_secret, public = wrap_hmac_key(srk, key, inner_key)
    return blob + secret + private + wrap_secret + public + sized(data)
