"""The software TPM: made whole or not at all, its answers in order, gone with whoever started it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509

from drivers.swtpm.driver import DRIVER, SwtpmSettings
from drivers.swtpm.process import STATE_FILE, SwtpmProcess, manufacture
from drivers.tpm.templates import EK_HANDLE
from hal.call import Call
from hal.driver import opened
from hal.errors import ConfigError, DeadlineExceeded, DeviceGone
from hal.interfaces import EndorsementIdentity, TpmTransport
from tests.fixtures_tpm import Recorder, lasting

RANDOM = bytes.fromhex("80010000000c0000017b0008")
HANDLES = bytes.fromhex("8001000000160000017a000000018100000000000008")


def test_the_driver_makes_a_tpm_once_whose_certificate_is_from_the_bench_ca(
    tmp_path: Path, ek_ca: Path
) -> None:
    settings = SwtpmSettings(state=str(tmp_path / "a, b" / "tpm"), ek_ca=str(ek_ca))
    found = []
    for _ in range(2):
        with (
            opened([("link", DRIVER, settings)], {}) as bindings,
            Recorder(bindings.get(TpmTransport)).visit() as tpm,
        ):
            report = tpm.get(EndorsementIdentity).endorsements(lasting())
            found.append({key.name: key.certificate for key in report.keys if key.handle == EK_HANDLE})
    assert found[0] == found[1]
    (certificate,) = found[0].values()
    assert certificate
    issuer = x509.load_pem_x509_certificate((ek_ca / "issuercert.pem").read_bytes())
    x509.load_der_x509_certificate(certificate).verify_directly_issued_by(issuer)
    assert [path.name for path in (tmp_path / "a, b").iterdir()] == ["tpm"], "nothing half-made is left"
    assert DRIVER.bench_only


def test_relative_paths_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), opened([("x", DRIVER, SwtpmSettings("a", "/b"))], {}):
        pass
    with pytest.raises(ConfigError), SwtpmProcess(tmp_path):
        pass
    assert not (tmp_path / STATE_FILE).exists()


def test_a_late_answer_is_never_taken_for_the_next_ones(swtpm: SwtpmProcess) -> None:
    import os

    assert swtpm.pid is not None
    os.kill(swtpm.pid, signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded):
        swtpm.transmit(Call.lasting(0.1), RANDOM)
    with pytest.raises(DeadlineExceeded):
        swtpm.transmit(Call.lasting(0.1), RANDOM)
    os.kill(swtpm.pid, signal.SIGCONT)
    assert swtpm.transmit(lasting(), HANDLES)[11:15] == b"\0\0\0\1", (
        "the answer to the capability, not to the first"
    )


def test_two_at_once_on_one_state_are_refused_in_swtpms_words(swtpm: SwtpmProcess, tpm_state: Path) -> None:
    assert swtpm.transmit(lasting(), RANDOM)
    with SwtpmProcess(tpm_state) as second, pytest.raises(DeviceGone, match="lock"):
        second.transmit(lasting(), RANDOM)
    assert swtpm.transmit(lasting(), RANDOM)


def test_it_ends_with_whoever_started_it(tpm_state: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from drivers.swtpm.process import SwtpmProcess\n"
        "p = SwtpmProcess(Path(sys.argv[1])); p.power_on(); print(p.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tpm_state)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    status, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + 5
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "swtpm outlives the process that started it"
        time.sleep(0.01)


def test_a_state_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError) as caught:
        manufacture(tmp_path / "tpm", tmp_path / "ca")
    assert "apt-get" in caught.value.hint
    assert not (tmp_path / "tpm").exists()
