"""Rows 14, 16 and 19: EK first and ownership later, in any pass; goods that come in; software TPMs. On a real line."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hal.errors import SoftwareTpmRefused
from station.recipe import PlannedStep
from station.steps import tpm_identity
from tests.fixtures_line import Bench, bench_line
from tests.fixtures_tpm import Recorder, lasting
from tests.runner_parts import Stage

HEAD = """
sku = "gw-200"
pass = "{name}"
{after}
drivers = {{ link = "smp-serial", tpm = "tcti-tunnel" }}

[settings.channel]
baud = 921600
"""
FLASH = '[[step]]\nuse = "flash"\nimage = "gw-200-1.4.2.bin"\nwithin = 3\n'
KNOWN = '[[step]]\nuse = "tpm-identity"\nknown = true\n'
IDENTITY = '[[step]]\nuse = "tpm-identity"\nek_certificate = "required"\n'
OWNERSHIP = '[[step]]\nuse = "tpm-ownership"\n'
FINISH = '[[step]]\nuse = "final-check"\n[[step]]\nuse = "enroll"\nattestation = "tpm"\n'
CERTIFICATE = """
[[step]]
use = "certificate"
profile = "idevid-tpm-p256"
template = "tcg-idevid"
iak = true
install = ["link", "tpm"]
"""


def recipe(name: str, *steps: str, after: str = "") -> str:
    said = f'after = "{after}"' if after else ""
    return HEAD.format(name=name, after=said) + "\n".join(steps)


def add(bench: Bench, nest: str, text: str) -> None:
    """The nest's recipe is this one."""
    (bench.layout.etc / f"recipes/{nest}.toml").write_text(text)
    place = f'place = "{bench._plans[nest].port}"\nrecipe = '
    bench.edit(f'{place}"gw-200.toml"', f'{place}"{nest}.toml"')


def prepare(bench: Bench) -> None:
    """`in` only extracts the EK, `own` takes ownership, `end` does the rest: three nests, three passes."""
    (bench.layout.etc / "recipes/gw-200-incoming.toml").unlink(missing_ok=True)
    (bench.layout.etc / "recipes/gw-200.toml").unlink()
    add(bench, "in", recipe("incoming", FLASH, IDENTITY))
    add(bench, "own", recipe("owned", FLASH, KNOWN, OWNERSHIP, after="incoming"))
    add(bench, "end", recipe("final", KNOWN, CERTIFICATE, FINISH, after="owned"))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    yield from bench_line({"in": "gw-200.toml", "own": "gw-200.toml", "end": "gw-200.toml"}, prepare)


class Mover:
    """One board, moved from nest to nest: its TPM and flash go with it."""

    def __init__(self, bench: Bench, label: str) -> None:
        self.bench, self.label = bench, label

    def visit(self, nest: str) -> dict[str, Any]:
        board = self.bench.board(nest, self.label)
        try:
            return self.bench.visit(board)
        finally:
            self.bench.unplug(board)

    def passed(self, nest: str) -> dict[str, Any]:
        seen = self.visit(nest)
        assert seen["outcome"] == "PASS", json.dumps(seen)
        return seen


def record(bench: Bench, unit: str) -> dict[str, Any]:
    return dict(json.loads(bench.hallmark("units", "show", unit, "--json")))


def test_row_14_ek_and_ownership_are_taken_in_separate_passes_in_the_order_of_the_recipes(
    bench: Bench,
) -> None:
    board = Mover(bench, "SN-ROW-14")
    first = board.passed("in")
    assert first["steps"] == ["flash", "tpm-identity"]
    facts = record(bench, first["unit"])["facts"]
    assert "tpm-identity.endorsement-key" in facts
    assert not any(name.startswith("tpm-ownership") for name in facts), "nothing was owned yet"
    second = board.passed("own")
    assert second["unit"] == first["unit"]
    facts = record(bench, first["unit"])["facts"]
    assert facts["tpm-ownership.state"] is not None
    assert facts["tpm-identity.endorsement-key"]["ek_trust"] == "certificate", "judged in the first pass"
    last = board.passed("end")
    assert last["unit"] == first["unit"]
    assert record(bench, first["unit"])["summary"]["state"] == "passed"


def test_row_16_incoming_goods_extract_the_ek_only_and_the_final_pass_knows_it(
    bench: Bench, tmp_path: Path
) -> None:
    board = Mover(bench, "SN-ROW-16")
    refused = board.visit("own")
    assert (refused["outcome"], refused["problem"]) == ("REFUSED", "PassMissing"), refused
    assert "'incoming'" in refused["message"]
    assert refused["hint"]
    unit = board.passed("in")["unit"]
    refused = board.visit("end")
    assert (refused["outcome"], refused["problem"]) == ("REFUSED", "PassMissing"), (
        "ownership is still missing"
    )
    board.passed("own")
    board.passed("end")
    found = record(bench, unit)
    known = found["facts"]["tpm-identity.known-endorsement-key"]
    judged = found["facts"]["tpm-identity.endorsement-key"]
    assert known["ek_name"] == judged["ek_name"]
    assert known["ek_handle"] == 0x81010001
    assert "ek_certificate" not in known, "it wasn't asked for again"
    assert found["facts"]["certificate.install"]["certificate_roles"] == ["link", "tpm"]
    # What was proven stays with the unit, and anybody checks it without the station.
    name = found["summary"]["registration_id"]
    bench.hallmark("units", "export", unit, "--out", str(tmp_path))
    files = tmp_path / name
    words = ["--root", "/nowhere", "attestation", "--file", str(files / "attestation.json")]
    command = [*bench.layout.hallmark()[: -2 if "--root" in bench.layout.hallmark() else None], *words]
    checked = subprocess.run(
        [*command, "--certificate", str(files / "device.pem")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "holds   the AK's TPM certified the device key" in checked.stdout
    transcript = json.loads((files / "attestation.json").read_text())
    signature = base64.b64decode(transcript["certification"]["signature"])
    transcript["certification"]["signature"] = base64.b64encode(
        signature[:-1] + bytes([signature[-1] ^ 1])
    ).decode()
    (files / "attestation.json").write_text(json.dumps(transcript))
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_row_19_a_software_tpm_is_named_on_every_record_of_a_bench(bench: Bench, tmp_path: Path) -> None:
    board = Mover(bench, "SN-ROW-19")
    seen = board.passed("in")
    assert seen["software_tpm"] is True, "status"
    board.passed("own")
    seen = board.passed("end")
    assert seen["software_tpm"] is True
    found = record(bench, seen["unit"])
    assert found["facts"]["tpm-identity.endorsement-key"]["tpm_software"] is True
    assert "SOFTWARE TPM: bench only" in bench.hallmark("units", "show", seen["unit"])
    bench.hallmark("units", "export", seen["unit"], "--out", str(tmp_path))
    summary = json.loads((tmp_path / seen["registration_id"] / "unit.json").read_text())
    assert summary["tpm"]["software"] is True
    queued = {row["kind"]: json.loads(base64.b64decode(row["content"])) for row in found["outbox"]}
    assert queued["enrollment"]["tags"]["tpm"] == "software"
    facts = queued["archive"]["facts"]
    assert facts["tpm-identity.endorsement-key"]["tpm_software"] is True


def test_row_19_in_production_a_software_tpm_is_refused_before_anything_is_asked_of_it(
    line: Recorder,
) -> None:
    for options in (tpm_identity.Options(), tpm_identity.Options(known=True)):
        with line.visit() as board:
            stage = Stage(board)
            with pytest.raises(SoftwareTpmRefused, match="software TPM") as found:
                stage.run(
                    PlannedStep(tpm_identity.STEP, options), trip=stage.trip(bench=False, call=lasting())
                )
        assert "bench mode only" in found.value.hint
        assert not any(said.startswith(("judge", "credential", "join")) for said in stage.said)
