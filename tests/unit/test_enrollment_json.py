"""station.enrollment: one JSON for one enrollment, and nothing else is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import ProtocolViolation
from hal.types import (
    Enrollment,
    SealedSymmetricAttestation,
    SymmetricGroupAttestation,
    TpmAttestation,
    X509Attestation,
    X509GroupAttestation,
)
from station.enrollment import SIZE_LIMIT, from_json, to_json

ids = st.from_regex(r"[a-z0-9]([a-z0-9:._-]{0,126}[a-z0-9])?", fullmatch=True)
octets = st.binary(min_size=1, max_size=400)
attestations = st.one_of(
    st.builds(TpmAttestation, octets, st.none() | octets),
    st.builds(X509Attestation, octets),
    st.builds(X509GroupAttestation, ids, octets),
    st.builds(SealedSymmetricAttestation, octets),
    st.builds(SymmetricGroupAttestation, ids),
)
tags = st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=40), max_size=6)
enrollments = st.builds(
    Enrollment, ids, st.text(alphabet="abcXYZ019-._", min_size=1, max_size=128), attestations, tags
)


@given(enrollments)
def test_an_enrollment_comes_back_as_it_was_and_has_one_json(enrollment: Enrollment) -> None:
    data = to_json(enrollment)
    assert from_json(data) == enrollment
    assert to_json(from_json(data)) == data
    assert from_json(json.dumps(json.loads(data), indent=2).encode()) == enrollment


def test_the_form_is_plain_json_with_base64() -> None:
    enrollment = Enrollment("gw-1", "gw-1", TpmAttestation(b"\x00\x01\xff"), {"sku": "gw-200"})
    assert json.loads(to_json(enrollment)) == {
        "registration_id": "gw-1",
        "device_id": "gw-1",
        "attestation": {"kind": "tpm", "ek": "AAH/", "srk": None},
        "tags": {"sku": "gw-200"},
    }


def test_the_order_of_tags_makes_no_difference() -> None:
    one = Enrollment("a", "a", X509Attestation(b"x"), {"a": "1", "b": "2"})
    other = Enrollment("a", "a", X509Attestation(b"x"), {"b": "2", "a": "1"})
    assert to_json(one) == to_json(other)


GOOD: dict[str, Any] = {
    "registration_id": "a",
    "device_id": "a",
    "attestation": {"kind": "tpm", "ek": "AAH/"},
    "tags": {},
}


@pytest.mark.parametrize(
    "change",
    [
        {"registration_id": "A"},
        {"registration_id": "a\n"},
        {"registration_id": "../a"},
        {"registration_id": "a" * 129},
        {"device_id": ""},
        {"device_id": 7},
        {"extra": 1},
        {"attestation": {"kind": "tpm"}},
        {"attestation": {"kind": "tpm", "ek": "not base64!"}},
        {"attestation": {"kind": "tpm", "ek": ""}},
        {"attestation": {"kind": "x509", "ek": "AAH/"}},
        {"attestation": {"kind": "tpm", "ek": "AAH/", "more": 1}},
        {"attestation": {"kind": "magic"}},
        {"tags": {"a": 1}},
        {"tags": {"": "a"}},
        {"tags": {f"t{n}": "" for n in range(65)}},
    ],
)
def test_what_is_not_exactly_an_enrollment_is_refused(change: dict[str, object]) -> None:
    assert from_json(json.dumps(GOOD).encode()).registration_id == "a"
    with pytest.raises(ProtocolViolation):
        from_json(json.dumps(GOOD | change).encode())


@given(st.binary(max_size=200))
def test_any_octets_give_an_enrollment_or_a_protocol_violation(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        from_json(data)


def test_an_overlong_one_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ProtocolViolation, match="over the limit"):
        from_json(json.dumps(GOOD).encode() + b" " * SIZE_LIMIT)


def test_an_enrollment_that_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(ProtocolViolation):
        to_json(Enrollment("Upper", "a", X509Attestation(b"x")))


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="not Unicode"):
        to_json(Enrollment("a", "a", X509Attestation(b"x"), {"board": "\udc80"}))
