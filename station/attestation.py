"""What was proven of a unit's TPM keys, as a transcript that anybody can check again, and the checks.

The station makes the challenges and believes only what is checked here; the signer checks again what can be checked
without having been there; an outsider does the same from the exported record (`hallmark attestation`).

What the transcript shows, and to whom:
- That EK and AK are in one TPM rests on the station's word: it chose the secret of the AK's credential. An outsider
  sees that the credential was made for exactly this Name (`id_object` is computed again from seed and secret), not
  that a TPM opened it.
- That the device key is in the AK's TPM is the TPM's own word: the AK is restricted, so it signs an attestation only
  if the TPM made that itself (Part 1, 11.4.6.3), and TPM2_Certify names the key.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from typing import Annotated, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from msgspec import Meta, Struct

from hal.errors import HallmarkError, ProtocolViolation, ResidencyUnproven
from station.credential import id_object
from station.signature import spki
from station.tpm_structures import (
    RESIDENT,
    Attribute,
    PublicArea,
    certify_info,
    primary_qualified_name,
    public_area,
    verify_signature,
)

SIZE_LIMIT: Final = 32 * 1024
"""Octets of a transcript as JSON."""
NONCE_LENGTH: Final = 32
Part = Annotated[bytes, Meta(max_length=8192)]


class Activation(Struct, frozen=True, forbid_unknown_fields=True):
    """One MakeCredential / ActivateCredential exchange for the object `public` (TPM2B_PUBLIC).

    `id_object` and `encrypted_secret` are what was sent (TPM2Bs); `secret` is what came back, after it was compared
    with what the station had put in; `seed` is what `encrypted_secret` carries.
    """

    public: Part
    id_object: Part
    encrypted_secret: Part
    seed: Part
    secret: Part


class Certification(Struct, frozen=True, forbid_unknown_fields=True):
    """The AK's TPM2_Certify of the device key: the station's nonce, TPMS_ATTEST, TPMT_SIGNATURE."""

    nonce: Part
    attest: Part
    signature: Part


class Transcript(Struct, frozen=True, forbid_unknown_fields=True):
    """`ek_public`: TPM2B_PUBLIC. Without `key` it shows no more than that the TPM of that EK was there."""

    ek_public: Part
    ak: Activation
    key: Activation | None = None
    certification: Certification | None = None
    ek_certificate: Part | None = None
    """DER, as it was in NV. Its chain is judged elsewhere."""
    version: Annotated[int, Meta(ge=1, le=1)] = 1


_decoder: Final = msgspec.json.Decoder(Transcript, strict=True)


def to_json(transcript: Transcript) -> bytes:
    return msgspec.json.encode(transcript, order="sorted")


def from_json(data: bytes) -> Transcript:
    """ProtocolViolation for what is no transcript."""
    if len(data) > SIZE_LIMIT:
        raise ProtocolViolation(f"an attestation transcript of {len(data)} octets; at most {SIZE_LIMIT}")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolViolation(f"an attestation transcript that can't be read: {error}") from error


# --- attributes -------------------------------------------------------------------------------------------------


def check_ek(area: PublicArea) -> None:
    """ResidencyUnproven unless it is a storage key of its TPM: any other key would open credentials for any Name."""
    wanted = {**RESIDENT, "restricted": Attribute.RESTRICTED, "decrypt": Attribute.DECRYPT}
    _need("endorsement key", area, wanted, {"sign": Attribute.SIGN})


def check_ak(area: PublicArea) -> None:
    """ResidencyUnproven unless it signs nothing but what its TPM has made."""
    wanted = {**RESIDENT, "restricted": Attribute.RESTRICTED, "sign": Attribute.SIGN}
    _need("attestation key", area, wanted, {"decrypt": Attribute.DECRYPT})


def check_device_key(area: PublicArea) -> None:
    """ResidencyUnproven unless it was made in its TPM, can't leave it, and can sign what a TLS client signs."""
    _need("device key", area, {**RESIDENT, "sign": Attribute.SIGN}, {"restricted": Attribute.RESTRICTED})


def _need(what: str, area: PublicArea, wanted: dict[str, int], unwanted: dict[str, int]) -> None:
    missing = area.lacks(wanted)
    too_many = [name for name, bit in unwanted.items() if area.attributes & bit]
    if missing or too_many:
        problems = [f"{name} is not set" for name in missing] + [f"{name} is set" for name in too_many]
        raise ResidencyUnproven(f"the {what}'s attributes prove nothing: {', '.join(problems)}")


# --- the transcript ---------------------------------------------------------------------------------------------


def check_certification(ak: PublicArea, key: PublicArea, certification: Certification) -> None:
    """The AK's TPM certified exactly `key`, over exactly that nonce; ResidencyUnproven when it did not."""
    info = certify_info(certification.attest)
    if len(certification.nonce) < NONCE_LENGTH or not hmac.compare_digest(
        info.extra_data, certification.nonce
    ):
        raise ResidencyUnproven("the TPM's certification is not over the nonce that it was given")
    if info.qualified_signer != primary_qualified_name(ak):
        raise ResidencyUnproven("the certification names another signer than this attestation key")
    if info.name != key.name:
        raise ResidencyUnproven("the TPM certified another key than the device's")
    verify_signature(ak.key, certification.signature, certification.attest)


def check_id_object(ek: PublicArea, activation: Activation) -> None:
    """The credential is the one that seed and secret make for this Name."""
    expected = id_object(ek, public_area(activation.public).name, activation.secret, activation.seed)
    if not hmac.compare_digest(expected, activation.id_object):
        raise ResidencyUnproven("the credential is not the one of its seed, secret and Name")


def check_offline(transcript: Transcript, csr_spki: bytes) -> None:
    """All that can be checked without having been there, and that the key is `csr_spki`'s; else ResidencyUnproven."""
    for _name, check in checks(transcript, csr_spki):
        check()


Check = tuple[str, Callable[[], None]]


def checks(transcript: Transcript, key_spki: bytes | None = None) -> Iterator[Check]:
    """Each check with its name. `key_spki`: of the certificate or request that the key should be, if one is at hand.

    Which checks there are doesn't depend on the transcript: what is missing fails.
    """

    def ek() -> PublicArea:
        return public_area(transcript.ek_public)

    def ak() -> PublicArea:
        return public_area(transcript.ak.public)

    def activation() -> Activation:
        if transcript.key is None:
            raise ResidencyUnproven("the transcript has no device key")
        return transcript.key

    def key() -> PublicArea:
        return public_area(activation().public)

    def certified() -> None:
        if transcript.certification is None:
            raise ResidencyUnproven("the transcript has no certification")
        check_certification(ak(), key(), transcript.certification)

    yield "the EK is a storage key that can't leave its TPM", lambda: check_ek(ek())
    yield (
        "the AK was made in its TPM, can't leave it and signs only what the TPM made",
        lambda: check_ak(ak()),
    )
    yield "the AK's credential was made for exactly its Name", lambda: check_id_object(ek(), transcript.ak)
    yield "the device key was made in its TPM, can't leave it and can sign", lambda: check_device_key(key())
    yield (
        "the device key's credential was made for exactly its Name",
        lambda: check_id_object(ek(), activation()),
    )
    yield "the AK's TPM certified the device key, over the station's nonce", certified
    if transcript.ek_certificate is not None:
        yield "the EK certificate names the EK", lambda: _same_ek(transcript.ek_certificate or b"", ek())
    if key_spki is not None:
        yield "the certificate's key is the device key", lambda: _same_key(key(), key_spki)


def _same_ek(certificate: bytes, area: PublicArea) -> None:
    try:
        named = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ResidencyUnproven("the EK certificate's key can't be read") from error
    if not isinstance(named, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) or spki(named) != area.spki:
        raise ResidencyUnproven("the EK certificate names another key than the EK")


def _same_key(area: PublicArea, wanted: bytes) -> None:
    if area.spki != wanted:
        raise ResidencyUnproven("the key that was proven to be in the TPM is not the one to be certified")


def failure(check: Callable[[], None]) -> str | None:
    """What a check says against the transcript; None when it holds."""
    try:
        check()
    except HallmarkError as error:
        return str(error)
    return None
