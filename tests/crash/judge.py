"""Judges a unit from outside: TPM, ledger, database and cloud. Shares no code with the station: sqlite3,
tpm2-tools, openssl.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivers.emulated.bench.process import wait_for
from tests.crash import trail

WRAP_KEY = "resume"
"""`wrap_key` of [signer]: labels of keys for one work order or day go on with a hyphen."""
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
    token_keys: Sequence[str]
    """Labels of the token's secret keys."""
    folders: tuple[Path, ...]
    """Folders and files in which no secret may be."""
    secrets: Mapping[str, bytes]
    """Secrets of the station by name; the unit's own come from escrow."""


def judge(evidence: Evidence) -> None:
    """Raises Verdict when anything about the unit is not as it has to be."""
    name = evidence.registration_id
    mark = evidence.ledger.with_name("pin-attempt")
    _require(not mark.exists(), "the mark of an attempt at the token's PIN is left")
    certificate = _certificate(evidence)
    enrolled = [item for item in evidence.cloud if item["registrationId"] == name]
    _require(len(enrolled) == 1, f"{len(enrolled)} enrollments in the cloud")
    same = [item for item in evidence.cloud if item["attestation"] == enrolled[0]["attestation"]]
    _require(len(same) == 1, f"{len(same)} enrollments in the cloud with this unit's key")
    _books(evidence, _openssl("x509", "-in", certificate, "-noout", "-pubkey"))
    trail.check(evidence.database, evidence.ledger, _require)
    _wrap_keys(evidence)
    auths = auths_in(evidence)
    _in_clear(evidence, auths)
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
    _require(found[0] is not None, "the certificate in the ledger was never signed")
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


def _books(evidence: Evidence, key: str) -> None:
    """Nobody else has the unit's key or name, in ledger or database. `key`: PEM, SubjectPublicKeyInfo."""
    name = evidence.registration_id
    print_ = hashlib.sha256(base64.b64decode("".join(key.split("\n")[1:-2]))).digest()
    same = _ask(evidence.ledger, "SELECT registration_id FROM certificates WHERE spki_sha256 = ?", print_)
    _require(same == [(name,)], f"the ledger has the unit's key {len(same)} times, or for another")
    twice = _ask(
        evidence.ledger,
        "SELECT unit FROM certificates GROUP BY unit HAVING count(*) > 1"
        " UNION ALL SELECT hex(spki_sha256) FROM certificates GROUP BY spki_sha256 HAVING count(*) > 1"
        " UNION ALL SELECT hex(serial) FROM certificates GROUP BY serial HAVING count(*) > 1",
    )
    _require(not twice, f"the ledger has a unit, key or serial number twice: {twice[:3]}")
    seen = _ask(
        evidence.database,
        "SELECT registration_id FROM keys_seen JOIN units USING (unit) WHERE key = ?",
        print_,
    )
    _require(seen == [(name,)], "the station did not note the unit's key as the unit's")
    closed = _ask(
        evidence.database,
        "SELECT sum(state = 'acknowledged'), sum(state = 'queued') FROM outbox JOIN units USING (unit)"
        " WHERE registration_id = ? AND kind = 'enrollment'",
        name,
    )
    _require(closed == [(1, 0)], f"the unit's enrollments acknowledged and queued: {closed}")
    told = _ask(
        evidence.database,
        "SELECT count(*) FROM audit JOIN units USING (unit) WHERE registration_id = ? AND kind = 'visit-closed'"
        " AND json_extract(fields, '$.outcome') = 'PASS'",
        name,
    )
    _require(told[0][0] > 0, "the audit trail tells of no PASS")


def _wrap_keys(evidence: Evidence) -> None:
    """The token has the keys that wrap copies, and none that is spent."""
    rows = _ask(evidence.database, "SELECT key FROM wrap_keys WHERE retired IS NULL")
    needed = {f"{WRAP_KEY}-{key}" for (key,) in rows}
    held = {label for label in evidence.token_keys if label.startswith(f"{WRAP_KEY}-")}
    _require(held <= needed, f"the token still has spent keys: {sorted(held - needed)}")
    used = _ask(evidence.database, "SELECT DISTINCT key FROM resume_keys")
    gone = {f"{WRAP_KEY}-{key}" for (key,) in used} - held
    _require(not gone, f"copies are wrapped under keys that the token has not got: {sorted(gone)}")


def _in_clear(evidence: Evidence, auths: Mapping[str, str]) -> None:
    """No file of the station holds a secret, as octets, in hexadecimal or in base64."""
    secrets = dict(evidence.secrets)
    for name, value in auths.items():
        octets = bytes.fromhex(value)
        secrets[f"{name} auth"] = octets
        secrets[f"{name} auth in hexadecimal"] = value.lower().encode()
        secrets[f"{name} auth in base64"] = base64.b64encode(octets).rstrip(b"=")
    for folder in evidence.folders:
        for path in [folder] if folder.is_file() else folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                found = [
                    name for name, secret in secrets.items() if secret in content or secret in content.lower()
                ]
                _require(not found, f"{path.name} holds in clear: {', '.join(found)}")


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


def _ask(path: Path, query: str, *given: object) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return db.execute(query, given).fetchall()


def _openssl(*words: object) -> str:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    _require(done.returncode == 0, f"openssl {words[0]}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise Verdict(problem)
