"""Microsoft's own service client works against the emulated DPS: what our sink meets there is not our invention."""

from __future__ import annotations

import base64
import http.client
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.iot.deviceprovisioning import DeviceProvisioningClient

from drivers.azure_dps.sas import token
from drivers.emulated.dps.server import Cloud
from drivers.emulated.dps.weather import Fault
from hal.secret import Secret
from tests.fixtures_dps import KEY, POLICY, VECTORS, Description, TlsFiles, issue, running_cloud

EK = VECTORS["ek"][0]["endorsementKey"]


def tpm(name: str, **more: Any) -> dict[str, Any]:
    return {"registrationId": name, "attestation": {"type": "tpm", "tpm": {"endorsementKey": EK}}, **more}


def group(name: str, certificate: str) -> dict[str, Any]:
    signing = {"signingCertificates": {"primary": {"certificate": certificate}}}
    return {"enrollmentGroupId": name, "attestation": {"type": "x509", "x509": signing}}


@pytest.fixture
def client(cloud: Cloud) -> Iterator[Any]:
    with DeviceProvisioningClient(
        cloud.endpoint, AzureNamedKeyCredential(POLICY, KEY), retry_total=0
    ) as found:
        yield found


def test_create_read_replace_delete_with_etags(client: Any) -> None:
    made = client.enrollment.create_or_update("GW-1", tpm("GW-1", deviceId="Device-1"))
    assert made["registrationId"] == "gw-1"
    assert client.enrollment.get("gw-1")["etag"] == made["etag"]
    with pytest.raises(ResourceExistsError):
        client.enrollment.create_or_update("gw-1", tpm("gw-1"))
    with pytest.raises(HttpResponseError, match="ETag"):
        client.enrollment.create_or_update("gw-1", tpm("gw-1"), if_match='"0000"')
    newer = client.enrollment.create_or_update("gw-1", tpm("gw-1"), if_match=made["etag"])
    assert newer["etag"] != made["etag"]
    assert newer["createdDateTimeUtc"] == made["createdDateTimeUtc"]
    assert client.enrollment.get_attestation_mechanism("gw-1")["tpm"]["endorsementKey"] == EK
    with pytest.raises(HttpResponseError, match="ETag"):
        client.enrollment.delete("gw-1", if_match=made["etag"])
    client.enrollment.delete("gw-1", if_match="*")
    with pytest.raises(ResourceNotFoundError):
        client.enrollment.get("gw-1")
    with pytest.raises(ResourceNotFoundError):
        client.enrollment.create_or_update("gw-1", tpm("gw-1"), if_match="*")


def test_bulk_in_every_mode_with_errors_of_single_items(client: Any) -> None:
    def bulk(mode: str, *items: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = client.enrollment.run_bulk_operation(
            {"mode": mode, "enrollments": list(items)}
        )
        return found

    assert bulk("create", tpm("a"), tpm("b"))["isSuccessful"]
    partly = bulk("create", tpm("b"), tpm("c"))
    assert not partly["isSuccessful"]
    assert [(error["registrationId"], error["errorCode"] // 1000) for error in partly["errors"]] == [
        ("b", 409)
    ]
    assert client.enrollment.get("c")["registrationId"] == "c"
    assert bulk("update", tpm("a", deviceId="new"))["isSuccessful"]
    etag = client.enrollment.get("a")["etag"]
    assert not bulk("updateIfMatchETag", tpm("a", etag='"0"'))["isSuccessful"]
    assert bulk("updateIfMatchETag", tpm("a", etag=etag))["isSuccessful"]
    assert bulk("delete", tpm("a"), tpm("b"))["isSuccessful"]


@pytest.mark.parametrize(
    "body",
    [
        {"mode": "create", "enrollments": [tpm(f"gw-{n}") for n in range(11)]},
        {"mode": "create", "enrollments": [tpm("a"), tpm("A")]},
        {"mode": "create", "enrollments": []},
        {"mode": "upsert", "enrollments": [tpm("a")]},
        {"mode": "create", "enrollments": [tpm("a"), tpm("-b")]},
    ],
)
def test_a_bulk_request_is_refused_as_a_whole(client: Any, cloud: Cloud, body: dict[str, Any]) -> None:
    with pytest.raises(HttpResponseError) as caught:
        client.enrollment.run_bulk_operation(body)
    assert caught.value.status_code == 400
    assert cloud.store.count("enrollment") == 0


def test_queries_page_through_everything_once(client: Any) -> None:
    for start in (0, 10):
        items = [tpm(f"gw-{number:02}") for number in range(start, start + 10)]
        client.enrollment.run_bulk_operation({"mode": "create", "enrollments": items})
    query = {"query": "SELECT * FROM enrollments"}
    pages = [list(page) for page in client.enrollment.query(query, top=7).by_page()]
    assert [len(page) for page in pages] == [7, 7, 6]
    assert [item["registrationId"] for page in pages for item in page] == [f"gw-{n:02}" for n in range(20)]
    with pytest.raises(HttpResponseError):
        list(client.enrollment.query({"query": "SELECT * FROM enrollments WHERE x = 1"}))


def test_groups_take_ca_certificates_and_each_certificate_stands_once(client: Any) -> None:
    ca = issue("line CA", ca=True)
    made = client.enrollment_group.create_or_update("line", group("line", ca.pem))
    info = made["attestation"]["x509"]["signingCertificates"]["primary"]
    assert info["info"]["subjectName"] == "CN=line CA"
    assert "certificate" not in info
    with pytest.raises(HttpResponseError, match="in use"):
        client.enrollment_group.create_or_update("other", group("other", ca.pem))
    client.enrollment_group.delete("line")
    client.enrollment_group.create_or_update("other", group("other", base64.b64encode(ca.der).decode()))
    assert [
        found["enrollmentGroupId"]
        for found in client.enrollment_group.query({"query": "SELECT * FROM enrollmentGroups"})
    ] == ["other"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"attestation": {"type": "tpm", "tpm": {"endorsementKey": "OgEAAAEACwCyAAMA"}}}, "TPM2B_PUBLIC"),
        ({"attestation": {"type": "tpm", "tpm": {"endorsementKey": EK[:-8]}}}, "TPM2B_PUBLIC"),
        ({"attestation": {"type": "tpm", "tpm": {"endorsementKey": "%%%"}}}, "TPM2B_PUBLIC"),
        ({"attestation": {"type": "tpm"}}, "attestation"),
        (
            {
                "attestation": {
                    "type": "x509",
                    "x509": {"clientCertificates": {"primary": {"certificate": "x"}}},
                }
            },
            "read",
        ),
        ({"provisioningStatus": "maybe"}, "provisioningStatus"),
        ({"initialTwin": {"tags": {"version": 1}}}, "tags"),
        ({"capabilities": {}}, "iotEdge"),
        ({"deviceId": "a b"}, "deviceId"),
        ({"unheardOf": 1}, "unheardOf"),
        ({"registrationId": "other"}, "address"),
    ],
)
def test_a_record_against_the_rules_is_refused_with_its_reason(
    client: Any, change: dict[str, Any], word: str
) -> None:
    with pytest.raises(HttpResponseError) as caught:
        client.enrollment.create_or_update("gw-1", {**tpm("gw-1"), **change})
    assert caught.value.status_code == 400
    assert word in str(caught.value)


def test_a_wrong_key_and_an_old_token_are_unauthorized(cloud: Cloud, client: Any) -> None:
    wrong = AzureNamedKeyCredential(POLICY, base64.b64encode(secrets.token_bytes(32)).decode())
    with (
        DeviceProvisioningClient(cloud.endpoint, wrong, retry_total=0) as stranger,
        pytest.raises(ClientAuthenticationError),
    ):
        stranger.enrollment.get("gw-1")
    cloud.weather.clock_offset = 4000
    with pytest.raises(ClientAuthenticationError, match="expired"):
        client.enrollment.get("gw-1")


def test_the_client_waits_as_retry_after_says(cloud: Cloud) -> None:
    cloud.weather.order(2, Fault(429, "0"))
    with DeviceProvisioningClient(cloud.endpoint, AzureNamedKeyCredential(POLICY, KEY)) as patient:
        assert patient.enrollment.create_or_update("gw-1", tpm("gw-1"))["etag"]
    assert [entry["status"] for entry in cloud.weather.noted()] == [429, 429, 200]


def test_over_tls_it_signs_the_bare_host(tls_files: TlsFiles) -> None:
    with (
        running_cloud(tls_files.tls) as cloud,
        DeviceProvisioningClient(
            f"localhost:{cloud.port}",
            AzureNamedKeyCredential(POLICY, KEY),
            connection_verify=tls_files.trust,
            retry_total=0,
        ) as client,
    ):
        assert client.enrollment.create_or_update("gw-1", tpm("gw-1"))["etag"]


def test_every_answer_is_one_of_the_official_description(cloud: Cloud, description: Description) -> None:
    leaf, ca = issue("gw-x"), issue("line CA", ca=True)
    x509 = {"type": "x509", "x509": {"clientCertificates": {"primary": {"certificate": leaf.pem}}}}
    steps: list[tuple[str, str, Any]] = [
        ("PUT", "/enrollments/a", tpm("a", initialTwin={"tags": {"sku": "x"}})),
        ("PUT", "/enrollments/gw-x", {"registrationId": "gw-x", "attestation": x509}),
        ("PUT", "/enrollments/k", {"registrationId": "k", "attestation": {"type": "symmetricKey"}}),
        ("PUT", "/enrollments/a", tpm("a")),
        ("GET", "/enrollments/a", None),
        ("GET", "/enrollments/none", None),
        ("POST", "/enrollments", {"mode": "create", "enrollments": [tpm("a"), tpm("b")]}),
        ("POST", "/enrollments/query", {"query": "SELECT * FROM enrollments"}),
        ("POST", "/enrollments/k/attestationmechanism", None),
        ("PUT", "/enrollmentGroups/line", group("line", ca.pem)),
        ("GET", "/enrollmentGroups/line", None),
        ("POST", "/enrollmentGroups/query", {"query": "SELECT * FROM enrollmentGroups"}),
        ("DELETE", "/enrollments/b", None),
        ("GET", "/registrations/a", None),
    ]
    statuses = []
    for method, path, body in steps:
        connection = http.client.HTTPConnection("127.0.0.1", cloud.port, timeout=20)
        headers = {
            "Content-Type": "application/json",
            "Authorization": token(f"127.0.0.1:{cloud.port}", POLICY, Secret(KEY.encode()), 2e9),
        }
        content = None if body is None else json.dumps(body)
        connection.request(method, f"{path}?api-version=2021-10-01", content, headers)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        statuses.append(response.status)
        description.check_answer(method, path, response.status, json.loads(answer) if answer else None)
    assert statuses == [200, 200, 200, 409, 200, 404, 200, 200, 200, 200, 200, 200, 204, 404]
