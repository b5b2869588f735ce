"""The crash campaign's judge can say no: a good unit's evidence, falsified in one place at a time."""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivers.emulated.bench.process import run
from tests.crash import trail
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


def second_name_in_the_cloud(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    same = next(item for item in evidence.cloud if item["registrationId"] == evidence.registration_id)
    return dataclasses.replace(evidence, cloud=[*evidence.cloud, {**same, "registrationId": "another"}])


def unsigned_intent(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    change(
        evidence.ledger,
        "UPDATE certificates SET certificate = NULL WHERE registration_id = ?",
        evidence.registration_id,
    )
    return evidence


def key_of_nobody(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    change(evidence.database, "DROP TRIGGER keys_seen_keep_rows")
    change(evidence.database, "DELETE FROM keys_seen")
    return evidence


def queued_again(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    change(
        evidence.database,
        "INSERT INTO outbox (kind, unit, sink, digest, content, queued)"
        " SELECT kind, unit, sink, digest, content, queued FROM outbox JOIN units USING (unit)"
        " WHERE kind = 'enrollment' AND registration_id = ?",
        evidence.registration_id,
    )
    return evidence


def changed_record(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    change(evidence.database, "DROP TRIGGER audit_keep_content")
    change(evidence.database, "UPDATE audit SET at = at + 1 WHERE seq = 3")
    return evidence


def changed_record_with_its_leaf(evidence: Evidence, folder: Path) -> Evidence:
    """Whoever changes a record makes its leaf anew; what was signed tells."""
    del folder
    change(evidence.database, "DROP TRIGGER audit_keep_content")
    with sqlite3.connect(evidence.database) as database:
        row = list(database.execute(f"SELECT {', '.join(trail.NAMES)} FROM audit WHERE seq = 3").fetchone())
        row[1] += 1
        leaf = hashlib.sha256(b"\0" + trail.canonical(row)).digest()
        database.execute("UPDATE audit SET at = at + 1, leaf = ? WHERE seq = 3", (leaf,))
    return evidence


def missing_record(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    change(evidence.database, "DROP TRIGGER audit_keep_rows")
    change(evidence.database, "DELETE FROM audit WHERE seq = 3")
    return evidence


def forgotten_checkpoint(evidence: Evidence, folder: Path) -> Evidence:
    """The signer's ledger is an older copy."""
    del folder
    change(evidence.ledger, "DROP TRIGGER trails_only_grow")
    with sqlite3.connect(evidence.database) as database:
        leaf = database.execute("SELECT leaf FROM audit WHERE seq = 1").fetchone()[0]
    change(evidence.ledger, "UPDATE trails SET size = 1, root = ?", leaf)
    return evidence


def forged_note(evidence: Evidence, folder: Path) -> Evidence:
    """Signed by a key that is not the one that is told."""
    del folder
    change(evidence.database, "DROP TRIGGER audit_checkpoints_keep_content")
    certificate = subprocess.run(
        ["openssl", "x509", "-in", evidence.officer_certificate, "-noout", "-pubkey"],
        capture_output=True,
        check=True,
    ).stdout
    key = base64.b64decode(b"".join(certificate.splitlines()[1:-1]))
    change(evidence.database, "UPDATE audit_checkpoints SET key = ?", key)
    return evidence


def spent_key_in_the_token(evidence: Evidence, folder: Path) -> Evidence:
    del folder
    return dataclasses.replace(evidence, token_keys=[*evidence.token_keys, "resume-order-SPENT.1"])


def auth_in_a_log(evidence: Evidence, folder: Path) -> Evidence:
    log = folder / "run.log"
    log.write_text(f"owner auth set to {owner_auth(evidence).upper()}")
    return dataclasses.replace(evidence, folders=(*evidence.folders, log))


def pin_in_a_file(evidence: Evidence, folder: Path) -> Evidence:
    (folder / "kept").mkdir()
    (folder / "kept/state").write_bytes(b"\x00" + evidence.secrets["ca-pin"] + b"\x00")
    return dataclasses.replace(evidence, folders=(*evidence.folders, folder / "kept"))


def change(path: Path, query: str, *given: object) -> None:
    with sqlite3.connect(path) as database:
        database.execute(query, given)


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
        (second_name_in_the_cloud, "2 enrollments in the cloud with this unit's key"),
        (unsigned_intent, "was never signed"),
        (key_of_nobody, "did not note the unit's key"),
        (queued_again, "acknowledged and queued"),
        (changed_record, "records .3. are not what their leaves say"),
        (changed_record_with_its_leaf, "checkpoint is not over the trail's records|kept hashes"),
        (missing_record, "has a gap"),
        (forgotten_checkpoint, "forgotten what it signed"),
        (forged_note, "openssl refuses the audit checkpoint"),
        (spent_key_in_the_token, "still has spent keys"),
        (auth_in_a_log, "run.log holds in clear: owner auth in hexadecimal"),
        (pin_in_a_file, "state holds in clear: ca-pin"),
    ],
)
def test_evidence_that_is_wrong_in_one_place_does_not(
    evidence: Evidence, tmp_path: Path, falsify: Callable[[Evidence, Path], Evidence], problem: str
) -> None:
    with pytest.raises(Verdict, match=problem):
        judge(falsify(evidence, tmp_path))
