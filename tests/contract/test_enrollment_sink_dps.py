"""The Azure DPS sink keeps every sink's promises, and each of its requests is one of the official description."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from drivers.emulated.dps.server import Cloud
from drivers.emulated.dps.service_api import GROUPS
from hal.call import Call
from hal.conformance import enrollment_sink
from hal.errors import Conflict, HallmarkError, Rejected
from hal.interfaces import EnrollmentSink
from hal.types import Enrollment, Receipt, TpmAttestation, X509Attestation, X509GroupAttestation
from tests.fixtures_dps import EKS, Description, issue, sink_for, unit


def requests(cloud: Cloud) -> list[tuple[str, str, object]]:
    return [(entry["method"], entry["path"], entry["body"]) for entry in cloud.weather.noted()]


def test_it_is_an_enrollment_sink_that_keeps_the_contract(cloud: Cloud, sink: EnrollmentSink) -> None:
    units = [unit(f"unit-{number}") for number in range(12)]
    enrollment_sink.check(sink, units, unit("unit-0", 1))
    assert len(cloud.store.all("enrollment")) == 12


def test_every_request_is_one_of_the_official_description(cloud: Cloud, description: Description) -> None:
    leaf = issue("gw-x509")
    batch = [
        *(unit(f"gw-{number}", sku="gw-200", lot="A 7") for number in range(7)),
        Enrollment("gw-x509", "gw-x509", X509Attestation(leaf.der), {"sku": "x"}),
        Enrollment("gw-group", "gw-group", X509GroupAttestation("line", leaf.der)),
        Enrollment("gw-bad-ek", "gw-bad-ek", TpmAttestation(b"\0\2xx")),
    ]
    with sink_for(cloud.endpoint, storage_root_key=True) as sink:
        first = sink.upload(Call.lasting(30), batch).items
        again = sink.upload(Call.lasting(30), batch).items
        sink.upload(Call.lasting(30), [unit("gw-0", 1), batch[0]])
    assert [isinstance(item, Receipt) for item in first] == [True] * 8 + [False] * 2
    assert all(isinstance(item, Rejected) for item in first[8:])
    assert all(item.existed for item in again[:8] if isinstance(item, Receipt))
    seen = requests(cloud)
    for method, path, body in seen:
        description.check_request(method, path, body)
    kinds = {(method, path.count("/"), path.split("/")[1]) for method, path, _ in seen}
    assert kinds == {
        ("POST", 1, "enrollments"),
        ("PUT", 2, "enrollments"),
        ("GET", 2, "enrollments"),
        ("GET", 2, "enrollmentGroups"),
    }


def test_the_description_is_able_to_refuse(description: Description) -> None:
    import jsonschema

    good = {"registrationId": "a", "attestation": {"type": "tpm", "tpm": {"endorsementKey": "x"}}}
    description.check_request("PUT", "/enrollments/a", good)
    for bad in (
        {**good, "registrationid": "a"},
        {**good, "registrationState": {}},
        {**good, "provisioningStatus": "maybe"},
        {**good, "attestation": {"type": "tpm", "tpm": {}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            description.check_request("PUT", "/enrollments/a", bad)
    with pytest.raises(AssertionError, match="no PATCH"):
        description.check_request("PATCH", "/enrollments/a", good)


def test_an_ek_is_sent_as_the_octets_that_the_tpm_has(cloud: Cloud, sink: EnrollmentSink) -> None:
    import base64

    (receipt,) = sink.upload(Call.lasting(30), [unit("gw-1")]).items
    assert isinstance(receipt, Receipt)
    stored = cloud.store.get("enrollment", "gw-1")
    assert stored is not None
    assert base64.b64decode(stored["attestation"]["tpm"]["endorsementKey"]) == EKS[0]
    assert receipt.etag == stored["etag"]
    assert base64.b64encode(EKS[0]) in receipt.sent


def test_units_of_a_group_need_the_group_and_no_record(cloud: Cloud, sink: EnrollmentSink) -> None:
    ca = issue("line CA", ca=True)
    units = [
        Enrollment(
            f"gw-{number}", f"gw-{number}", X509GroupAttestation("line", issue(f"gw-{number}", ca).der)
        )
        for number in range(3)
    ]
    refused = sink.upload(Call.lasting(30), units).items
    assert all(isinstance(item, Rejected) and "does not exist" in str(item) for item in refused)
    assert all(
        "Create the enrollment group" in item.hint for item in refused if isinstance(item, HallmarkError)
    )
    record = {
        "enrollmentGroupId": "line",
        "attestation": {
            "type": "x509",
            "x509": {"signingCertificates": {"primary": {"certificate": ca.pem}}},
        },
    }
    with cloud.store.transaction():
        cloud.service._write(GROUPS, record, None)
    before = len(cloud.weather.noted())
    taken = sink.upload(Call.lasting(30), units).items
    assert [item.existed for item in taken if isinstance(item, Receipt)] == [True] * 3
    assert len(cloud.weather.noted()) == before + 1, "one look for the group, not one for each unit"
    assert cloud.store.count("enrollment") == 0


def test_the_audit_checkpoint_goes_with_each_enrollment_and_makes_no_other_one_of_it(
    cloud: Cloud, description: Description
) -> None:
    """The service keeps the one that came first: a station that is rolled back later can't take it away."""
    note = "example.com/line-1/0123\n{}\nAAAA\n\n— example.com/line-1/0123 AAAA\n".format
    units = [replace(unit(f"gw-{number}", sku="a"), audit_head=note(100)) for number in range(2)]
    with sink_for(cloud.endpoint) as sink:
        assert all(isinstance(item, Receipt) for item in sink.upload(Call.lasting(30), units).items)
        later = [replace(item, audit_head=note(200)) for item in units]
        again = sink.upload(Call.lasting(30), later).items
        alone = sink.upload(Call.lasting(30), [replace(units[0], audit_head="")]).items
        other = sink.upload(Call.lasting(30), [replace(later[0], tags={"sku": "b"})]).items
    for item in (*again, *alone):
        assert isinstance(item, Receipt), item
        assert item.existed
        tags = json.loads(item.sent)["initialTwin"]["tags"]
        assert tags == {"sku": "a", "auditCheckpoint": note(100)}, (
            "what the service has, not what came too late"
        )
    assert isinstance(other[0], Conflict)
    for method, path, body in requests(cloud):
        description.check_request(method, path, body)


@pytest.mark.parametrize("tag", ["", "sku"])
def test_the_checkpoint_is_left_out_where_it_is_not_wanted_or_its_place_is_taken(
    cloud: Cloud, tag: str
) -> None:
    one = replace(unit("gw-1", sku="a"), audit_head="head")
    with sink_for(cloud.endpoint, audit_tag=tag) as sink:
        for _ in range(2):
            (item,) = sink.upload(Call.lasting(30), [one]).items
            assert isinstance(item, Receipt), item
            assert json.loads(item.sent)["initialTwin"] == {"tags": {"sku": "a"}}
