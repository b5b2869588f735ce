"""Proofs of a TPM's keys for tests: the station's side against a driver, and a TPM's side in Python.

`SoftTpm` opens credentials and certifies keys as a TPM does (TPM 2.0 Part 1, 24; Part 3, 18.2), from its own reading of
the specification. It can lie, one attribute for each lie.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from hal.driver import Bindings
from hal.interfaces import KeyAttestation
from hal.types import AkKind, Certified, Credential, DeviceKey, EndorsementKey
from station import messages
from station.messages.worker import ATTESTATION_KEY, DEVICE_KEY
from station.nest.attesting import Attesting
from tests.fixtures_tpm import lasting

EK, AK, KEY = 0x000300B2, 0x00050472, 0x00040472
"""TPMA_OBJECT of an EK (L-1), an AK and a device key."""


def prove_ak(
    tpm: Bindings, ek: EndorsementKey, attesting: Attesting | None = None, kind: AkKind = AkKind.VISIT
) -> bytes:
    """The AK's TPM2B_PUBLIC, after the station was shown that it is in the TPM of `ek`."""
    attesting = attesting or Attesting()
    attestation = tpm.get(KeyAttestation)
    ak = attestation.attestation_key(lasting(), kind)
    made = attesting.credential(messages.AskCredential(ATTESTATION_KEY, ek.public, ak))
    secret = attestation.activate(lasting(), ek, ak, Credential(made.id_object, made.encrypted_secret))
    attesting.proven(messages.Proven(secret))
    return ak


def prove_resident(
    tpm: Bindings,
    ek: EndorsementKey,
    key: DeviceKey,
    attesting: Attesting | None = None,
    kind: AkKind = AkKind.VISIT,
) -> Attesting:
    """The station is shown that `key` is in the TPM of `ek`, by activation and by the AK's certification."""
    attesting = attesting or Attesting()
    ak = prove_ak(tpm, ek, attesting, kind)
    attestation = tpm.get(KeyAttestation)
    assert key.public is not None
    made = attesting.credential(messages.AskCredential(DEVICE_KEY, ek.public, key.public))
    secret = attestation.activate(
        lasting(), ek, key.public, Credential(made.id_object, made.encrypted_secret)
    )
    certified = attestation.certify(lasting(), ak, key.public, made.nonce)
    attesting.proven(messages.Proven(secret, certified.attest, certified.signature))
    return attesting


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def name(public: bytes) -> bytes:
    return public[4:6] + hashlib.sha256(public[2:]).digest()


def rsa_public(key: rsa.RSAPrivateKey, attributes: int) -> bytes:
    modulus = key.public_key().public_numbers().n.to_bytes(256, "big")
    head = (
        bytes.fromhex("0001000b")
        + attributes.to_bytes(4, "big")
        + bytes.fromhex("0000 0006 0080 0043 0010 0800")
    )
    return sized(head + bytes(4) + sized(modulus))


def ecc_public(
    key: ec.EllipticCurvePrivateKey, attributes: int, *, storage: bool = False, sign: bool = False
) -> bytes:
    numbers = key.public_key().public_numbers()
    point = sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))
    symmetric = "0006 0080 0043" if storage else "0010"
    scheme = "0018 000b" if sign else "0010"
    head = (
        bytes.fromhex("0023000b")
        + attributes.to_bytes(4, "big")
        + bytes.fromhex(f"0000 {symmetric} {scheme} 0003 0010")
    )
    return sized(head + point)


_RSA = rsa.generate_private_key(65537, 2048)


@dataclass
class SoftTpm:
    """EK, AK and device key with their private parts. `ecc`: an EK of P-256 instead of RSA-2048."""

    seed: int = 1
    ecc: bool = True
    ek_attributes: int = EK
    ak_attributes: int = AK
    key_attributes: int = KEY
    certify_other: bool = False
    """Certify names another key than it was asked for."""
    signer: ec.EllipticCurvePrivateKey | None = None
    """Signs certifications in the AK's place."""
    magic: bytes = bytes.fromhex("ff544347 8017")
    qualified: bytes | None = None
    nonce: bytes | None = None
    tail: bytes = field(default=b"")

    def __post_init__(self) -> None:
        self.ek_key, self.ak_key, self.device_key = (
            ec.derive_private_key(1000 * self.seed + at, ec.SECP256R1()) for at in (1, 2, 3)
        )
        self.ek = (
            ecc_public(self.ek_key, self.ek_attributes, storage=True)
            if self.ecc
            else rsa_public(_RSA, self.ek_attributes)
        )
        self.ak = ecc_public(self.ak_key, self.ak_attributes, sign=True)
        self.key = ecc_public(self.device_key, self.key_attributes)

    def activate(self, public: bytes, id_object: bytes, encrypted_secret: bytes) -> bytes:
        """TPM2_ActivateCredential. AssertionError where a TPM would refuse."""
        seed = self._seed(encrypted_secret[2:])
        blob = id_object[2:]
        outer, encrypted = blob[2:34], blob[34:]
        integrity = kdfa(seed, b"INTEGRITY", b"", 32)
        assert hmac.digest(integrity, encrypted + name(public), "sha256") == outer, "for another Name"
        key = kdfa(seed, b"STORAGE", name(public), 16)
        decryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).decryptor()
        secret = decryptor.update(encrypted) + decryptor.finalize()
        assert int.from_bytes(secret[:2], "big") == len(secret) - 2
        return secret[2:]

    def _seed(self, encrypted: bytes) -> bytes:
        if not self.ecc:
            sha = hashes.SHA256()
            return _RSA.decrypt(encrypted, padding.OAEP(padding.MGF1(sha), sha, b"IDENTITY\0"))
        x, y = encrypted[2:34], encrypted[36:68]
        point = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
        ).public_key()
        own = self.ek_key.public_key().public_numbers().x.to_bytes(32, "big")
        shared = self.ek_key.exchange(ec.ECDH(), point)
        return hashlib.sha256(b"\0\0\0\1" + shared + b"IDENTITY\0" + x + own).digest()

    def certify(self, public: bytes, nonce: bytes) -> Certified:
        """TPM2_Certify by the AK."""
        certified = name(self.ek if self.certify_other else public)
        own = b"\x00\x0b" + hashlib.sha256(b"\x40\x00\x00\x0b" + name(self.ak)).digest()
        attest = (
            self.magic
            + sized(own if self.qualified is None else self.qualified)
            + sized(nonce if self.nonce is None else self.nonce)
            + bytes(25)
            + sized(certified)
            + sized(certified)
            + self.tail
        )
        der = (self.signer or self.ak_key).sign(attest, ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(der)
        signature = bytes.fromhex("0018000b") + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))
        return Certified(attest, signature)

    def show_ek(self, attesting: Attesting, certificate: bytes = b"") -> None:
        """The station is shown that this TPM has its EK."""
        made = attesting.credential(messages.AskCredential(ATTESTATION_KEY, self.ek, self.ak, certificate))
        attesting.proven(messages.Proven(self.activate(self.ak, made.id_object, made.encrypted_secret)))

    def show_key(self, attesting: Attesting) -> None:
        """The station is shown that the device key is in this TPM."""
        made = attesting.credential(messages.AskCredential(DEVICE_KEY, self.ek, self.key))
        secret = self.activate(self.key, made.id_object, made.encrypted_secret)
        certified = self.certify(self.key, made.nonce)
        attesting.proven(messages.Proven(secret, certified.attest, certified.signature))


def kdfa(key: bytes, label: bytes, context: bytes, octets: int) -> bytes:
    """One block of KDFa with SHA-256."""
    data = b"\0\0\0\1" + label + b"\0" + context + (octets * 8).to_bytes(4, "big")
    return hmac.digest(key, data, "sha256")[:octets]
