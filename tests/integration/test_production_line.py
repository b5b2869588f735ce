"""A whole trip in production: signed configuration, a CA under an openssl root, no bench parts anywhere."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drivers.emulated.bench.process import wait_for
from tests.fixtures_line import Bench
from tests.fixtures_production import ProductionLine, production_line


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    yield from production_line(("A",))


def line(bench: Bench) -> ProductionLine:
    assert isinstance(bench.line, ProductionLine)
    return bench.line


def test_a_board_without_a_tpm_passes_and_its_record_names_the_signed_set(
    bench: Bench, tmp_path: Path
) -> None:
    seen = bench.passed(bench.board("A", "SN-1", "--no-tpm"))
    wait_for("the upload", 30, lambda: (bench.line.snapshot() or {})["outbox"]["acknowledged"] == 1)
    verified = json.loads(bench.hallmark("config", "verify", "--json"))
    assert verified["valid"] is True
    assert verified["roll_back"] == "none: the newest set taken is 1"
    bench.hallmark("units", "export", seen["unit"], "--out", str(tmp_path))
    folder = tmp_path / seen["registration_id"]
    assert json.loads((folder / "unit.json").read_text())["configuration"] == verified["sha256"]
    subprocess.run(
        ["openssl", "verify", "-CAfile", str(line(bench).root_certificate),
         "-untrusted", str(folder / "chain.pem"), str(folder / "device.pem")],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    found = bench.line.snapshot()
    assert found is not None
    assert found["station"]["configuration"]["sha256"] == verified["sha256"]
    assert found["station"]["mode"] == "production"


def test_what_the_release_key_did_not_sign_stops_each_service(bench: Bench) -> None:
    """While they run nothing changes; restarted they would not come up, and `check` says why."""
    recipe = bench.layout.etc / "recipes/gw-100.toml"
    good = recipe.read_text()
    recipe.write_text(good + "\n# changed\n")
    try:
        assert bench.again("A")["outcome"] == "PASS"
        for daemon in ("signer", "run", "uploader"):
            done = bench.run(daemon)
            assert done.returncode == 2, daemon
            assert "recipes/gw-100.toml" in done.stderr
            assert "not the file that was signed" in done.stderr
        done = bench.run("check")
        assert done.returncode == 2
        assert "not the file that was signed" in done.stdout
        assert bench.run("config", "verify").returncode == 1
    finally:
        recipe.write_text(good)
    assert bench.run("check").returncode == 0


def test_after_a_new_set_the_services_work_only_with_one_another(bench: Bench) -> None:
    (bench.layout.etc / "profiles/extra.toml").write_text(
        (bench.layout.etc / "profiles/idevid-p256.toml").read_text()
    )
    line(bench).releaser.release()
    bench.restart("run")
    seen = bench.visit(bench.board("A", "SN-2", "--no-tpm"))
    assert (seen["outcome"], seen["problem"]) == ("ERROR", "ConfigurationUntrusted"), seen
    assert "different configuration sets" in seen["message"]

    def told() -> bool:
        found = bench.line.snapshot()
        return bool(found) and found is not None and "different" in found["outbox"]["sinks"][0]["detail"]

    wait_for("the station to say that the uploader has another set", 30, told)
    bench.restart("signer")
    bench.restart("uploader")
    until = time.monotonic() + 20
    while (seen := bench.again("A"))["outcome"] != "PASS" and time.monotonic() < until:
        assert seen["problem"] in ("ConfigurationUntrusted", "TokenAbsent"), seen
    assert seen["outcome"] == "PASS", seen
    wait_for("the upload", 30, lambda: (bench.line.snapshot() or {})["outbox"]["acknowledged"] == 2)
    sets = {bytes(row[0]).hex() for row in _ledger(bench)}
    assert len(sets) == 2, "each certificate names the set that it was asked for with"


def test_an_order_ends_the_line_and_a_scrapped_unit_gives_its_share_back(bench: Bench) -> None:
    """WO-17 is for three; two have passed above."""
    third = bench.board("A", "SN-3", "--no-tpm")
    bench.passed(third)
    reckoned = json.loads(bench.hallmark("orders", "reconcile", "--json"))
    assert [(one["signatures"], one["shipped"], one["drift"]) for one in reckoned] == [(3, 3, 0)]
    fourth = bench.board("A", "SN-4", "--no-tpm")
    seen = bench.visit(fourth)
    assert (seen["outcome"], seen["problem"]) == ("REFUSED", "QuotaSpent"), seen
    unit = next(row for row in _units(bench) if row["visit"] and row["state"] == "passed")
    assert bench.run("units", "scrap", unit["unit"]).returncode == 2, "not without a reason"
    wait_for("the upload", 30, lambda: (bench.line.snapshot() or {})["outbox"]["acknowledged"] == 3)
    said = bench.hallmark("units", "scrap", unit["unit"], "--reason", "cracked in the fixture")
    assert "dps has its enrollment already: delete it there." in said
    assert bench.again("A")["outcome"] == "PASS"
    said = bench.hallmark("orders", "reconcile")
    assert "WO-17: 4 signatures = 3 shipped + 1 scrapped + 0 rework + 0 pending" in said
    record = json.loads(bench.hallmark("units", unit["unit"], "--json"))
    assert record["summary"]["state"] == "scrapped"
    assert "of work order WO-17, revoked" in record["scrap"]["proof"]
    seen = bench.visit(third)
    assert seen["outcome"] == ("REFUSED" if seen["unit"] in ("", unit["unit"]) else "PASS"), seen


def test_what_an_order_does_not_permit_is_refused_before_the_board_is_touched(
    bench: Bench, tmp_path: Path
) -> None:
    bench.hallmark("orders", "close", "WO-17", "--reason", "done")
    seen = bench.visit(bench.board("A", "SN-5", "--no-tpm"))
    assert (seen["outcome"], seen["problem"], seen["step"]) == ("REFUSED", "OrderRefused", ""), seen
    made = line(bench)
    for name, changed, said in (
        ("WO-21", {"stations": ["line-2"]}, "not for station 'line-1'"),
        ("WO-22", {"images": ["ab" * 32]}, "does not name firmware image"),
        ("WO-23", {"recipes": ["ab" * 32]}, "not for this recipe"),
        ("WO-24", {"until": "2026-01-02T00:00:00Z"}, "ended on 2026-01-02"),
    ):
        bench.hallmark("orders", "import", str(made.order(id=name, **changed)))
        seen = bench.again("A")
        assert (seen["outcome"], seen["problem"]) == ("REFUSED", "OrderRefused"), seen
        assert said in seen["message"]
        bench.hallmark("orders", "close", name, "--reason", "a test")
    foreign = made.order(id="WO-25")
    foreign.write_bytes(foreign.read_bytes().replace(b'"quantity": 3', b'"quantity": 9'))
    done = bench.run("orders", "import", str(foreign))
    assert (done.returncode, "not signed by a key that may" in done.stderr) == (1, True), done.stderr
    bench.hallmark("orders", "import", str(made.order(id="WO-26")))
    assert bench.again("A")["outcome"] == "PASS"
    assert "WO-26" in bench.hallmark("orders")


def _units(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(row) for row in bench.hallmark("units", "--json").splitlines()]


def _ledger(bench: Bench) -> list[tuple[bytes]]:
    import apsw

    path = bench.layout.root / "var/lib/hallmark/signer/ledger.db"
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return list(db.execute("SELECT configuration FROM origins"))
    finally:
        db.close()
