"""TPM2_MakeCredential without a TPM: a secret that only the TPM with one EK, and one object loaded, gives back.

TPM 2.0 Part 1, 24 (credential protection), 11.4.10 (KDFa, KDFe), B.10.3 and C.6.3 (secret sharing for RSA and ECC).
The station makes credentials itself, in a process that never talks to a device: a worker that a hostile board has taken
over never sees the secret that it has to give back. Big-endian throughout. What a secret proves is `attestation`'s.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from hal.errors import ProtocolViolation
from station.tpm_structures import HASHES, PublicArea

IDENTITY: Final = b"IDENTITY\0"
"""Label of a credential's seed (24.4); the octet 0 belongs to it, for OAEP and for KDFe."""
SECRET_LENGTH: Final = 32
"""Octets of a secret: at most the digest size of the EK's name algorithm, of which SHA-256's is the smallest."""


@dataclass(frozen=True, slots=True)
class MadeCredential:
    """`id_object`: TPM2B_ID_OBJECT, `encrypted_secret`: TPM2B_ENCRYPTED_SECRET, both with their sizes.

    `seed` is what `encrypted_secret` encrypts to the EK: with it, the secret and the Name, `id_object` can be computed
    again by anybody. It is worth nothing once the secret was given back.
    """

    id_object: bytes
    encrypted_secret: bytes
    seed: bytes


def make_credential(ek: PublicArea, name: bytes, secret: bytes) -> MadeCredential:
    """A credential with `secret` for exactly `ek` and the object of that Name. ProtocolViolation for no storage key."""
    algorithm = _hash(ek)
    if not ek.symmetric:
        raise ProtocolViolation("an endorsement key without a symmetric algorithm is no storage key")
    if len(secret) > algorithm.digest_size:
        raise ProtocolViolation("a secret longer than the endorsement key's digest")
    if isinstance(ek.key, rsa.RSAPublicKey):
        seed = secrets.token_bytes(algorithm.digest_size)
        # B.10.3: OAEP with the key's name algorithm for both hash and MGF1.
        oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, IDENTITY)
        encrypted = ek.key.encrypt(seed, oaep)
    else:
        seed, encrypted = _share_ecc(ek.key, algorithm)
    return MadeCredential(id_object(ek, name, secret, seed), _sized(encrypted), seed)


def id_object(ek: PublicArea, name: bytes, secret: bytes, seed: bytes) -> bytes:
    """TPM2B_ID_OBJECT for a known seed (24.5, 24.6): HMAC over what is encrypted and the Name, then that."""
    algorithm = _hash(ek)
    key = kdfa(algorithm, seed, b"STORAGE", name, b"", ek.symmetric)
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    encrypted = encryptor.update(_sized(secret)) + encryptor.finalize()
    integrity = kdfa(algorithm, seed, b"INTEGRITY", b"", b"", algorithm.digest_size * 8)
    outer = hmac.digest(integrity, encrypted + name, algorithm.name)
    return _sized(_sized(outer) + encrypted)


def kdfa(
    algorithm: hashes.HashAlgorithm, key: bytes, label: bytes, context_u: bytes, context_v: bytes, bits: int
) -> bytes:
    """KDFa (11.4.10.2): SP 800-108 in counter mode over HMAC, counter (4) first; label, 0, contexts, bits (4)."""
    return KBKDFHMAC(
        algorithm=algorithm,
        mode=Mode.CounterMode,
        length=bits // 8,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label,
        context=context_u + context_v,
        fixed=None,
    ).derive(key)


def kdfe(
    algorithm: hashes.HashAlgorithm, shared: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int
) -> bytes:
    """KDFe (11.4.10.3): SP 800-56A's concatenation KDF over counter (4), the shared x, label with its 0, both x."""
    return ConcatKDFHash(algorithm, bits // 8, otherinfo=label + party_u + party_v).derive(shared)


def _share_ecc(key: ec.EllipticCurvePublicKey, algorithm: hashes.HashAlgorithm) -> tuple[bytes, bytes]:
    """C.6.3: the seed from an ephemeral key and the EK, and the ephemeral public point (TPMS_ECC_POINT) as sent."""
    length = (key.curve.key_size + 7) // 8
    ephemeral = ec.generate_private_key(key.curve)
    ours, theirs = ephemeral.public_key().public_numbers(), key.public_numbers()
    x, y = ours.x.to_bytes(length, "big"), ours.y.to_bytes(length, "big")
    shared = ephemeral.exchange(ec.ECDH(), key)
    seed = kdfe(algorithm, shared, IDENTITY, x, theirs.x.to_bytes(length, "big"), algorithm.digest_size * 8)
    return seed, _sized(x) + _sized(y)


def _hash(ek: PublicArea) -> hashes.HashAlgorithm:
    return HASHES[ek.name_algorithm]()


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
