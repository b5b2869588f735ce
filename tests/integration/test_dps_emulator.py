"""The emulated DPS as a program: absence and return, memory over restarts, TLS, and its answers to nonsense."""

from __future__ import annotations

import base64
import http.client
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from drivers.emulated.dps import sas, tpm
from drivers.emulated.dps.refusal import Refusal
from drivers.emulated.dps.server import Cloud
from drivers.emulated.dps.weather import Weather
from hal.call import Call
from hal.errors import Unreachable
from hal.types import Receipt
from tests.fixtures_dps import EKS, KEY, ROOT, Emulator, TlsFiles, sink_for, unit


def test_what_it_took_is_there_after_a_kill_and_a_restart_on_the_same_port(emulator: Emulator) -> None:
    before = emulator.endpoint
    with sink_for(before) as sink:
        assert isinstance(sink.upload(Call.lasting(20), [unit("gw-1")]).items[0], Receipt)
        emulator.stop(signal.SIGKILL)
        emulator.start()
        assert emulator.endpoint == before
        (item,) = sink.upload(Call.lasting(20), [unit("gw-1")]).items
    assert isinstance(item, Receipt)
    assert item.existed
    assert [record["registrationId"] for record in emulator.control.enrollments()] == ["gw-1"]
    assert emulator.stop() == 0


def test_away_cuts_connections_and_refuses_new_ones_until_back(emulator: Emulator) -> None:
    port = emulator.port
    with socket.create_connection(("127.0.0.1", port), 10) as idle:
        emulator.control.away()
        emulator.control.away()
        assert idle.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 10)
    emulator.control.back()
    socket.create_connection(("127.0.0.1", port), 10).close()
    assert emulator.port == port


def test_it_may_start_away_with_its_port_known(tmp_path: Path) -> None:
    emulator = Emulator(tmp_path, "--away")
    emulator.start()
    try:
        with sink_for(emulator.endpoint) as sink:
            with pytest.raises(Unreachable):
                sink.upload(Call.lasting(20), [unit("gw-1")])
            emulator.control.back()
            assert isinstance(sink.upload(Call.lasting(20), [unit("gw-1")]).items[0], Receipt)
    finally:
        emulator.stop()


def test_faults_are_ordered_and_cleared_from_outside(emulator: Emulator) -> None:
    with sink_for(emulator.endpoint) as sink:
        emulator.control.weather(fail_bulk="gw-2=400004", clock_offset=300, latency=0.01)
        result = sink.upload(Call.lasting(20), [unit("gw-1"), unit("gw-2")])
        assert [type(item).__name__ for item in result.items] == ["Receipt", "Rejected"]
        assert result.clock_skew == pytest.approx(300, abs=2)
        emulator.control.fail(500, count=50)
        emulator.control.clear()
        assert isinstance(sink.upload(Call.lasting(20), [unit("gw-2")]).items[0], Receipt)
    for wrong in ({"latency": "long"}, {"fail_bulk": "x=12"}):
        with pytest.raises(ValueError, match="refused"):
            emulator.control.weather(**wrong)
    assert [entry["method"] for entry in emulator.control.requests()] == ["POST", "GET", "PUT"]


def test_over_tls_a_client_that_checks_is_served(tmp_path: Path, tls_files: TlsFiles) -> None:
    emulator = Emulator(tmp_path, "--tls", tls_files.tls.certificate, tls_files.tls.key)
    emulator.start()
    try:
        assert emulator.endpoint.startswith("https://")
        with sink_for(emulator.endpoint, trust=tls_files.trust) as sink:
            assert isinstance(sink.upload(Call.lasting(20), [unit("gw-1")]).items[0], Receipt)
    finally:
        emulator.stop()


@pytest.mark.parametrize("options", [["--key-file", "none"], ["--fail-bulk", "x=1"], ["--port", "many"]])
def test_a_wrong_option_is_a_usage_error(tmp_path: Path, options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "drivers.emulated.dps", *options],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert options[0] in done.stderr


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /enrollments/a?api-version=2021-10-01 HTTP/1.1\r\nHost: x\r\n\r\n", 401),
        (b"PUT /enrollments/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"PUT /enrollments/a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"PUT /enrollments/a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 411),
        (b"PATCH / HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"\x16\x03\x01\x00\xff" + b"\x00" * 60 + b"\r\n\r\n", 400),
    ],
)
def test_nonsense_gets_an_answer_and_hurts_nobody(cloud: Cloud, request_: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", cloud.port), 10) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection)
        try:
            response.begin()
            assert response.status == status
        except http.client.BadStatusLine:
            assert status == 400, "an answer in HTTP/0.9 has no status line"
        finally:
            response.close()
    with sink_for(cloud.endpoint) as sink:
        assert isinstance(sink.upload(Call.lasting(20), [unit("gw-1")]).items[0], Receipt)


def test_the_rate_limit_counts_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    weather = Weather(rate_limit=2)
    weather.count_operation()
    clock[0] += 30
    weather.count_operation()
    with pytest.raises(Refusal) as caught:
        weather.count_operation()
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "30")
    clock[0] += 30.1
    weather.count_operation()


@pytest.mark.parametrize(
    "header",
    [
        None,
        "Bearer x",
        "SharedAccessSignature ",
        "SharedAccessSignature sr=host&sig=AAAA&se=9999999999",
        "SharedAccessSignature sr=host&sr=host&sig=AAAA&se=9999999999&skn=station",
        "SharedAccessSignature sr=host&sig=%%%&se=9999999999&skn=station",
        "SharedAccessSignature sr=host&sig=AAAA&se=-1&skn=station",
        "SharedAccessSignature " + "a=1&" * 20,
        "SharedAccessSignature %73r=host&sig=AAAA&se=9999999999&skn=station",
        f"SharedAccessSignature sr=host&sig=AAAA&se={'9' * 5000}&skn=station",
    ],
)
def test_a_token_that_is_none_is_refused(header: str | None) -> None:
    with pytest.raises(Refusal) as caught:
        sas.check(header, {"host"}, "station", base64.b64decode(KEY), Weather().now())
    assert caught.value.status == 401


# --- the TPM's mathematics, undone by hand ---


@pytest.mark.parametrize("ek", EKS)
def test_published_endorsement_keys_are_read(ek: bytes) -> None:
    found = tpm.storage_key(ek)
    assert found.key.key_size == 2048
    assert len(found.name) == 34


@given(st.binary(max_size=400))
def test_no_octets_but_a_public_area_are_an_endorsement_key(data: bytes) -> None:
    with pytest.raises(ValueError):
        tpm.storage_key(data)
    with pytest.raises(ValueError):
        tpm.storage_key(EKS[0] + data[:1] + b"x")


@given(st.integers(0, 60), st.integers(1, 255))
def test_a_changed_template_is_no_endorsement_key(place: int, change: int) -> None:
    """Within type, algorithms, attributes' decisive bits or sizes: each octet of these counts."""
    decisive = {0, 1, 2, 3, 4, 5, 10, 11, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 58, 59}
    if place not in decisive:
        return
    changed = bytearray(EKS[0])
    changed[place] ^= change
    with pytest.raises(ValueError):
        tpm.storage_key(bytes(changed))


def test_a_credential_opens_with_the_private_key_and_the_name_it_was_made_for() -> None:
    private = rsa.generate_private_key(65537, 2048)
    ek = tpm.StorageKey(private.public_key(), b"ek")
    blob, secret = tpm.make_credential(ek, b"\0\x0bname", b"the secret value")
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
    seed = private.decrypt(secret[2:], oaep)
    integrity, encrypted = blob[4:36], blob[36:]
    import hmac

    mac_key = tpm.kdfa(seed, b"INTEGRITY", b"", b"", 256)
    assert hmac.digest(mac_key, encrypted + b"\0\x0bname", "sha256") == integrity
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    key = tpm.kdfa(seed, b"STORAGE", b"\0\x0bname", b"", 128)
    decryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).decryptor()
    assert decryptor.update(encrypted) == tpm.sized(b"the secret value")
