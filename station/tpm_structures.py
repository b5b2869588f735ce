"""TPM 2.0 structures as octets: public areas, attestations, signatures. Strict readers, for what the station judges.

A device said all of it: every length is checked, nothing may be left over, and what isn't known is refused. All
integers are big-endian. Sections are of the TPM 2.0 Library, Part 2 (structures) and Part 1 (Names). No TPM is spoken
to here, and nothing is believed: who made a structure is `attestation`'s to say.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from hal.errors import ProtocolViolation, ResidencyUnproven

ALG_RSA, ALG_AES, ALG_NULL, ALG_ECC = 0x0001, 0x0006, 0x0010, 0x0023
ALG_RSASSA, ALG_RSAPSS, ALG_ECDSA, ALG_CFB = 0x0014, 0x0016, 0x0018, 0x0043
HASHES: Final[dict[int, type[hashes.HashAlgorithm]]] = {
    0x000B: hashes.SHA256,
    0x000C: hashes.SHA384,
    0x000D: hashes.SHA512,
}
"""TPM_ALG_ID to hash (TCG Algorithm Registry). SHA-1 is left out: a Name of it proves nothing any more."""
CURVES: Final[dict[int, type[ec.EllipticCurve]]] = {
    0x0003: ec.SECP256R1,
    0x0004: ec.SECP384R1,
    0x0005: ec.SECP521R1,
}
"""TPM_ECC_CURVE (6.4)."""
DEFAULT_EXPONENT: Final = 65537
"""What an exponent of 0 means (12.2.3.5)."""

GENERATED: Final = 0xFF544347
"""TPM_GENERATED_VALUE (6.2): no restricted key signs outside data that begins so."""
ST_ATTEST_CERTIFY: Final = 0x8017
RH_ENDORSEMENT: Final = 0x4000000B


class Attribute:
    """TPMA_OBJECT (8.3), the bits that are judged."""

    FIXED_TPM: Final = 1 << 1
    FIXED_PARENT: Final = 1 << 4
    SENSITIVE_DATA_ORIGIN: Final = 1 << 5
    RESTRICTED: Final = 1 << 16
    DECRYPT: Final = 1 << 17
    SIGN: Final = 1 << 18


RESIDENT: Final = {
    "fixedTPM": Attribute.FIXED_TPM,
    "fixedParent": Attribute.FIXED_PARENT,
    "sensitiveDataOrigin": Attribute.SENSITIVE_DATA_ORIGIN,
}
"""Made by its TPM, and can't leave it."""


class Octets:
    """Reads from the front of untrusted octets. ProtocolViolation, which names `what`, when they end too early."""

    def __init__(self, data: bytes, what: str) -> None:
        self._rest, self._what = memoryview(data), what

    def take(self, count: int) -> bytes:
        if count > len(self._rest):
            raise ProtocolViolation(f"{self._what} that ends too early")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return bytes(taken)

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def sized(self) -> bytes:
        """A TPM2B: its size (2), then so many octets."""
        return self.take(self.number(2))

    def end(self) -> None:
        if self._rest:
            raise ProtocolViolation(f"{self._what} with {len(self._rest)} octets behind it")


# --- public areas -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PublicArea:
    """A TPM2B_PUBLIC of an RSA or NIST key. `octets` is all of it; `symmetric` key bits of AES-CFB, 0 for none."""

    octets: bytes
    name_algorithm: int
    attributes: int
    symmetric: int
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey

    @property
    def name(self) -> bytes:
        """NameAlg (2) and the digest of the TPMT_PUBLIC (Part 1, 16)."""
        algorithm = HASHES[self.name_algorithm]()
        digest = hashlib.new(algorithm.name, self.octets[2:]).digest()
        return self.name_algorithm.to_bytes(2, "big") + digest

    @property
    def spki(self) -> bytes:
        """DER SubjectPublicKeyInfo."""
        return self.key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def lacks(self, wanted: dict[str, int]) -> list[str]:
        """Names of attributes that are not set."""
        return [name for name, bit in wanted.items() if not self.attributes & bit]


def public_area(data: bytes) -> PublicArea:
    """`data` read as TPM2B_PUBLIC (12.2.5). ProtocolViolation for anything that is not exactly an RSA or NIST key."""
    outer = Octets(data, "a TPM2B_PUBLIC")
    inner = Octets(outer.sized(), "a TPMT_PUBLIC")
    outer.end()
    kind, name_algorithm, attributes = inner.number(2), inner.number(2), inner.number(4)
    if kind not in (ALG_RSA, ALG_ECC) or name_algorithm not in HASHES:
        raise ProtocolViolation(
            f"a TPM object of type 0x{kind:04x} with name algorithm 0x{name_algorithm:04x}"
        )
    inner.sized()  # authPolicy
    symmetric = _symmetric(inner)
    if inner.number(2) != ALG_NULL:  # scheme, and its hash
        inner.take(2)
    key = _rsa(inner) if kind == ALG_RSA else _ecc(inner)
    inner.end()
    return PublicArea(bytes(data), name_algorithm, attributes, symmetric, key)


def _symmetric(inner: Octets) -> int:
    """TPMT_SYM_DEF_OBJECT (11.1.7)."""
    algorithm = inner.number(2)
    if algorithm == ALG_NULL:
        return 0
    bits, mode = inner.number(2), inner.number(2)
    if algorithm != ALG_AES or bits not in (128, 192, 256) or mode != ALG_CFB:
        raise ProtocolViolation(f"a TPM object with symmetric algorithm 0x{algorithm:04x}")
    return bits


def _rsa(inner: Octets) -> rsa.RSAPublicKey:
    bits, exponent = inner.number(2), inner.number(4) or DEFAULT_EXPONENT
    modulus = inner.sized()
    if len(modulus) * 8 != bits or bits > 4096:
        raise ProtocolViolation(f"an RSA key of {len(modulus)} octets that says it has {bits} bits")
    try:
        return rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "big")).public_key()
    except ValueError as error:
        raise ProtocolViolation("an RSA key that doesn't hold") from error


def _ecc(inner: Octets) -> ec.EllipticCurvePublicKey:
    curve = CURVES.get(inner.number(2))
    if curve is None:
        raise ProtocolViolation("an ECC key on a curve that isn't NIST's")
    if inner.number(2) != ALG_NULL:  # kdf, and its hash
        inner.take(2)
    return point(inner.sized(), inner.sized(), curve())


def point(x: bytes, y: bytes, curve: ec.EllipticCurve) -> ec.EllipticCurvePublicKey:
    """The public key of these coordinates; ProtocolViolation when they are not on the curve."""
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)
    try:
        return numbers.public_key()
    except ValueError as error:
        raise ProtocolViolation("an ECC key that is not on its curve") from error


# --- attestations -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CertifyInfo:
    """A TPMS_ATTEST of TPM2_Certify (10.12.12): who signs, over which nonce, and which object it certifies."""

    qualified_signer: bytes
    extra_data: bytes
    firmware: int
    name: bytes
    qualified_name: bytes


def certify_info(attest: bytes) -> CertifyInfo:
    """`attest` read as the TPMS_ATTEST of TPM2_Certify; ProtocolViolation for any other."""
    data = Octets(attest, "a TPMS_ATTEST")
    magic, kind = data.number(4), data.number(2)
    if magic != GENERATED or kind != ST_ATTEST_CERTIFY:
        raise ProtocolViolation(f"no attestation of TPM2_Certify: magic 0x{magic:08x}, type 0x{kind:04x}")
    signer, extra = data.sized(), data.sized()
    data.take(17)  # TPMS_CLOCK_INFO: clock (8), resetCount (4), restartCount (4), safe (1)
    firmware = data.number(8)
    found = CertifyInfo(signer, extra, firmware, data.sized(), data.sized())
    data.end()
    return found


def primary_qualified_name(area: PublicArea, hierarchy: int = RH_ENDORSEMENT) -> bytes:
    """The qualified Name of a primary key: its Name hashed behind its hierarchy's handle (Part 1, 16)."""
    algorithm = HASHES[area.name_algorithm]()
    digest = hashlib.new(algorithm.name, hierarchy.to_bytes(4, "big") + area.name).digest()
    return area.name_algorithm.to_bytes(2, "big") + digest


def verify_signature(
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, signature: bytes, data: bytes
) -> None:
    """TPMT_SIGNATURE (11.3.4) by `key` over `data`; ResidencyUnproven when it doesn't hold."""
    octets = Octets(signature, "a TPMT_SIGNATURE")
    scheme, hash_id = octets.number(2), octets.number(2)
    if hash_id not in HASHES:
        raise ProtocolViolation(f"a TPM signature with hash 0x{hash_id:04x}")
    algorithm = HASHES[hash_id]()
    try:
        if scheme == ALG_ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
            r, s = (int.from_bytes(octets.sized(), "big") for _ in range(2))
            octets.end()
            key.verify(encode_dss_signature(r, s), data, ec.ECDSA(algorithm))
        elif scheme in (ALG_RSASSA, ALG_RSAPSS) and isinstance(key, rsa.RSAPublicKey):
            value = octets.sized()
            octets.end()
            pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            key.verify(value, data, padding.PKCS1v15() if scheme == ALG_RSASSA else pss, algorithm)
        else:
            raise ProtocolViolation(f"a TPM signature of scheme 0x{scheme:04x} by a key that can't make it")
    except InvalidSignature as error:
        raise ResidencyUnproven("the attestation key's signature does not hold") from error
