"""TPM2B_PUBLIC octets: names, SubjectPublicKeyInfos, attributes, comparison. No TPM is spoken to here.

What a TPM gives is read strictly: it is untrusted until its Name has been proven.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from drivers.tpm.tss import TPM2B_PUBLIC, TPMA_OBJECT, TSS2_Exception
from hal.errors import ProtocolViolation
from hal.types import DeviceKey, KeyType

NAME_HASHES: Final = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
"""TPM_ALG_ID to hash (TCG Algorithm Registry). SHA-1 is left out: a Name of it proves nothing any more."""

RESIDENT: Final = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
"""Made by this TPM, and can't leave it (Part 2, 8.3)."""

_CURVES: Final[dict[str, KeyType]] = {"secp256r1": KeyType.P256, "secp384r1": KeyType.P384}
_SIZES: Final[dict[int, KeyType]] = {2048: KeyType.RSA2048, 3072: KeyType.RSA3072}


def parsed(public: bytes) -> TPM2B_PUBLIC:
    """`public` as tpm2-pytss has it. ProtocolViolation when it is no TPM2B_PUBLIC, or more than one."""
    try:
        area, used = TPM2B_PUBLIC.unmarshal(public)
    except TSS2_Exception as error:
        raise ProtocolViolation(f"{len(public)} octets that are no TPM2B_PUBLIC") from error
    if used != len(public):
        raise ProtocolViolation(f"{len(public) - used} octets behind a TPM2B_PUBLIC")
    return area


def octets(area: TPM2B_PUBLIC) -> bytes:
    return bytes(area.marshal())


def name(public: bytes) -> bytes:
    """The object's Name: nameAlg (2) and the digest of its TPMT_PUBLIC (Part 1, 16)."""
    algorithm = NAME_HASHES.get(int.from_bytes(public[4:6], "big"))
    if algorithm is None:
        raise ProtocolViolation(f"a TPM object with name algorithm 0x{public[4:6].hex()}")
    return public[4:6] + hashlib.new(algorithm, public[2:]).digest()


def attributes(public: bytes) -> int:
    """TPMA_OBJECT: the third field of TPMT_PUBLIC, after type (2) and nameAlg (2)."""
    return int.from_bytes(public[6:10], "big")


def is_resident(public: bytes) -> bool:
    return attributes(public) & RESIDENT == RESIDENT


def spki(public: bytes) -> bytes:
    """The key as DER SubjectPublicKeyInfo. ProtocolViolation for what is no RSA or NIST key."""
    area = parsed(public)
    try:
        return bytes(area.to_der())
    except ValueError as error:
        raise ProtocolViolation("a TPM object whose public key doesn't hold") from error


def is_supported(public: bytes) -> bool:
    """Whether this is a key that `name` and `spki` can read. EK ranges may also hold others (SM2, say)."""
    try:
        name(public)
        spki(public)
    except ProtocolViolation:
        return False
    return True


def key_type(der: bytes) -> KeyType | None:
    """The type of a DER SubjectPublicKeyInfo; None when it is none that a device key may have."""
    key = load_der_public_key(der)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _CURVES.get(key.curve.name)
    if isinstance(key, rsa.RSAPublicKey):
        return _SIZES.get(key.key_size)
    return None


def device_key(public: bytes) -> DeviceKey:
    """The object as the HAL describes it. ProtocolViolation when it is no key of a `KeyType`."""
    der = spki(public)
    kind = key_type(der)
    if kind is None:
        raise ProtocolViolation("the object in the device key's place is no key that Hallmark makes")
    return DeviceKey(spki=der, key_type=kind, name=name(public), public=public, resident=is_resident(public))


def normalised(certificate_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    """A certificate's key in the encoding of `spki`, whatever algorithm identifier the certificate has (RSAES-OAEP)."""
    return certificate_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def same_template(public: bytes, template: TPM2B_PUBLIC) -> bool:
    """Whether `public` is an object made from `template`: all but `unique` is equal."""
    made, wanted = parsed(public), parsed(octets(template))
    empty = parsed(public)
    made_area, wanted_area, empty_area = made.publicArea, wanted.publicArea, empty.publicArea
    if made_area.type != wanted_area.type:
        return False
    # `unique` is last in TPMT_PUBLIC, so what is before it can be compared as octets once both have the same one.
    wanted_area.unique = empty_area.unique
    made_area.unique = empty_area.unique
    return octets(made) == octets(wanted)
