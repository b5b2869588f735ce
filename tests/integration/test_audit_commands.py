"""`hallmark audit export | verify | prove | checkpoint | head | key` on a real signer; and the same by plain tools.

The plain-tools judge below uses openssl, the specifications' words and Python's standard library, and nothing of ours.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from station import cli
from station.store import Store
from tests import store_parts as parts
from tests.fixtures_signer import BenchCa
from tests.unit.test_audit_tree import plain_root


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Office:
    """A station's store and signer, and an auditor's folder that shares nothing with them."""

    def __init__(self, ca: BenchCa, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.ca, self.folder, self._capture = ca, folder, capture
        ca.paths.state.mkdir(parents=True, exist_ok=True)

    def made(self, board: int) -> str:
        with Store.open(self.ca.paths.database, ballast=4096) as store:
            return parts.trip(store, board).unit

    def station(self, *words: str) -> Done:
        return self._hallmark(self.ca.root, *words)

    def at_the_station(self, *words: str) -> str:
        done = self.station(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def at_the_auditor(self, *words: str) -> Done:
        return self._hallmark(self.folder / "nothing-here", *words)

    def _hallmark(self, root: Path, *words: str) -> Done:
        self._capture.readouterr()
        code = cli.main(["--root", str(root), "audit", *words])
        said = self._capture.readouterr()
        return Done(code, said.out, said.err)

    def file(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture
def office(signer: BenchCa, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Office:
    return Office(signer, tmp_path, capsys)


def test_an_auditor_needs_the_export_and_the_key_or_a_root_and_nothing_else(office: Office) -> None:
    office.made(1)
    first = office.at_the_station("checkpoint")
    Path(office.file("kept.txt")).write_text(first)
    office.made(2)
    office.at_the_station("checkpoint")
    office.at_the_station("export", office.file("trail.jsonl"))
    office.at_the_station("key", "--out", office.file("key.pem"))
    export, key = office.file("trail.jsonl"), office.file("key.pem")

    done = office.at_the_auditor("verify", export, "--key", key, "--old", office.file("kept.txt"))
    assert done.returncode == 0, done.stderr
    assert "Holds: records 1 to " in done.stdout
    verdict = json.loads(office.at_the_auditor("verify", export, "--key", key, "--json").stdout)
    root = base64.b64decode(verdict["root"]).hex()
    size = str(verdict["last"])
    assert office.at_the_auditor("verify", export, "--root-hash", root, "--size", size).returncode == 0
    assert office.at_the_auditor("verify", export, "--root-hash", root[::-1], "--size", size).returncode == 1

    nothing = office.at_the_auditor("verify", export)
    assert nothing.returncode == 2
    assert "say what you trust" in nothing.stderr
    lines = Path(export).read_text().splitlines(keepends=True)
    Path(export).write_text("".join(line.replace("PASS", "FAIL") for line in lines))
    changed = office.at_the_auditor("verify", export, "--key", key)
    assert changed.returncode == 1
    assert "AuditBroken: record " in changed.stderr
    assert "was changed" in changed.stderr


def test_a_rolled_back_station_is_found_with_a_checkpoint_that_was_kept_elsewhere(office: Office) -> None:
    office.made(1)
    office.at_the_station("checkpoint")
    office.at_the_station("export", office.file("before.jsonl"))
    office.made(2)
    Path(office.file("kept.txt")).write_text(office.at_the_station("checkpoint"))
    assert office.at_the_station("head") == Path(office.file("kept.txt")).read_text()
    office.at_the_station("key", "--out", office.file("key.pem"))
    words = ("verify", office.file("before.jsonl"), "--key", office.file("key.pem"))
    assert office.at_the_auditor(*words).returncode == 0, "by itself it was good once"
    back = office.at_the_auditor(*words, "--old", office.file("kept.txt"))
    assert back.returncode == 1
    assert "cut or rolled back" in back.stderr


def test_a_units_proof_holds_elsewhere_and_a_changed_one_does_not(office: Office) -> None:
    unit = office.made(1)
    office.made(2)
    office.at_the_station("checkpoint")
    office.at_the_station("prove", unit, "--out", office.file("proof.json"))
    office.at_the_station("key", "--out", office.file("key.pem"))
    words = ("verify-proof", office.file("proof.json"), "--key", office.file("key.pem"))
    done = office.at_the_auditor(*words)
    assert done.returncode == 0, done.stderr
    assert "visit-opened" in done.stdout
    assert "visit-closed" in done.stdout
    path = Path(office.file("proof.json"))
    path.write_text(path.read_text().replace("PASS", "FAIL"))
    assert "is not in the trail" in office.at_the_auditor(*words).stderr


def test_plain_tools_come_to_the_same_verdict(office: Office) -> None:
    """docs/audit.md's recipe: SHA-256, base64 and openssl."""
    office.made(1)
    office.at_the_station("checkpoint")
    office.made(2)
    office.at_the_station("checkpoint")
    office.at_the_station("export", office.file("trail.jsonl"))
    office.at_the_station("key", "--out", office.file("key.pem"))
    lines = Path(office.file("trail.jsonl")).read_bytes().splitlines()
    records: list[bytes] = []
    checkpoints = 0
    for line in lines:
        found: dict[str, Any] = json.loads(line)
        if "record" in found:
            octets = line[len('{"leaf":"","record":') + 64 : -1]
            assert hashlib.sha256(b"\0" + octets).hexdigest() == found["leaf"]
            assert json.loads(octets)["seq"] == len(records) + 1
            records.append(octets)
        elif "checkpoint" in found:
            checkpoints += 1
            text, _, line_of_key = found["checkpoint"].rpartition("\n\n")
            _, size, root = text.split("\n")
            assert int(size) == len(records)
            assert base64.b64decode(root) == plain_root(records)
            Path(office.file("text")).write_text(text + "\n")
            Path(office.file("sig")).write_bytes(base64.b64decode(line_of_key.split(" ")[2])[4:])
            command = ["openssl", "dgst", "-sha256", "-verify", "key.pem", "-signature", "sig", "text"]
            done = subprocess.run(command, cwd=office.folder, capture_output=True, check=False)
            assert done.stdout == b"Verified OK\n"
    assert checkpoints == 2
    assert json.loads(lines[-1])["end"] == {"records": len(records), "checkpoints": 2}


def test_the_shell_commands_of_the_auditors_page_work_as_they_stand_there(office: Office) -> None:
    office.made(1)
    office.at_the_station("checkpoint")
    office.at_the_station("export", office.file("trail.jsonl"))
    office.at_the_station("key", "--out", office.file("line-1.pem"))
    page = (Path(__file__).resolve().parents[2] / "docs/audit.md").read_text()
    part = page[page.index("## Checking it without our command") : page.index("## A unit's whole file")]
    commands = "\n".join(line[4:] for line in part.splitlines() if line.startswith("    "))
    assert "openssl" in commands
    done = subprocess.run(
        ["sh", "-eu", "-c", commands], cwd=office.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    leaf = json.loads(Path(office.file("trail.jsonl")).read_text().splitlines()[1])["leaf"]
    assert done.stdout == f"{leaf}  -\nVerified OK\n"


def test_what_is_not_there_yet_is_told_with_what_to_do(office: Office) -> None:
    assert office.station("head").returncode == 3
    unit = office.made(1)
    for words in (("head",), ("key",), ("prove", unit)):
        done = office.station(*words)
        assert done.returncode == 1
        assert "hallmark audit checkpoint" in done.stderr
    export = office.station("export", "-")
    assert "No checkpoint was signed yet" in export.stderr
    assert len(export.stdout.splitlines()) > 3
    office.at_the_station("checkpoint")
    done = office.station("prove", "no-such-unit")
    assert (done.returncode, "there is no unit" in done.stderr) == (1, True)


def test_files_that_are_no_keys_checkpoints_or_exports_are_named(office: Office) -> None:
    Path(office.file("x")).write_text("nonsense\n")
    x = office.file("x")
    for words, code in (
        (("verify", x, "--key", x), 2),
        (("verify", x, "--old", x), 1),
        (("verify", x, "--root-hash", "00" * 32, "--size", "1"), 1),
        (("verify", x, "--root-hash", "00", "--size", "1"), 2),
        (("verify", x, "--size", "1"), 2),
        (("verify", office.file("none"), "--root-hash", "00" * 32, "--size", "1"), 2),
        (("verify-proof", x, "--root-hash", "00" * 32, "--size", "1"), 1),
    ):
        done = office.at_the_auditor(*words)
        assert done.returncode == code, (words, done.stderr)
        assert "What to do:" in done.stderr
        assert "Traceback" not in done.stderr
