"""The sink's own JSON and signatures: published vectors, and answers read with tolerance but without guessing."""

from __future__ import annotations

import base64
import json
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.azure_dps import http, messages, sas
from hal.errors import ConfigError, HallmarkError, Rejected, Throttled, Unauthorized, Unreachable
from hal.secret import Secret
from hal.types import Enrollment, TpmAttestation, X509Attestation
from tests.fixtures_dps import EKS, KEY, VECTORS, issue, unit

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("vector", VECTORS["sas"], ids=lambda vector: vector["policy"])
def test_a_token_is_the_one_that_the_official_client_makes(vector: dict[str, Any]) -> None:
    made = sas.token(
        vector["audience"], vector["policy"], Secret(vector["key"].encode()), vector["se"] - sas.LIFETIME
    )
    assert made == vector["token"]


@pytest.mark.parametrize("key", ["not base64!", "", "  \n", "ü"])
def test_a_bad_key_is_told_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sas.token("host", "policy", Secret(key.encode()), 0)
    assert caught.value.__cause__ is None
    assert not key.strip() or key not in str(caught.value)


@pytest.mark.parametrize(("vector", "ek"), list(zip(VECTORS["ek"], EKS, strict=True)))
def test_an_endorsement_key_goes_out_as_published(vector: dict[str, Any], ek: bytes) -> None:
    form = messages.individual(Enrollment("a", "a", TpmAttestation(ek)))
    assert form["attestation"]["tpm"] == {"endorsementKey": vector["endorsementKey"]}


def test_the_srk_is_sent_only_when_asked() -> None:
    enrollment = Enrollment("a", "a", TpmAttestation(EKS[0], EKS[1]))
    assert "storageRootKey" not in messages.individual(enrollment)["attestation"]["tpm"]
    sent = messages.individual(enrollment, with_srk=True)["attestation"]["tpm"]["storageRootKey"]
    assert base64.b64decode(sent) == EKS[1]


@pytest.mark.parametrize("name", ["version", "Count", "metadata", "a.b", "$x", "with space", "\x07"])
def test_tags_that_break_the_record_later_are_refused_now(name: str) -> None:
    with pytest.raises(Rejected, match="tag"):
        messages.individual(Enrollment("a", "a", TpmAttestation(EKS[0]), {name: "x"}))


def test_an_enrollment_over_the_services_limit_is_refused_here() -> None:
    with pytest.raises(Rejected, match="limit"):
        messages.individual(unit("a", 0, **{f"t{n}": "x" * 4096 for n in range(30)}))


# --- same content ---


def answered(form: dict[str, Any], **changes: Any) -> dict[str, Any]:
    extra = {"etag": '"1"', "createdDateTimeUtc": "x", "capabilities": {"iotEdge": False}}
    return {**json.loads(json.dumps(form)), **extra, **changes}


def test_what_the_service_adds_makes_no_difference() -> None:
    form = messages.individual(unit("gw-1", sku="a"))
    found = answered(
        form, registrationId="GW-1", initialTwin={"tags": {"sku": "a", "$version": 1, "more": "x"}}
    )
    assert messages.same_content(form, found) is None


@pytest.mark.parametrize(
    "change",
    [
        {"deviceId": "other"},
        {"provisioningStatus": "disabled"},
        {"registrationId": "gw-2"},
        {"initialTwin": {"tags": {"sku": "b"}}},
        {"initialTwin": None},
        {"attestation": {"type": "x509"}},
        {"attestation": {"type": "tpm", "tpm": {"endorsementKey": VECTORS["ek"][1]["endorsementKey"]}}},
        {"attestation": {"type": "tpm", "tpm": {"endorsementKey": None}}},
        {"attestation": None},
    ],
)
def test_any_difference_in_what_we_said_is_told(change: dict[str, Any]) -> None:
    form = messages.individual(unit("gw-1", sku="a"))
    assert messages.same_content(form, answered(form)) is None
    assert messages.same_content(form, answered(form, **change))


def test_a_certificate_is_recognised_in_every_form_that_services_give() -> None:
    leaf, other = issue("gw-1"), issue("gw-1")
    form = messages.individual(Enrollment("gw-1", "gw-1", X509Attestation(leaf.der)))

    def told(primary: object) -> str | None:
        x509 = {"clientCertificates": {"primary": primary}}
        return messages.same_content(form, answered(form, attestation={"type": "x509", "x509": x509}))

    import hashlib

    digest = hashlib.sha256(leaf.der).hexdigest()
    same = [
        {"certificate": leaf.pem},
        {"certificate": base64.b64encode(leaf.der).decode()},
        {"certificate": base64.b64encode(leaf.pem.encode()).decode()},
        {"info": {"sha256Thumbprint": digest.upper()}},
        {
            "info": {"sha256Thumbprint": ":".join(digest[i : i + 2] for i in range(0, 64, 2))},
            "certificate": None,
        },
    ]
    assert [told(primary) for primary in same] == [None] * len(same)
    others = [
        {"certificate": other.pem},
        {"certificate": "junk"},
        {"info": {"sha256Thumbprint": "00"}},
        {},
        None,
    ]
    assert all(told(primary) for primary in others)


@given(json_values)
def test_any_record_is_compared_without_an_error(found: Any) -> None:
    form = messages.individual(unit("gw-1", sku="a"))
    assert messages.same_content(form, found)
    assert messages.same_content(form, answered(form, attestation=found))
    assert messages.same_content(form, answered(form, initialTwin=found))


# --- bulk answers ---

ASKED = frozenset({"a", "b", "c"})


def read(**answer: Any) -> messages.BulkAnswer:
    return messages.bulk_answer(json.dumps(answer).encode(), ASKED)


def test_success_needs_no_list() -> None:
    assert read(isSuccessful=True).done == ASKED
    assert read(isSuccessful=True, errors=None).done == ASKED
    assert read(isSuccessful=True, errors=[]).done == ASKED


def test_entries_that_say_succeeded_are_no_errors() -> None:
    listed = [
        {"registrationId": "A", "errorCode": 200, "errorStatus": "Succeeded"},
        {"registrationId": "b", "errorCode": 409201, "errorStatus": "exists"},
    ]
    found = read(isSuccessful=False, errors=listed)
    assert found.done == {"a"}
    assert found.errors == {"b": (409201, "exists")}, "and of c nothing is known"


@pytest.mark.parametrize(
    "listed",
    [
        [{"registrationId": "stranger", "errorCode": 400}],
        ["text"],
        [{"registrationId": "a"}],
        {"a": 1},
        "x",
        7,
    ],
)
def test_nothing_is_concluded_from_a_list_that_cant_be_read(listed: object) -> None:
    assert read(isSuccessful=True, errors=listed).done == frozenset()


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bulk_answer_is_read_or_told_unreachable(body: bytes) -> None:
    with pytest.raises(Unreachable):
        messages.bulk_answer(body, ASKED)


@given(json_values)
def test_a_listed_error_is_never_a_success(errors: Any) -> None:
    entry = {"registrationId": "a", "errorCode": 400004, "errorStatus": "bad"}
    listed = [*errors, entry] if isinstance(errors, list) else [errors, entry]
    found = messages.bulk_answer(json.dumps({"isSuccessful": True, "errors": listed}).encode(), ASKED)
    assert "a" not in found.done
    assert "a" in found.errors


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400004, Rejected),
        (404201, Rejected),
        (403002, Unauthorized),
        (401002, Unauthorized),
        (429001, Throttled),
        (429, Throttled),
        (500001, Unreachable),
        (503, Unreachable),
        (408000, Unreachable),
        (0, Unreachable),
        (-7, Unreachable),
        (10**30, Unreachable),
    ],
)
def test_an_items_error_is_its_own_only_when_it_speaks_of_the_item(
    code: int, kind: type[HallmarkError]
) -> None:
    assert type(messages.item_error(code, "text")) is kind


# --- HTTP's words ---


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://dps.example.net",
        "http://10.0.0.1",
        "ftp://localhost",
        "https://",
        "dps.example.net",
        "https://user@dps.example.net",
        "https://dps.example.net/path",
        "https://dps.example.net?x=1",
        "https://dps.example.net:port",
    ],
)
def test_secrets_go_to_no_such_endpoint(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        http.Service(endpoint, "policy", lambda: Secret(KEY.encode()))


def test_a_trust_file_that_cant_be_read_is_told() -> None:
    with pytest.raises(ConfigError, match="trust"):
        http.Service("https://localhost", "policy", lambda: Secret(b""), trust="/nowhere.pem")


def test_both_forms_of_retry_after_are_seconds() -> None:
    now = time.time()
    assert http._retry_after("17", None) == 17
    assert http._retry_after(formatdate(now + 30, usegmt=True), None) == pytest.approx(30, abs=2)
    theirs = formatdate(now + 7200, usegmt=True), formatdate(now + 7170, usegmt=True)
    assert http._retry_after(*theirs) == 30, "a date counts from the service's own clock"
    assert http._retry_after(formatdate(now - 5), None) == 0
    assert http._retry_after("999999999", None) == http.RETRY_AFTER_LIMIT


@given(st.text(max_size=40))
def test_a_strange_retry_after_is_none_or_in_bounds(text: str) -> None:
    found = http._retry_after(text, text)
    assert found is None or 0 <= found <= http.RETRY_AFTER_LIMIT
