"""Devices register at the emulated DPS as field clients do: what was enrolled is what the TPM, or a key, can prove."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR
from tpm2_pytss.types import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE

from drivers.emulated.dps.device import (
    EK_HANDLE,
    IDENTITY_HANDLE,
    SRK_HANDLE,
    FieldTpm,
    RegistrationFailed,
    register,
    registration_id,
)
from drivers.emulated.dps.server import Cloud
from drivers.emulated.dps.service_api import ENROLLMENTS, GROUPS
from hal.call import Call
from hal.interfaces import EnrollmentSink
from hal.types import Enrollment, Receipt, TpmAttestation, X509Attestation
from tests.fixtures_dps import (
    EKS,
    ID_SCOPE,
    VECTORS,
    Description,
    Issued,
    TlsFiles,
    issue,
    running_cloud,
    sink_for,
    unit,
)
from tests.fixtures_tpm import listening

SRK_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"


@dataclass
class Board:
    esapi: ESAPI

    @property
    def ek(self) -> bytes:
        return FieldTpm(self.esapi).public(EK_HANDLE)


@pytest.fixture
def board(tpm_state: Path, tmp_path: Path) -> Iterator[Board]:
    """A TPM as Hallmark leaves it for TPM enrollment: EK and SRK persisted, owner and endorsement auth empty."""
    with listening(tpm_state, tmp_path / "t") as (_, tcti), ESAPI(tcti) as esapi:
        template = TPM2B_PUBLIC.parse("rsa2048:aes128cfb", objectAttributes=SRK_ATTRIBUTES)
        srk, *_ = esapi.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)
        esapi.tr_close(esapi.evict_control(ESYS_TR.OWNER, srk, SRK_HANDLE))
        esapi.flush_context(srk)
        yield Board(esapi)


def enroll(sink: EnrollmentSink, enrollment: Enrollment) -> None:
    (item,) = sink.upload(Call.lasting(30), [enrollment]).items
    assert isinstance(item, Receipt)


def test_the_tpm_proves_the_identity_that_was_enrolled(
    cloud: Cloud, sink: EnrollmentSink, board: Board
) -> None:
    name = registration_id(board.ek)
    enroll(sink, Enrollment(name, "gw-7", TpmAttestation(board.ek)))
    found = register(board.esapi, cloud.endpoint, ID_SCOPE)
    assert (found.registration_id, found.device_id, found.hub) == (name, "gw-7", "hub.azure-devices.net")
    assert FieldTpm(board.esapi).public(IDENTITY_HANDLE)
    # A device that starts again gets a new identity key in the place of the old one.
    before = FieldTpm(board.esapi).public(IDENTITY_HANDLE)
    assert register(board.esapi, cloud.endpoint, ID_SCOPE) == found
    assert FieldTpm(board.esapi).public(IDENTITY_HANDLE) != before


def test_another_tpm_cant_take_an_enrolled_identity(cloud: Cloud, sink: EnrollmentSink, board: Board) -> None:
    enroll(sink, unit("gw-8"))
    with pytest.raises(RegistrationFailed, match="endorsement key"):
        register(board.esapi, cloud.endpoint, ID_SCOPE, "gw-8")


def test_a_claimed_ek_without_its_private_key_opens_nothing(
    cloud: Cloud, sink: EnrollmentSink, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof is the TPM's: a client that sends the enrolled EK, but has another, fails at activation."""
    enroll(sink, unit("gw-9"))
    monkeypatch.setattr(FieldTpm, "public", _lying(FieldTpm.public))
    # No match: by chance of the moduli it is an integrity error, or libtpms goes into failure mode.
    with pytest.raises(TSS2_Exception):
        register(board.esapi, cloud.endpoint, ID_SCOPE, "gw-9")
    assert [entry["status"] for entry in cloud.weather.noted()][-1] == 401
    assert cloud.store.get("registration", "gw-9") is None


def _lying(honest: Any) -> Any:
    return lambda self, handle: EKS[0] if handle == EK_HANDLE else honest(self, handle)


def test_an_owner_auth_would_break_the_field_client(cloud: Cloud, sink: EnrollmentSink, board: Board) -> None:
    """Why Hallmark leaves owner and endorsement auth empty for TPM enrollments."""
    enroll(sink, Enrollment("gw-10", "gw-10", TpmAttestation(board.ek)))
    board.esapi.hierarchy_change_auth(ESYS_TR.OWNER, b"secret")
    board.esapi.tr_set_auth(ESYS_TR.OWNER, b"")
    with pytest.raises(TSS2_Exception, match="auth"):
        register(board.esapi, cloud.endpoint, ID_SCOPE, "gw-10")


def test_the_registration_id_is_the_sdks() -> None:
    for vector, ek in zip(VECTORS["ek"], EKS, strict=True):
        assert registration_id(ek) == vector["sdk_registration_id_base32"]


# --- X.509 ---


def ask(
    cloud: Cloud, trust: str, method: str, path: str, files: tuple[str, str] | None
) -> tuple[int, dict[str, Any]]:
    context = ssl.create_default_context(cafile=trust)
    if files:
        context.load_cert_chain(*files)
    connection = http.client.HTTPSConnection("localhost", cloud.port, context=context, timeout=20)
    try:
        body = json.dumps({}) if method == "PUT" else None
        connection.request(
            method, f"{path}?api-version=2021-10-01", body, {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@contextlib.contextmanager
def tls_cloud(files: TlsFiles) -> Iterator[tuple[Cloud, EnrollmentSink]]:
    with running_cloud(files.tls) as cloud, sink_for(cloud.endpoint, trust=files.trust) as sink:
        yield cloud, sink


def assigned(cloud: Cloud, trust: str, name: str, files: tuple[str, str]) -> dict[str, Any]:
    path = f"/{ID_SCOPE}/registrations/{name}"
    status, operation = ask(cloud, trust, "PUT", f"{path}/register", files)
    assert (status, operation["status"]) == (202, "assigning")
    status, found = ask(cloud, trust, "GET", f"{path}/operations/{operation['operationId']}", files)
    assert (status, found["status"]) == (200, "assigned")
    state: dict[str, Any] = found["registrationState"]
    return state


def test_a_client_certificate_proves_its_individual_enrollment(tls_files: TlsFiles, tmp_path: Path) -> None:
    ca = issue("line CA", ca=True)
    leaf = issue("gw-20", ca)
    with tls_cloud(tls_files) as (cloud, sink):
        enroll(sink, Enrollment("gw-20", "gw-20", X509Attestation(leaf.der)))
        state = assigned(cloud, tls_files.trust, "gw-20", leaf.write(tmp_path, "leaf", ca))
        assert state["x509"]["certificateInfo"]["subjectName"] == "CN=gw-20"
        twin = issue("gw-20", ca).write(tmp_path, "twin", ca)
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(cloud, tls_files.trust, "PUT", f"/{ID_SCOPE}/registrations/gw-20/register", twin)
        status, _ = ask(cloud, tls_files.trust, "PUT", f"/{ID_SCOPE}/registrations/gw-20/register", None)
        assert status == 401


def test_a_chain_proves_membership_in_a_group(tls_files: TlsFiles, tmp_path: Path) -> None:
    ca = issue("line CA", ca=True)
    with tls_cloud(tls_files) as (cloud, _):
        _make_group(cloud, ca)
        state = assigned(cloud, tls_files.trust, "gw-21", issue("gw-21", ca).write(tmp_path, "leaf", ca))
        assert state["x509"]["enrollmentGroupId"] == "line"
        other = issue("gw-22", ca).write(tmp_path, "other", ca)
        status, said = ask(cloud, tls_files.trust, "PUT", f"/{ID_SCOPE}/registrations/gw-21/register", other)
        assert status == 401
        assert "common name" in said["message"]


def _make_group(cloud: Cloud, ca: Issued) -> None:
    certificates = {"signingCertificates": {"primary": {"certificate": ca.pem}}}
    record = {"enrollmentGroupId": "line", "attestation": {"type": "x509", "x509": certificates}}
    with cloud.store.transaction():
        cloud.service._write(GROUPS, record, None)


def test_an_untrusted_server_gets_nothing(tls_files: TlsFiles, tmp_path: Path) -> None:
    stranger, _ = issue("somebody else", ca=True).write(tmp_path, "stranger")
    from hal.errors import Unreachable

    with running_cloud(tls_files.tls) as cloud, sink_for(cloud.endpoint, trust=stranger) as sink:
        with pytest.raises(Unreachable, match="certificate is not trusted"):
            sink.upload(Call.lasting(20), [unit("gw-23")])
        assert [entry for entry in cloud.weather.noted() if entry["method"] != "-"] == []


def test_the_device_answers_are_those_of_the_official_description(
    cloud: Cloud, sink: EnrollmentSink, board: Board
) -> None:
    """The body of the 401 is not in the official description; its members are those that the C# client reads."""
    device = Description("device-2021-10-01.json")
    assert "/{idScope}/registrations/{registrationId}/register" in device.paths
    enroll(sink, Enrollment("gw-24", "gw-24", TpmAttestation(board.ek)))
    connection = http.client.HTTPConnection("127.0.0.1", cloud.port, timeout=20)
    keys = {"endorsementKey": base64.b64encode(board.ek).decode()}
    keys["storageRootKey"] = base64.b64encode(FieldTpm(board.esapi).public(SRK_HANDLE)).decode()
    connection.request(
        "PUT",
        f"/{ID_SCOPE}/registrations/gw-24/register?api-version=2021-10-01",
        json.dumps({"registrationId": "gw-24", "tpm": keys}),
        {"Content-Type": "application/json"},
    )
    response = connection.getresponse()
    said = json.loads(response.read())
    connection.close()
    assert response.status == 401
    assert {"message", "authenticationKey", "keyName", "errorCode", "trackingId"} <= said.keys()
    assert cloud.store.get(ENROLLMENTS.kind, "gw-24") is not None
