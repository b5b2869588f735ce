"""The JSON form of `hal.types.Enrollment`: what a step hands over, the store keeps and the uploader reads again.

Strict in both directions: an unknown key, a wrong type or an overlong value is an error, never skipped. Octets are
standard base64. No cloud's terms come in here: a sink makes its own request out of the Enrollment. Nor does a key in
clear: what the uploader has opened is not written again.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from hal.errors import ProtocolViolation
from hal.types import (
    Attestation,
    Enrollment,
    SealedSymmetricAttestation,
    SymmetricGroupAttestation,
    SymmetricKeyAttestation,
    TpmAttestation,
    X509Attestation,
    X509GroupAttestation,
)

SIZE_LIMIT: Final = 64 * 1024
"""Octets of one enrollment as JSON: the limit of a Blob in station.messages."""

# The set that every cloud's registration IDs have in common; Azure DPS: 1 to 128, alphanumeric at both ends.
RegistrationId = Annotated[str, Meta(pattern=r"\A[a-z0-9](?:[a-z0-9:._-]{0,126}[a-z0-9])?\Z")]
DeviceId = Annotated[str, Meta(min_length=1, max_length=128)]
Octets = Annotated[bytes, Meta(min_length=1, max_length=16 * 1024)]
TagName = Annotated[str, Meta(min_length=1, max_length=128)]
TagValue = Annotated[str, Meta(max_length=4096)]
Tags = Annotated[dict[TagName, TagValue], Meta(max_length=64)]


class _Tpm(Struct, frozen=True, tag_field="kind", tag="tpm", forbid_unknown_fields=True):
    ek: Octets
    srk: Octets | None = None


class _X509(Struct, frozen=True, tag_field="kind", tag="x509", forbid_unknown_fields=True):
    certificate: Octets


class _X509Group(Struct, frozen=True, tag_field="kind", tag="x509-group", forbid_unknown_fields=True):
    group: RegistrationId
    certificate: Octets


class _Symmetric(Struct, frozen=True, tag_field="kind", tag="symmetric-key", forbid_unknown_fields=True):
    sealed: Octets


class _SymmetricGroup(
    Struct, frozen=True, tag_field="kind", tag="symmetric-group", forbid_unknown_fields=True
):
    group: RegistrationId


class _Enrollment(Struct, frozen=True, forbid_unknown_fields=True):
    registration_id: RegistrationId
    device_id: DeviceId
    attestation: _Tpm | _X509 | _X509Group | _Symmetric | _SymmetricGroup
    tags: Tags = {}


_decoder: Final = msgspec.json.Decoder(_Enrollment, strict=True)


def to_json(enrollment: Enrollment) -> bytes:
    """The one JSON of `enrollment`: equal enrollments give equal bytes. ProtocolViolation when it breaks a limit."""
    try:
        data = msgspec.json.encode(_to_struct(enrollment))
    except UnicodeEncodeError as error:
        message = f"an enrollment with text that is not Unicode: {error.reason}"
        raise ProtocolViolation(message) from error
    return _encode(_checked(data))


def from_json(data: bytes) -> Enrollment:
    """The enrollment that `data` describes; ProtocolViolation, naming the place, for anything else."""
    found = _checked(data)
    attestation: Attestation
    match found.attestation:
        case _Tpm(ek=ek, srk=srk):
            attestation = TpmAttestation(ek, srk)
        case _X509(certificate=certificate):
            attestation = X509Attestation(certificate)
        case _X509Group(group=group, certificate=certificate):
            attestation = X509GroupAttestation(group, certificate)
        case _Symmetric(sealed=sealed):
            attestation = SealedSymmetricAttestation(sealed)
        case _SymmetricGroup(group=group):
            attestation = SymmetricGroupAttestation(group)
    return Enrollment(found.registration_id, found.device_id, attestation, dict(found.tags))


def _encode(value: _Enrollment) -> bytes:
    """Sorted keys, no spaces, so that bytes can be compared."""
    return msgspec.json.encode(value, order="sorted")


def _checked(data: bytes) -> _Enrollment:
    if len(data) > SIZE_LIMIT:
        message = f"an enrollment of {len(data)} octets is over the limit of {SIZE_LIMIT}"
        raise ProtocolViolation(message)
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"an enrollment that can't be read: {error}"
        raise ProtocolViolation(message) from error


def _to_struct(enrollment: Enrollment) -> _Enrollment:
    attestation: _Tpm | _X509 | _X509Group | _Symmetric | _SymmetricGroup
    match enrollment.attestation:
        case TpmAttestation(ek=ek, srk=srk):
            attestation = _Tpm(ek, srk)
        case X509Attestation(certificate=certificate):
            attestation = _X509(certificate)
        case X509GroupAttestation(group=group, certificate=certificate):
            attestation = _X509Group(group, certificate)
        case SealedSymmetricAttestation(sealed=sealed):
            attestation = _Symmetric(sealed)
        case SymmetricGroupAttestation(group=group):
            attestation = _SymmetricGroup(group)
        case SymmetricKeyAttestation():
            message = "an enrollment with a key in clear is never written"
            raise ProtocolViolation(message)
    return _Enrollment(
        enrollment.registration_id, enrollment.device_id, attestation, dict(sorted(enrollment.tags.items()))
    )
