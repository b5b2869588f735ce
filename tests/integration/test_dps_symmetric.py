"""Symmetric keys at the emulated DPS: what was enrolled is what the device registers with; keys are kept nowhere."""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from drivers.azure_dps import messages
from drivers.emulated.dps.device import RegistrationFailed
from drivers.emulated.dps.server import Cloud
from drivers.emulated.dps.service_api import ENROLLMENTS, GROUPS
from drivers.emulated.dps.symmetric_device import register, sas
from hal.call import Call
from hal.errors import Conflict, HallmarkError, ProtocolViolation, Rejected
from hal.interfaces import EnrollmentSink
from hal.secret import Secret
from hal.types import (
    Enrollment,
    Receipt,
    SealedSymmetricAttestation,
    SymmetricGroupAttestation,
    SymmetricKeyAttestation,
)
from station.enrollment import to_json
from tests.fixtures_dps import EKS, ID_SCOPE, KEY, POLICY, VECTORS, Description, issue, unit

azure = pytest.importorskip("azure.iot.deviceprovisioning", reason="needs azure-iot-deviceprovisioning")
credentials = pytest.importorskip("azure.core.credentials")

PRIMARY, SECONDARY = bytes(range(32)), bytes(range(100, 132))


def symmetric(name: str, primary: bytes = PRIMARY, secondary: bytes = SECONDARY) -> Enrollment:
    return Enrollment(name, name, SymmetricKeyAttestation(Secret(primary), Secret(secondary)))


def put(sink: EnrollmentSink, *enrollments: Enrollment) -> tuple[Receipt | HallmarkError, ...]:
    return sink.upload(Call.lasting(30), enrollments).items


@pytest.fixture
def client(cloud: Cloud) -> Iterator[Any]:
    """Microsoft's own client of the service."""
    key = credentials.AzureNamedKeyCredential(POLICY, KEY)
    with azure.DeviceProvisioningClient(cloud.endpoint, key, retry_total=0) as found:
        yield found


def group(name: str, key: bytes) -> dict[str, Any]:
    text = base64.b64encode(key).decode()
    keys = {"primaryKey": text, "secondaryKey": base64.b64encode(secrets.token_bytes(64)).decode()}
    return {
        "enrollmentGroupId": name,
        "attestation": {"type": "symmetricKey", "symmetricKey": keys},
        "capabilities": {"iotEdge": False},
    }


def test_a_device_registers_with_either_key_that_was_enrolled_and_no_other(
    cloud: Cloud, sink: EnrollmentSink, description: Description
) -> None:
    form = messages.individual(symmetric("gw-1"))
    description.check_request("PUT", "/enrollments/gw-1", form)
    (receipt,) = put(sink, symmetric("gw-1"))
    assert isinstance(receipt, Receipt)
    for key in (PRIMARY, SECONDARY):
        assert register(cloud.endpoint, ID_SCOPE, "gw-1", key).device_id == "gw-1"
    for wrong in (bytes(32), hmac.digest(PRIMARY, b"gw-1", "sha256")):
        with pytest.raises(RegistrationFailed, match="401"):
            register(cloud.endpoint, ID_SCOPE, "gw-1", wrong)


def test_microsofts_client_reads_the_keys_that_were_uploaded(
    cloud: Cloud, sink: EnrollmentSink, client: Any
) -> None:
    put(sink, symmetric("gw-1"))
    told = client.enrollment.get_attestation_mechanism("gw-1")
    assert told["type"] == "symmetricKey"
    assert base64.b64decode(told["symmetricKey"]["primaryKey"]) == PRIMARY
    assert base64.b64decode(told["symmetricKey"]["secondaryKey"]) == SECONDARY


def test_a_device_of_a_group_registers_with_its_derived_key(
    cloud: Cloud, sink: EnrollmentSink, client: Any
) -> None:
    vector = VECTORS["derived_keys"][0]
    name, derived = vector["registrationId"], base64.b64decode(vector["derivedKey"])
    client.enrollment_group.create_or_update("line", group("line", base64.b64decode(vector["masterKey"])))
    (receipt,) = put(sink, Enrollment(name, name, SymmetricGroupAttestation("line")))
    assert isinstance(receipt, Receipt)
    assert receipt.existed
    assert cloud.store.count("enrollment") == 0, "the group stands for all of its units"
    assert register(cloud.endpoint, ID_SCOPE, name, derived).registration_id == name
    for other, key in (("gw-2", derived), (name, bytes(32)), (name, base64.b64decode(vector["masterKey"]))):
        with pytest.raises(RegistrationFailed, match="401"):
            register(cloud.endpoint, ID_SCOPE, other, key)


def test_a_group_that_is_missing_or_of_another_kind_parks_its_units(
    sink: EnrollmentSink, client: Any
) -> None:
    (missing,) = put(sink, Enrollment("gw-1", "gw-1", SymmetricGroupAttestation("line")))
    assert isinstance(missing, Rejected)
    assert "group key" in missing.hint
    certificate = {"primary": {"certificate": issue("line CA", ca=True).pem}}
    client.enrollment_group.create_or_update(
        "line",
        {
            "enrollmentGroupId": "line",
            "attestation": {"type": "x509", "x509": {"signingCertificates": certificate}},
            "capabilities": {"iotEdge": False},
        },
    )
    (wrong,) = put(sink, Enrollment("gw-1", "gw-1", SymmetricGroupAttestation("line")))
    assert isinstance(wrong, Rejected)
    assert "symmetricKey" in str(wrong)


def test_the_same_keys_again_are_a_receipt_and_other_keys_a_conflict(sink: EnrollmentSink) -> None:
    put(sink, symmetric("gw-1"), symmetric("gw-2", secrets.token_bytes(32)), unit("gw-3"))
    again = put(sink, symmetric("gw-1"), symmetric("gw-2"), symmetric("gw-3"))
    assert [type(item) for item in again] == [Receipt, Conflict, Conflict]
    assert isinstance(again[0], Receipt)
    assert again[0].existed
    assert "primaryKey" in str(again[1])


def test_nothing_that_is_kept_of_an_upload_holds_a_key(sink: EnrollmentSink) -> None:
    items = put(sink, symmetric("gw-1"), symmetric("gw-2", bytes(range(32, 64))))
    for item in items:
        assert isinstance(item, Receipt)
        kept = json.loads(item.sent)
        assert kept["attestation"]["symmetricKey"] == {
            "primaryKey": "(not kept)",
            "secondaryKey": "(not kept)",
        }
    (conflict,) = put(sink, symmetric("gw-1", bytes(range(64, 96))))
    for said in (*items, conflict):
        for key in (PRIMARY, SECONDARY, bytes(range(32, 64)), bytes(range(64, 96))):
            assert base64.b64encode(key).decode() not in repr(said)


@pytest.mark.parametrize("escape", [lambda text: text, lambda text: text.replace("+", "\\u002B")])
def test_a_service_that_quotes_the_request_in_its_error_tells_no_key(escape: Any) -> None:
    key = b"\xfb\xef\xbe" * 10 + b"ab"
    form = messages.individual(symmetric("gw-1", key))
    sent = messages.encode(form)
    body = escape('{"errorCode":400004,"message":"bad: ' + sent.decode().replace('"', "'") + '"}').encode()
    told = messages.without_keys(body, sent)
    error = messages.service_error(400, told)
    assert error is not None
    text = base64.b64encode(key).decode()
    assert text in sent.decode()
    assert text not in str(error)
    assert text.encode() not in told
    assert messages.without_keys(told, None) == told


def test_a_key_in_clear_is_never_written_as_an_enrollment() -> None:
    with pytest.raises(ProtocolViolation, match="clear"):
        to_json(symmetric("gw-1"))
    with pytest.raises(Rejected):
        messages.individual(Enrollment("gw-1", "gw-1", SealedSymmetricAttestation(b"sealed")))


def test_the_devices_token_is_the_sdks() -> None:
    vector = VECTORS["sas"][1]
    made = sas(vector["audience"], base64.b64decode(vector["key"]), vector["se"])
    assert made == vector["token"]


def test_the_other_kinds_are_as_they_were(cloud: Cloud, sink: EnrollmentSink) -> None:
    assert all(isinstance(item, Receipt) for item in put(sink, unit("gw-1"), unit("gw-2", 1)))
    assert cloud.store.count("enrollment") == 2
    assert {ENROLLMENTS.kind, GROUPS.kind} == {"enrollment", "group"}
    assert len(EKS) == 2
