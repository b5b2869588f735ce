"""Certificates without an end, requests and revocation lists before strict judges: pkilint and openssl."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from asn1crypto.core import Sequence
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from hal.call import Call
from station import messages
from station.signer import ledger
from station.signer.alternative import HARDWARE_MODULE_NAME
from tests.integration.test_signer_lint import SKI_AS_RFC_5280, lint, lint_pair
from tests.openssl_root import openssl
from tests.unit.test_signer_generations import Station

FOREVER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
PEM = serialization.Encoding.PEM


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    """One whose CAs have no end."""
    with ledger.opened(tmp_path / "state") as book:
        made = Station(tmp_path / "state", book)
        made.root_certificate = made.root.signs(made.root, end=FOREVER)
        made.install(made.certify(made.request().csr, end=FOREVER))
        yield made


def test_an_idevid_without_an_end_is_as_802_1ar_and_rfc_4108_have_it(
    station: Station, tmp_path: Path
) -> None:
    leaf, above = station.issue_chain("u1", "idevid-forever-p256")
    files = {"leaf": leaf, "above": above, "root": station.root_certificate}
    for name, certificate in files.items():
        (tmp_path / f"{name}.pem").write_bytes(certificate.public_bytes(PEM))
    assert lint(tmp_path / "leaf.pem") == [SKI_AS_RFC_5280]
    assert lint_pair(tmp_path / "above.pem", tmp_path / "leaf.pem") == []
    shown = openssl("x509", "-in", str(tmp_path / "leaf.pem"), "-noout", "-text").stdout
    for wanted in (
        "Not After : Dec 31 23:59:59 9999 GMT",
        "Subject: O = Example Devices, serialNumber = dev-u1, CN = dev-u1",
        "Digital Signature",
        "CA:FALSE",
    ):
        assert wanted in shown
    assert "Extended Key Usage" not in shown
    (name,) = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert isinstance(name, x509.OtherName)
    assert name.type_id == HARDWARE_MODULE_NAME
    kind, serial = Sequence.load(name.value, strict=True).native.values()
    assert (kind, serial) == ("1.3.6.1.4.1.99999.1", b"dev-u1")
    # What has no end is good now, and in five hundred years.
    for moment in (station.clocks.now + dt.timedelta(minutes=1), FOREVER.replace(year=2500)):
        openssl(
            *("verify", "-purpose", "sslclient", "-attime", str(int(moment.timestamp()))),
            *("-CAfile", str(tmp_path / "root.pem"), "-untrusted", str(tmp_path / "above.pem")),
            str(tmp_path / "leaf.pem"),
        )


def test_the_linter_finds_nothing_in_a_revocation_list(station: Station, tmp_path: Path) -> None:
    for number, reason in enumerate(("key-compromise", "unspecified", "cessation-of-operation")):
        station.issue(f"r{number}")
        asked = messages.Revoke(f"r{number}", reason, "")  # type: ignore[arg-type] # one of the literals
        station.administration.answer(Call(), asked, "tester")
    made = station.administration.answer(Call(), messages.MakeCrl(None), "tester")
    assert isinstance(made, messages.RevocationList)
    file = tmp_path / "list.crl"
    file.write_bytes(made.crl)
    command = [sys.executable, "-m", "pkilint.bin.lint_crl", "lint", "-t", "CRL", "-p", "PKIX", "-f", "JSON"]
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"] == []
