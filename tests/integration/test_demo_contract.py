"""The demo, run as a customer runs it, and its files judged by openssl and tpm2-tools alone: no code of ours judges.

Its files are a contract (design: "Command line and files").
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EK, SRK, KEY, IDENTITY = "0x81010001", "0x81000001", "0x81020000", "0x81000100"
ID_SCOPE = "0ne00000000"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = subprocess.run(
        [sys.executable, "-m", "drivers.emulated.demo", "--units", "2", "--out", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def units(out: Path) -> list[Path]:
    found = sorted((out / "units").iterdir())
    assert found
    return found


def unit_of(out: Path, kind: str) -> Path:
    """The unit whose enrollment is of this kind."""
    return next(unit for unit in units(out) if enrollment(unit)["attestation"]["type"] == kind)


def enrollment(unit: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((unit / "enrollment.json").read_text())
    return found


def run(*words: object, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, f"{words[:3]}: {done.stdout[-500:]} {done.stderr[-500:]}"
    return done.stdout


class Tool:
    def __init__(self, socket: Path) -> None:
        self.tcti = f"swtpm:path={socket}"

    def __call__(self, *words: object) -> str:
        return run(*words, TPM2TOOLS_TCTI=self.tcti)


@contextmanager
def tpm_of(unit: Path, tmp_path: Path) -> Iterator[Tool]:
    """The unit's TPM, on a copy of its state."""
    state = tmp_path / "tpm"
    shutil.copytree(unit / "tpm", state)
    socket = tmp_path / "t"
    process = subprocess.Popen(
        [
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--flags", "startup-clear"),
            *("--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={socket}.ctrl"),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        run("sh", "-c", f"for _ in $(seq 200); do test -S {socket}.ctrl && exit 0; sleep 0.02; done; exit 1")
        yield Tool(socket)
    finally:
        process.kill()
        process.wait()


def test_the_report_says_that_all_is_well_and_what_was_killed(out: Path) -> None:
    report = json.loads((out / "report.json").read_text())
    assert report["ok"] is True
    assert report["problems"] == []
    assert {kill["process"] for kill in report["kills"]} == {"worker", "signer", "station"}
    assert [unit["outcome"] for unit in report["units"] + report["units_of_the_killed_round"]] == ["PASS"] * 4
    assert report["certificates"] == report["enrollments"] == 4
    assert report["queued_while_the_cloud_was_away"] == 2


def test_one_sku_enrolls_by_tpm_and_one_by_certificate(out: Path) -> None:
    assert {enrollment(unit)["attestation"]["type"] for unit in units(out)} == {"tpm", "x509"}


def test_each_certificate_verifies_up_to_the_root_and_names_its_registration_id(out: Path) -> None:
    for folder in (out, out / "killed"):
        for unit in units(folder):
            run(
                *("openssl", "verify", "-x509_strict", "-CAfile", out / "ca/root.pem"),
                *("-untrusted", out / "ca/intermediate.pem", unit / "device.pem"),
            )
            subject = run(
                "openssl", "x509", "-in", unit / "device.pem", "-noout", "-subject", "-nameopt", "multiline"
            )
            assert f"commonName                = {unit.name}" in subject
            assert enrollment(unit)["registrationId"] == unit.name
            chain = (unit / "chain.pem").read_text()
            assert chain.count("BEGIN CERTIFICATE") == 2
            assert chain.startswith((unit / "device.pem").read_text().strip()[:200])


def test_the_tpm_holds_the_key_of_the_certificate_and_the_ek_of_ek_pub(out: Path, tmp_path: Path) -> None:
    for unit in units(out):
        folder = tmp_path / unit.name[:8]
        folder.mkdir()
        with tpm_of(unit, folder) as tpm:
            tpm("tpm2_readpublic", "-c", KEY, "-f", "pem", "-o", folder / "key.pem")
            tpm("tpm2_readpublic", "-c", EK, "-f", "tss", "-o", folder / "ek.pub")
            tpm("tpm2_readpublic", "-c", SRK)
        in_certificate = run("openssl", "x509", "-in", unit / "device.pem", "-noout", "-pubkey")
        assert in_certificate == (folder / "key.pem").read_text()
        assert (folder / "ek.pub").read_bytes() == (unit / "ek.pub").read_bytes()
        assert len((unit / "ek.pub").read_bytes()) == 316


def opened(out: Path, unit: Path) -> dict[str, str]:
    """The auths in hex, by the officer's key alone."""
    text = run(
        *("openssl", "cms", "-decrypt", "-inform", "DER", "-in", unit / "escrow.p7m"),
        *("-inkey", out / "officer/officer.key", "-recip", out / "officer/officer.pem"),
    )
    auths: dict[str, str] = json.loads(text)["auths"]
    return auths


def test_the_officer_opens_the_escrow_to_the_auths_that_are_set(out: Path, tmp_path: Path) -> None:
    for folder in (out, out / "killed"):
        for number, unit in enumerate(units(folder)):
            named = set(json.loads((unit / "unit.json").read_text())["ownership"]["auths"])
            auths = opened(folder, unit)
            assert set(auths) == named
            place = tmp_path / f"{folder.name}{number}"
            place.mkdir()
            with tpm_of(unit, place) as tpm:
                state = tpm("tpm2_getcap", "properties-variable").replace(" ", "")
                for hierarchy in ("owner", "endorsement", "lockout"):
                    assert f"{hierarchy}AuthSet:{int(hierarchy in named)}" in state
                if "owner" in auths:
                    tpm("tpm2_changeauth", "-c", "owner", "-p", f"hex:{auths['owner']}", "hex:00ff")
                tpm("tpm2_changeauth", "-c", "lockout", "-p", f"hex:{auths['lockout']}", "hex:00ff")


def test_a_tpm_enrollment_sets_lockout_only_and_an_x509_one_owner_and_lockout(out: Path) -> None:
    assert set(opened(out, unit_of(out, "tpm"))) == {"lockout"}
    assert set(opened(out, unit_of(out, "x509"))) == {"owner", "lockout"}


def test_enrollments_carry_the_ek_or_the_leaf(out: Path) -> None:
    by_tpm, by_certificate = unit_of(out, "tpm"), unit_of(out, "x509")
    key = enrollment(by_tpm)["attestation"]["tpm"]["endorsementKey"]
    assert base64.b64decode(key, validate=True) == (by_tpm / "ek.pub").read_bytes()
    leaf = enrollment(by_certificate)["attestation"]["x509"]["clientCertificates"]["primary"]["certificate"]
    assert leaf.strip() == (by_certificate / "device.pem").read_text().strip()


def test_a_field_device_proves_the_identity_that_was_enrolled(out: Path, tmp_path: Path) -> None:
    """The DPS TPM challenge, as field clients do it: empty owner and endorsement auth, identity key at 0x81000100."""
    unit = unit_of(out, "tpm")
    cloud = subprocess.Popen(
        [sys.executable, "-m", "drivers.emulated.dps", "--id-scope", ID_SCOPE],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert cloud.stdout is not None
        endpoint = json.loads(cloud.stdout.readline())["endpoint"]
        request = urllib.request.Request(
            f"{endpoint}/enrollments/{unit.name}?api-version=2021-10-01",
            data=(unit / "enrollment.json").read_bytes(),
            headers={"Content-Type": "application/json"},
            method="PUT",
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 200
        with tpm_of(unit, tmp_path) as tpm:
            found = run(
                *(sys.executable, "-m", "drivers.emulated.dps.device", "--tcti", tpm.tcti),
                *("--endpoint", endpoint, "--id-scope", ID_SCOPE),
                PYTHONPATH=str(ROOT),
            )
            assert json.loads(found)["registrationId"] == unit.name
            tpm("tpm2_readpublic", "-c", IDENTITY)
    finally:
        cloud.terminate()
        cloud.wait()
        cloud.communicate()
