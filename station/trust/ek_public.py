"""An EK's TPM2B_PUBLIC as octets: its Name and its key, read strictly, without a TPM's C library.

The station's own reading, so that nothing that a worker says of an EK has to be believed. Objects other than RSA and
NIST-curve storage keys are refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hal.errors import ProtocolViolation

LARGEST: Final = 1024
"""Octets: an RSA-4096 EK has some 600."""

ALG_RSA, ALG_NULL, ALG_ECC = 0x0001, 0x0010, 0x0023
ALG_AES, ALG_CFB = 0x0006, 0x0043
NAME_HASHES: Final = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
"""TPM_ALG_ID to hash (TCG Algorithm Registry, table 3)."""
CURVES: Final[dict[int, ec.EllipticCurve]] = {
    0x0003: ec.SECP256R1(),
    0x0004: ec.SECP384R1(),
    0x0005: ec.SECP521R1(),
}
"""TPM_ECC_CURVE to curve (TCG Algorithm Registry, table 4)."""

FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN = 1 << 1, 1 << 4, 1 << 5
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18
NEEDED: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | DECRYPT
"""TPMA_OBJECT of each EK template (Part 2, 8.3; TCG EK Credential Profile, B.3 and B.4): made in this TPM, never leaves
it, decrypts credentials only."""
DEFAULT_EXPONENT: Final = 65537
"""TPMS_RSA_PARMS: exponent 0 means 2^16 + 1."""


@dataclass(frozen=True, slots=True)
class EkPublic:
    """`name`: TPM2B_NAME's content (algorithm and digest). `spki`: DER SubjectPublicKeyInfo, rsaEncryption or EC."""

    name: bytes
    spki: bytes
    is_rsa: bool


class _Octets:
    """A cursor over TPM structures: big-endian, nothing may be left over."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise ProtocolViolation("the EK's public area ends too early")
        self._at += size
        return piece

    def end(self) -> None:
        if self._at != len(self._data):
            raise ProtocolViolation("there are octets behind the EK's public area")


def read_ek_public(public: bytes) -> EkPublic:
    """Reads a TPM2B_PUBLIC (TPM 2.0 Part 2, 12.2.5). ProtocolViolation when it is no endorsement key's."""
    name, key = _read(public)
    try:
        made = key.public_key()
    except ValueError as error:
        raise ProtocolViolation("the EK's public key does not hold") from error
    spki = made.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return EkPublic(name, spki, isinstance(key, rsa.RSAPublicNumbers))


def read_ek_name(public: bytes) -> bytes:
    """Its Name alone: the key is read, and not tried. For lists of a million."""
    return _read(public)[0]


def _read(public: bytes) -> tuple[bytes, rsa.RSAPublicNumbers | ec.EllipticCurvePublicNumbers]:
    if len(public) > LARGEST:
        raise ProtocolViolation(f"an EK's public area of {len(public)} octets")
    outer = _Octets(public)
    area = outer.sized()
    outer.end()
    octets = _Octets(area)
    kind, name_algorithm, attributes = octets.number(2), octets.number(2), octets.number(4)
    octets.sized()  # authPolicy: part of the Name, which is what the TPM proves
    if name_algorithm not in NAME_HASHES:
        raise ProtocolViolation(f"an EK with name algorithm {name_algorithm:#06x}")
    if attributes & NEEDED != NEEDED or attributes & SIGN:
        raise ProtocolViolation(f"a key with attributes {attributes:#010x} is no endorsement key")
    key: rsa.RSAPublicNumbers | ec.EllipticCurvePublicNumbers
    if kind == ALG_RSA:
        key = _rsa(octets)
    elif kind == ALG_ECC:
        key = _ecc(octets)
    else:
        raise ProtocolViolation(f"an EK of algorithm {kind:#06x}")
    octets.end()
    digest = hashlib.new(NAME_HASHES[name_algorithm], area).digest()
    return name_algorithm.to_bytes(2, "big") + digest, key


def _symmetric(octets: _Octets) -> None:
    """TPMT_SYM_DEF_OBJECT of a storage key, and its scheme, which has to be null."""
    algorithm, _bits, mode = octets.number(2), octets.number(2), octets.number(2)
    if (algorithm, mode) != (ALG_AES, ALG_CFB) or octets.number(2) != ALG_NULL:
        raise ProtocolViolation("the EK is no storage key with AES in CFB mode")


def _rsa(octets: _Octets) -> rsa.RSAPublicNumbers:
    _symmetric(octets)
    bits, exponent, modulus = octets.number(2), octets.number(4), octets.sized()
    number = int.from_bytes(modulus, "big")
    if len(modulus) * 8 != bits or number.bit_length() != bits:
        raise ProtocolViolation(f"an RSA-{bits} EK with a modulus of {number.bit_length()} bits")
    return rsa.RSAPublicNumbers(exponent or DEFAULT_EXPONENT, number)


def _ecc(octets: _Octets) -> ec.EllipticCurvePublicNumbers:
    _symmetric(octets)
    curve = CURVES.get(octets.number(2))
    if curve is None or octets.number(2) != ALG_NULL:
        raise ProtocolViolation("an EK on a curve that is none of NIST's, or with a key derivation scheme")
    x, y = octets.sized(), octets.sized()
    return ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)
