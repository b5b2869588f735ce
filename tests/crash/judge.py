"""Judges a unit from outside: TPM, ledger, database and cloud. Shares no code with the station: sqlite3,
tpm2-tools, openssl.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivers.emulated.bench.process import wait_for

EK, SRK, KEY = "0x81010001", "0x81000001", "0x81020000"
AUTHS = {"gw-200": {"lockout"}, "gw-300": {"owner", "lockout"}}


Tool = Callable[..., str]
"""The words of a command of tpm2-tools to what it prints."""


class Verdict(Exception):
    """What is wrong with the unit."""


@dataclass(frozen=True)
class Evidence:
    """Where to look. `tpm` is the state folder of a board that is off."""

    sku: str
    registration_id: str
    tpm: Path
    ledger: Path
    database: Path
    officer_key: Path
    officer_certificate: Path
    root: Path
    intermediate: Path
    cloud: list[dict[str, Any]]


def judge(evidence: Evidence) -> None:
    """Raises Verdict when anything about the unit is not as it has to be."""
    name = evidence.registration_id
    mark = evidence.ledger.with_name("pin-attempt")
    _require(not mark.exists(), "the mark of an attempt at the token's PIN is left")
    certificate = _certificate(evidence)
    enrolled = [item for item in evidence.cloud if item["registrationId"] == name]
    _require(len(enrolled) == 1, f"{len(enrolled)} enrollments in the cloud")
    auths = auths_in(evidence)
    _require(set(auths) == AUTHS[evidence.sku], f"escrow names {sorted(auths)}")
    with tempfile.TemporaryDirectory(prefix="judge-") as folder, software_tpm(evidence.tpm) as tpm:
        tpm("tpm2_readpublic", "-c", EK, "-f", "tss", "-o", f"{folder}/ek.pub")
        ek = Path(folder, "ek.pub").read_bytes()
        tpm("tpm2_readpublic", "-c", SRK)
        tpm("tpm2_readpublic", "-c", KEY, "-f", "pem", "-o", f"{folder}/key.pem")
        _require(
            _openssl("x509", "-in", certificate, "-noout", "-pubkey") == Path(folder, "key.pem").read_text(),
            "the certificate is for another key than the TPM's",
        )
        attestation = enrolled[0]["attestation"]
        if evidence.sku == "gw-200":
            _require(
                base64.b64decode(attestation["tpm"]["endorsementKey"]) == ek,
                "the cloud has another endorsement key",
            )
        state = tpm("tpm2_getcap", "properties-variable")
        for hierarchy in ("owner", "endorsement", "lockout"):
            is_set = f"{hierarchy}AuthSet:1" in state.replace(" ", "")
            _require(is_set == (hierarchy in auths), f"{hierarchy} auth is {'set' if is_set else 'not set'}")
        if "owner" in auths:
            tpm("tpm2_changeauth", "-c", "owner", "-p", f"hex:{auths['owner']}", f"hex:{auths['owner']}")
        tpm("tpm2_dictionarylockout", "--clear-lockout", "--auth", f"hex:{auths['lockout']}")


def _certificate(evidence: Evidence) -> Path:
    """The unit's one certificate, the same in ledger and database, good up to the root."""
    with sqlite3.connect(f"file:{evidence.ledger}?mode=ro", uri=True) as ledger:
        found = _blobs(ledger, evidence.registration_id)
    with sqlite3.connect(f"file:{evidence.database}?mode=ro", uri=True) as database:
        kept = database.execute(
            "SELECT chain FROM certificates JOIN units USING (unit) WHERE registration_id = ?",
            (evidence.registration_id,),
        ).fetchall()
    _require(len(found) == 1, f"{len(found)} certificates in the ledger")
    _require(len(kept) == 1, f"{len(kept)} certificates in the database")
    _require(found[0] in kept[0][0], "ledger and database have different certificates")
    path = evidence.tpm.parent / "judged.pem"
    pem = subprocess.run(
        ["openssl", "x509", "-inform", "DER"], input=found[0], capture_output=True, check=True
    ).stdout
    path.write_bytes(pem)
    _openssl("verify", "-x509_strict", "-CAfile", evidence.root, "-untrusted", evidence.intermediate, path)
    subject = _openssl("x509", "-in", path, "-noout", "-subject", "-nameopt", "multiline")
    _require(f"= {evidence.registration_id}\n" in subject, "the certificate's CN is not the registration ID")
    return path


def _blobs(ledger: sqlite3.Connection, registration_id: str) -> list[bytes]:
    rows = ledger.execute(
        "SELECT certificate FROM certificates WHERE registration_id = ?", (registration_id,)
    )
    return [row[0] for row in rows]


def auths_in(evidence: Evidence) -> dict[str, str]:
    """The last generation, opened with the officer's key; and no copy for resuming is left."""
    with sqlite3.connect(f"file:{evidence.database}?mode=ro", uri=True) as database:
        rows = database.execute(
            "SELECT escrows.sealed FROM escrows JOIN units USING (unit)"
            " WHERE registration_id = ? ORDER BY generation DESC",
            (evidence.registration_id,),
        ).fetchall()
        left = database.execute(
            "SELECT count(*) FROM resume_copies JOIN escrows USING (ek_name, generation) JOIN units USING (unit)"
            " WHERE registration_id = ?",
            (evidence.registration_id,),
        ).fetchone()[0]
    _require(bool(rows), "nothing in escrow")
    _require(left == 0, "a copy of the secrets for resuming is left")
    opened = subprocess.run(
        [
            *("openssl", "cms", "-decrypt", "-inform", "DER", "-inkey", str(evidence.officer_key)),
            *("-recip", str(evidence.officer_certificate)),
        ],
        input=rows[0][0],
        capture_output=True,
        check=False,
    )
    _require(opened.returncode == 0, f"the officer can't open the escrow: {opened.stderr.decode()[-200:]}")
    auths: dict[str, str] = json.loads(opened.stdout)["auths"]
    return auths


@contextmanager
def software_tpm(state: Path) -> Iterator[Tool]:
    """A software TPM on the state of a board that is off; the result runs one of tpm2-tools on it."""
    with tempfile.TemporaryDirectory(prefix="judge-") as folder:
        path = Path(folder, "tpm.sock")
        process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--flags", "startup-clear"),
                *("--server", f"type=unixio,path={path}", "--ctrl", f"type=unixio,path={path}.ctrl"),
            ],
            stderr=subprocess.DEVNULL,
        )
        environment = {**os.environ, "TPM2TOOLS_TCTI": f"swtpm:path={path}"}

        def tool(*words: str) -> str:
            done = subprocess.run(list(words), env=environment, capture_output=True, text=True, check=False)
            _require(done.returncode == 0, f"{' '.join(words[:3])}: {done.stderr.strip()[-300:]}")
            return done.stdout

        try:
            # Both sockets are there a moment before anybody listens on them.
            for listening in (path, Path(f"{path}.ctrl")):
                wait_for("the judge's software TPM", 10.0, functools.partial(_answers, listening))
            yield tool
        finally:
            process.kill()
            process.wait()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        return connection.connect_ex(str(path)) == 0


def _openssl(*words: object) -> str:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    _require(done.returncode == 0, f"openssl {words[0]}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise Verdict(problem)
