"""What the station believes of a TPM's keys, and what of it anybody can check again. Every lie is one attribute."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import EkMismatch, HallmarkError, ProtocolViolation, ResidencyUnproven
from station import messages
from station.attestation import Transcript, check_offline, checks, failure, from_json, to_json
from station.messages.worker import ATTESTATION_KEY, DEVICE_KEY
from station.nest.attesting import MOST_CHALLENGES, Attesting
from station.tpm_structures import certify_info, public_area
from tests.tpm_parts import AK, EK, KEY, SoftTpm

FIXED_TPM, FIXED_PARENT, ORIGIN = 1 << 1, 1 << 4, 1 << 5
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18


def shown(tpm: SoftTpm) -> Attesting:
    attesting = Attesting()
    tpm.show_ek(attesting)
    tpm.show_key(attesting)
    return attesting


@pytest.mark.parametrize("ecc", [True, False])
def test_a_tpm_that_has_its_keys_is_believed_and_an_outsider_sees_why(ecc: bool) -> None:
    tpm = SoftTpm(ecc=ecc)
    attesting = shown(tpm)
    assert attesting.proven_ek is not None
    assert attesting.proven_ek.octets == tpm.ek
    spki = public_area(tpm.key).spki
    assert attesting.covers(spki)
    assert not attesting.covers(public_area(tpm.ak).spki)
    transcript = from_json(to_json(attesting.proven_transcript()))
    check_offline(transcript, spki)
    assert [failure(check) for _, check in checks(transcript, spki)] == [None] * 7


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"ek_attributes": EK & ~RESTRICTED}, "endorsement key's attributes.*restricted is not set"),
        ({"ek_attributes": EK | SIGN}, "endorsement key's attributes.*sign is set"),
        ({"ek_attributes": EK & ~FIXED_TPM}, "fixedTPM is not set"),
        ({"ak_attributes": AK & ~RESTRICTED}, "attestation key's attributes.*restricted is not set"),
        ({"ak_attributes": AK & ~FIXED_PARENT}, "fixedParent is not set"),
        ({"ak_attributes": AK | DECRYPT}, "decrypt is set"),
        ({"key_attributes": KEY & ~ORIGIN}, "device key's attributes.*sensitiveDataOrigin is not set"),
        ({"key_attributes": KEY & ~FIXED_TPM}, "fixedTPM is not set"),
        ({"key_attributes": KEY & ~SIGN | DECRYPT}, "sign is not set"),
        ({"key_attributes": KEY | RESTRICTED}, "restricted is set"),
        ({"certify_other": True}, "certified another key"),
        ({"signer": ec.derive_private_key(77, ec.SECP256R1())}, "signature does not hold"),
        ({"qualified": b"\x00\x0b" + bytes(32)}, "names another signer"),
        ({"nonce": bytes(32)}, "not over the nonce"),
    ],
)
def test_a_lie_about_any_key_proves_nothing(lie: dict[str, object], said: str) -> None:
    with pytest.raises(ResidencyUnproven, match=said) as found:
        shown(SoftTpm(**lie))  # type: ignore[arg-type]
    assert found.value.hint


@pytest.mark.parametrize(
    "lie", [{"magic": b"\xff\x54\x43\x47\x80\x18"}, {"magic": bytes(6)}, {"tail": b"\0"}]
)
def test_what_is_no_certification_is_read_as_none(lie: dict[str, bytes]) -> None:
    """A quote, data that no TPM made, octets behind."""
    with pytest.raises(ProtocolViolation):
        shown(SoftTpm(**lie))  # type: ignore[arg-type]


def test_the_secret_has_to_come_back_and_each_challenge_has_one_answer() -> None:
    tpm, attesting = SoftTpm(), Attesting()
    made = attesting.credential(messages.AskCredential(ATTESTATION_KEY, tpm.ek, tpm.ak))
    secret = tpm.activate(tpm.ak, made.id_object, made.encrypted_secret)
    with pytest.raises(ResidencyUnproven, match="another secret"):
        attesting.proven(messages.Proven(bytes(len(secret))))
    with pytest.raises(ProtocolViolation):
        attesting.proven(messages.Proven(secret))
    assert attesting.proven_ek is None


def test_a_credential_is_for_one_tpm_and_one_key() -> None:
    tpm, other, attesting = SoftTpm(1), SoftTpm(2), Attesting()
    made = attesting.credential(messages.AskCredential(ATTESTATION_KEY, tpm.ek, tpm.ak))
    with pytest.raises(AssertionError):
        other.activate(tpm.ak, made.id_object, made.encrypted_secret)
    with pytest.raises(AssertionError):
        tpm.activate(tpm.key, made.id_object, made.encrypted_secret)


def test_no_device_key_before_the_ek_nor_against_another_one() -> None:
    tpm, other, attesting = SoftTpm(1), SoftTpm(2), Attesting()
    with pytest.raises(ResidencyUnproven, match="before the TPM has shown"):
        attesting.credential(messages.AskCredential(DEVICE_KEY, tpm.ek, tpm.key))
    tpm.show_ek(attesting)
    with pytest.raises(EkMismatch):
        attesting.credential(messages.AskCredential(DEVICE_KEY, other.ek, other.key))
    with pytest.raises(EkMismatch):
        other.show_ek(attesting)
    assert attesting.proven_ek is not None
    assert attesting.proven_ek.octets == tpm.ek


def test_a_key_of_another_tpm_is_not_certified_by_this_ones_attestation_key() -> None:
    """A key whose credential this TPM opens is in it; one that only the second TPM has is not."""
    tpm, other, attesting = SoftTpm(1), SoftTpm(2), Attesting()
    tpm.show_ek(attesting)
    tpm.key, tpm.certify_other = other.key, True
    with pytest.raises(ResidencyUnproven):
        tpm.show_key(attesting)
    assert not attesting.covers(public_area(other.key).spki)


def test_challenges_are_bounded_and_purposes_known() -> None:
    tpm, attesting = SoftTpm(), Attesting()
    with pytest.raises(ProtocolViolation):
        attesting.credential(messages.AskCredential("something", tpm.ek, tpm.ak))
    for _ in range(MOST_CHALLENGES - 1):
        attesting.credential(messages.AskCredential(ATTESTATION_KEY, tpm.ek, tpm.ak))
    with pytest.raises(ProtocolViolation, match="challenges in one visit"):
        attesting.credential(messages.AskCredential(ATTESTATION_KEY, tpm.ek, tpm.ak))


# --- for whoever was not there ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forgery:
    field: str
    part: str

    def of(self, transcript: Transcript) -> Transcript:
        """The same transcript with the last octet of one field changed."""
        whole = getattr(transcript, self.part) if self.part else transcript
        octets = getattr(whole, self.field)
        changed = msgspec.structs.replace(whole, **{self.field: octets[:-1] + bytes([octets[-1] ^ 1])})
        return msgspec.structs.replace(transcript, **{self.part: changed}) if self.part else changed


@pytest.mark.parametrize(
    "forgery",
    [
        *(Forgery(field, part) for part in ("ak", "key") for field in ("id_object", "seed", "secret")),
        *(Forgery(field, "certification") for field in ("nonce", "attest", "signature")),
        Forgery("public", "ak"),
        Forgery("public", "key"),
    ],
    ids=lambda forgery: f"{forgery.part}.{forgery.field}",
)
def test_any_change_to_a_transcript_is_seen_without_a_station(forgery: Forgery) -> None:
    tpm = SoftTpm()
    transcript = forgery.of(shown(tpm).proven_transcript())
    assert any(failure(check) for _, check in checks(transcript))
    with pytest.raises(HallmarkError):
        check_offline(transcript, public_area(tpm.key).spki)


def test_a_transcript_without_a_device_key_is_none_for_one() -> None:
    tpm, attesting = SoftTpm(), Attesting()
    tpm.show_ek(attesting)
    assert attesting.transcript is not None
    with pytest.raises(ResidencyUnproven, match="no device key"):
        check_offline(attesting.transcript, public_area(tpm.key).spki)
    with pytest.raises(ResidencyUnproven):
        attesting.proven_transcript()


def test_a_transcript_of_another_key_is_refused() -> None:
    tpm = SoftTpm(1)
    transcript = shown(tpm).proven_transcript()
    with pytest.raises(ResidencyUnproven, match="not the one to be certified"):
        check_offline(transcript, public_area(SoftTpm(2).key).spki)


@given(st.binary(max_size=400))
def test_whatever_octets_come_they_are_read_or_refused(octets: bytes) -> None:
    for read in (public_area, certify_info, from_json):
        with_errors = []
        try:
            read(octets)
        except ProtocolViolation as error:
            with_errors.append(error)
        assert with_errors, "random octets are no TPM structure"


@given(st.integers(0, 89), st.integers(1, 255))
def test_a_changed_public_area_is_another_name_or_refused(at: int, flip: int) -> None:
    octets = bytearray(SoftTpm().key)
    at %= len(octets)
    octets[at] ^= flip
    try:
        changed = public_area(bytes(octets))
    except ProtocolViolation:
        return
    assert changed.name != public_area(SoftTpm().key).name
