"""Opens escrow records with an officer's private key: on a machine of the officer's, never on a station.

The other side of `station.escrow`, and as strict: only what that room seals is opened, nothing is guessed. A changed
octet anywhere ends in EscrowUnreadable, not in another secret.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Final

import msgspec
from asn1crypto import cms, core
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from hal.errors import EscrowUnreadable, quote
from hal.secret import Secret
from hal.types import Hierarchy
from station.escrow import (
    AES256_GCM,
    ECDH_SHA256_KDF,
    FORMAT,
    KEY_LENGTH,
    NONCE_LENGTH,
    TAG_LENGTH,
    EscrowRecord,
    wrapping_info,
)

LIMIT: Final = 64 * 1024
"""Octets of one sealed record; ours have some hundred for each officer."""
AUTH_LIMIT: Final = 64
"""Octets of an auth value: the longest digest that a TPM names its hierarchies' limit by (Part 2, 10.4.2)."""

OfficerKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class _GcmParameters(core.Sequence):  # type: ignore[misc]  # asn1crypto is untyped
    """RFC 5084, 3.2."""

    _fields: ClassVar[list[tuple[Any, ...]]] = [
        ("nonce", core.OctetString),
        ("icv_length", core.Integer, {"default": 12}),
    ]


class _Plain(msgspec.Struct, forbid_unknown_fields=True):
    """What `EscrowRecord.canonical` writes."""

    format: str
    ek_name: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{44,132}\Z")]
    unit: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    station: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    generation: Annotated[int, msgspec.Meta(ge=1)]
    auths: dict[str, Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})+\Z", max_length=2 * AUTH_LIMIT)]]


def parse(plain: bytes) -> EscrowRecord:
    """The record from its JSON; EscrowUnreadable for anything else. No value gets into the error."""
    try:
        found = msgspec.json.decode(plain, type=_Plain)
        names = {name: Hierarchy(name) for name in found.auths}
    except (msgspec.DecodeError, ValueError) as error:
        raise EscrowUnreadable("this is no escrow record in clear") from error
    if found.format != FORMAT or not names:
        raise EscrowUnreadable(f"this record has format {quote(found.format)}; expected {FORMAT}")
    return EscrowRecord(
        ek_name=bytes.fromhex(found.ek_name),
        unit=found.unit,
        station=found.station,
        generation=found.generation,
        auths={name: Secret(bytes.fromhex(value)) for name, value in found.auths.items()},
    )


def open_record(sealed: bytes, key: OfficerKey, certificate: x509.Certificate | None = None) -> EscrowRecord:
    """The record, with the key of one of its officers. With `certificate` only that officer's part is looked at."""
    try:
        info = cms.ContentInfo.load(sealed[:LIMIT], strict=True)
        if info["content_type"].native != "authenticated_enveloped_data":
            raise EscrowUnreadable("this is no sealed escrow record (CMS AuthEnvelopedData)")
        enveloped = info["content"]
        wrapped = list(_keys(enveloped["recipient_infos"], key, certificate))
        content, mac = enveloped["auth_encrypted_content_info"], enveloped["mac"].native
        algorithm = content["content_encryption_algorithm"]
        parameters = _GcmParameters.load(algorithm["parameters"].dump(), strict=True)
        nonce, encrypted = parameters["nonce"].native, content["encrypted_content"].native
        fits = algorithm["algorithm"].dotted == AES256_GCM and parameters["icv_length"].native == TAG_LENGTH
        if not fits or len(nonce) != NONCE_LENGTH or len(mac) != TAG_LENGTH:
            raise EscrowUnreadable("this record is not sealed as Hallmark seals (AES-256-GCM, RFC 5084)")
    except (ValueError, TypeError, KeyError, UnsupportedAlgorithm) as error:
        raise EscrowUnreadable(f"the sealed record can't be read: {quote(str(error), 160)}") from error
    for content_key in wrapped:
        try:
            return parse(AESGCM(content_key).decrypt(nonce, encrypted + mac, None))
        except InvalidTag:
            continue
    raise EscrowUnreadable(
        "this key opens no part of the record, or the record was changed",
        hint="Use the key of an officer whose certificate was under [escrow] when the unit was made.",
    )


def _keys(infos: Any, key: OfficerKey, certificate: x509.Certificate | None) -> Iterator[bytes]:
    """Content keys that `key` unwraps: one, unless something is wrong."""
    wanted = None
    if certificate is not None:
        own = asn1_x509.Certificate.load(certificate.public_bytes(serialization.Encoding.DER))
        wanted = own.issuer.dump(), own.serial_number
    for info in infos:
        if info.name == "ktri" and isinstance(key, rsa.RSAPrivateKey):
            found = _by_rsa(info.chosen, key) if _is(wanted, info.chosen["rid"].chosen) else None
        elif info.name == "kari" and isinstance(key, ec.EllipticCurvePrivateKey):
            found = _by_ecdh(info.chosen, key, wanted)
        else:
            found = None
        if found is not None:
            yield found


def _is(wanted: tuple[bytes, int] | None, who: Any) -> bool:
    return wanted is None or (who["issuer"].dump(), who["serial_number"].native) == wanted


def _by_rsa(info: Any, key: rsa.RSAPrivateKey) -> bytes | None:
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    try:
        found = key.decrypt(info["encrypted_key"].native, oaep)
    except ValueError:
        return None  # sealed to another officer's key
    return found if len(found) == KEY_LENGTH else None


def _by_ecdh(info: Any, key: ec.EllipticCurvePrivateKey, wanted: tuple[bytes, int] | None) -> bytes | None:
    if info["key_encryption_algorithm"]["algorithm"].dotted != ECDH_SHA256_KDF:
        return None
    public = serialization.load_der_public_key(info["originator"].chosen.untag().dump(force=True))
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != key.curve.name:
        return None
    wrapping_key = X963KDF(hashes.SHA256(), KEY_LENGTH, wrapping_info()).derive(
        key.exchange(ec.ECDH(), public)
    )
    for part in info["recipient_encrypted_keys"]:
        if _is(wanted, part["rid"].chosen):
            try:
                return aes_key_unwrap(wrapping_key, part["encrypted_key"].native)
            except InvalidUnwrap:
                continue  # sealed to another officer's key
    return None
