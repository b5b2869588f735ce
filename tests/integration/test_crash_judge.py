"""The crash campaign's judge can say no: a good unit's evidence, falsified in one place at a time."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivers.emulated.bench.process import run
from tests.crash.campaign import RECIPES, Campaign
from tests.crash.judge import Evidence, Verdict, auths_in, judge, software_tpm


@pytest.fixture(scope="module")
def good(campaign: Campaign) -> Evidence:
    """What one gw-300 left behind: owner and lockout auth set, a key and an SRK in its TPM, in the cloud once."""
    return campaign.passed(RECIPES[1])


@pytest.fixture
def evidence(good: Evidence, tmp_path: Path) -> Evidence:
    """A copy to be falsified."""
    kept: dict[str, Any] = {"cloud": copy.deepcopy(good.cloud)}
    shutil.copytree(good.tpm, tmp_path / "board/tpm")
    kept["tpm"] = tmp_path / "board/tpm"
    for name in ("ledger", "database"):
        kept[name] = tmp_path / f"{name}.db"
        with sqlite3.connect(getattr(good, name)) as before, sqlite3.connect(kept[name]) as after:
            before.backup(after)
    return dataclasses.replace(good, **kept)


def owner_auth(evidence: Evidence) -> str:
    return auths_in(evidence)["owner"]


def other_officer(evidence: Evidence, folder: Path) -> Evidence:
    """Another key than the one that the escrow was sealed to."""
    key, certificate = folder / "other.key", folder / "other.pem"
    run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", "/CN=other", "-keyout", str(key), "-out", str(certificate)),
        ]
    )
    return dataclasses.replace(evidence, officer_key=key, officer_certificate=certificate)


def second_enrollment(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    same = next(item for item in evidence.cloud if item["registrationId"] == evidence.registration_id)
    return dataclasses.replace(evidence, cloud=[*evidence.cloud, same])


def no_enrollment(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    return dataclasses.replace(evidence, cloud=[])


def missing_srk(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    with software_tpm(evidence.tpm) as tool:
        tool("tpm2_evictcontrol", "-C", "o", "-P", f"hex:{owner_auth(evidence)}", "-c", "0x81000001")
        tool("tpm2_shutdown", "--clear")
    return evidence


def other_owner_auth(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    with software_tpm(evidence.tpm) as tool:
        tool("tpm2_changeauth", "-c", "owner", "-p", f"hex:{owner_auth(evidence)}", "hex:00112233")
        tool("tpm2_shutdown", "--clear")
    return evidence


def left_resume_copy(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    with sqlite3.connect(evidence.database) as database:
        database.execute(
            "INSERT INTO resume_copies SELECT ek_name, generation, x'00' FROM escrows JOIN units USING (unit)"
            " WHERE registration_id = ?",
            (evidence.registration_id,),
        )
    return evidence


def second_certificate(evidence: Evidence, folder: Path) -> Evidence:
    """The ledger's own constraints would refuse it."""
    del folder
    with sqlite3.connect(evidence.ledger) as ledger:
        ledger.executescript(
            "CREATE TABLE twice AS SELECT * FROM certificates UNION ALL SELECT * FROM certificates;"
            "ALTER TABLE certificates RENAME TO once; ALTER TABLE twice RENAME TO certificates;"
        )
    return evidence


def left_pin_mark(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    evidence.ledger.with_name("pin-attempt").touch()
    return evidence


def test_a_good_units_evidence_convinces(evidence: Evidence) -> None:
    judge(evidence)


@pytest.mark.parametrize(
    ("falsify", "problem"),
    [
        (other_officer, "the officer can't open the escrow"),
        (second_enrollment, "2 enrollments in the cloud"),
        (no_enrollment, "0 enrollments in the cloud"),
        (missing_srk, "tpm2_readpublic -c 0x81000001"),
        (other_owner_auth, "tpm2_changeauth -c owner"),
        (left_resume_copy, "a copy of the secrets for resuming is left"),
        (second_certificate, "2 certificates in the ledger"),
        (left_pin_mark, "PIN is left"),
    ],
)
def test_evidence_that_is_wrong_in_one_place_does_not(
    evidence: Evidence, tmp_path: Path, falsify: Callable[[Evidence, Path], Evidence], problem: str
) -> None:
    with pytest.raises(Verdict, match=problem):
        judge(falsify(evidence, tmp_path))
