"""Bad boards, on a real line: each has its own outcome with a hint, nothing is lost, and the other nests go on."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from drivers.emulated.bench.line import Board
from drivers.emulated.bench.process import run, wait_for
from tests.fixtures_line import Bench, Nest, bench_line

CABLE = ("--baud", "230400")
"""Slow enough that one can pull the plug in the middle of an image."""
GONE_SECONDS = 3.0
"""From the plug to the verdict: a tenth of it where nothing else runs."""


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """Two nests for boards that enroll by TPM, one for X.509, and one for boards without a TPM."""
    yield from bench_line({"A": "gw-200.toml", "B": "gw-300.toml", "C": "gw-200.toml", "D": "gw-100.toml"})


@pytest.fixture(scope="module")
def good(bench: Bench) -> Board:
    """A good board that has passed, and stays in nest A."""
    board = bench.board("A", "SN-GOOD")
    bench.passed(board)
    return board


def others_go_on(bench: Bench, good: Board) -> None:
    """The good board passes again meanwhile, with the certificate that it has."""
    assert good.nest.name == "A"
    before = certificate(bench, bench.nest("A")["unit"])
    again = bench.again("A")
    assert again["outcome"] == "PASS", again
    assert certificate(bench, again["unit"]) == before


def certificate(bench: Bench, unit: str) -> bytes:
    return base64.b64decode(bench.line.unit(unit)["facts"]["certificate.issue"]["certificate_chain"][0])


def actions(bench: Bench, unit: str, visit: str) -> dict[str, dict[str, Any]]:
    """What was done in a visit, by step.action."""
    rows = bench.line.unit(unit)["actions"]
    return {f"{row['step']}.{row['action']}": row for row in rows if row["visit"] == visit}


def enrollments(bench: Bench, unit: str) -> list[dict[str, Any]]:
    """Its rows in the outbox that are for the cloud."""
    return [item for item in bench.line.unit(unit)["outbox"] if item["kind"] == "enrollment"]


def expect(seen: Nest, outcome: str, code: str, step: str, says: str) -> None:
    found = (seen["outcome"], seen["problem"], f"{seen['step']}.{seen['action']}")
    assert found == (outcome, code, step), seen
    assert says in seen["message"], seen
    assert len(seen["hint"]) > 20, seen
    assert seen["state"] == "done"
    assert seen["safe_to_unplug"] is True


# --- boards that lie --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "outcome", "code", "step", "says"),
    [
        ("csr-signature", "FAIL", "PossessionUnproven", "certificate.issue", "signature is wrong"),
        ("csr-subject", "FAIL", "CredentialError", "certificate.issue", "another subject"),
        ("proof", "FAIL", "PossessionUnproven", "key-identity.possession", "does not hold"),
        ("forgets", "FAIL", "VerifyMismatch", "certificate.install", "not the one it was given"),
        ("worn-flash", "FAIL", "VerifyMismatch", "flash.write", "not that of the image"),
        ("oversized", "FAIL", "ProtocolViolation", "flash.write", "out of bounds"),
        ("malformed", "FAIL", "ProtocolViolation", "flash.write", "CBOR"),
    ],
)
def test_a_board_that_lies_is_told_so_and_passes_when_mended(
    bench: Bench, good: Board, lie: str, outcome: str, code: str, step: str, says: str
) -> None:
    liar = bench.board("D", f"SN-{lie}", "--no-tpm", lie=lie)
    before = bench.visit_of("D")
    bench.plug(liar)
    others_go_on(bench, good)
    expect(bench.verdict("D", after=before), outcome, code, step, says)
    bench.unplug(liar)
    # The same board with sound firmware: what it had, key and unit, is what it goes on with.
    mended = bench.board("D", f"SN-{lie}", "--no-tpm")
    if lie == "worn-flash":
        (mended.state / "flash.bin").unlink()
    bench.passed(mended)


# --- endorsement keys and identities ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "says"), [("foreign", "no chain from there to the trust store"), ("none", "no EK certificate")]
)
def test_an_ek_that_no_trusted_maker_certified_is_refused_before_anything_lasting(
    bench: Bench, good: Board, kind: str, says: str
) -> None:
    board = bench.board("B", f"SN-{kind}", "--ek-certificate", kind)
    before = bench.visit_of("B")
    bench.plug(board)
    others_go_on(bench, good)
    seen = bench.verdict("B", after=before)
    expect(seen, "REFUSED", "EkUntrusted", "tpm-identity.endorsement-key", says)
    assert seen["unit"] == ""


def decide(bench: Bench, answer: str) -> None:
    """An engineer answers the one question that waits."""
    (asked,) = (json.loads(line) for line in bench.run("decisions", "--json").stdout.splitlines())
    bench.hallmark("decisions", "answer", str(asked["id"]), answer, "--reason", "looked at both boards")


def test_a_cloned_ek_puts_its_unit_aside_until_an_engineer_has_decided(bench: Bench) -> None:
    original = bench.board("C", "SN-ORIGINAL")
    passed = bench.passed(original)
    had = bench.line.unit(passed["unit"])
    bench.unplug(original)
    clone = bench.board("C", "SN-CLONE")
    clone.state.mkdir(mode=0o700)
    shutil.copytree(original.state / "tpm", clone.state / "tpm")
    seen = bench.visit(clone)
    expect(seen, "REFUSED", "IdentityConflict", "tpm-identity.join", "a cloned identity")
    # Nothing of the original's was touched, and it still is what it was.
    now = bench.line.unit(passed["unit"])
    assert now["certificate"] == had["certificate"]
    assert [item["seq"] for item in now["outbox"]] == [item["seq"] for item in had["outbox"]]
    expect(bench.visit(original), "REFUSED", "Quarantined", "tpm-identity.join", "cloned identity")
    decide(bench, "clone")
    expect(bench.again("C"), "REFUSED", "Quarantined", "tpm-identity.join", "out for good")


def test_a_board_that_claims_another_units_serial_waits_with_it_until_an_engineer_has_decided(
    bench: Bench, good: Board
) -> None:
    unit = bench.nest("A")["unit"]
    board = bench.board("B", "SN-IMPOSTOR", "--serial", good.serial)
    expect(
        bench.visit(board), "REFUSED", "IdentityConflict", "tpm-identity.join", "known board with another EK"
    )
    expect(bench.again("A"), "REFUSED", "Quarantined", "tpm-identity.join", "another EK")
    assert any("decision" in problem for problem in bench.line.snapshot()["station"]["problems"])  # type: ignore[index]
    decide(bench, "reject")
    assert not any("decision" in problem for problem in bench.line.snapshot()["station"]["problems"])  # type: ignore[index]
    expect(bench.again("B"), "REFUSED", "Quarantined", "tpm-identity.join", "out for good")
    assert bench.again("A")["outcome"] == "PASS"
    others_go_on(bench, good)
    assert bench.nest("A")["unit"] == unit


def test_a_board_in_a_nest_of_another_sku_is_refused_with_where_it_belongs(bench: Bench, good: Board) -> None:
    bench.unplug(good)
    stranger = Board(
        bench.layout, bench.board("B", "SN-NEVER").nest, good.serial, "--baud", "0", "--board", "gw-300"
    )
    bench.line.boards.append(stranger)
    seen = bench.visit(stranger)
    expect(seen, "REFUSED", "IdentityConflict", "tpm-identity.join", "this nest makes gw-300")
    assert "own SKU" in seen["hint"]
    bench.unplug(stranger)
    bench.passed(good)


# --- images -----------------------------------------------------------------------------------------------------


def test_an_image_with_other_bytes_than_the_manifests_is_refused_and_mended_goes_on(
    bench: Bench, good: Board
) -> None:
    image = bench.layout.etc / "images/gw-300-1.4.2.bin"
    whole = image.read_bytes()
    image.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    board = bench.board("B", "SN-CORRUPT")
    try:
        seen = bench.visit(board)
    finally:
        image.write_bytes(whole)
    expect(seen, "REFUSED", "ImageUntrusted", "flash.write", "other bytes")
    others_go_on(bench, good)
    assert bench.again("B")["outcome"] == "PASS"


def test_a_manifest_that_nobody_signed_is_refused(bench: Bench) -> None:
    manifest = bench.layout.etc / "images/manifest.json"
    signed = manifest.read_bytes()
    manifest.write_bytes(signed + b" ")
    board = bench.board("D", "SN-UNSIGNED", "--no-tpm")
    try:
        expect(bench.visit(board), "REFUSED", "ImageUntrusted", "flash.write", "not signed")
    finally:
        manifest.write_bytes(signed)
    assert bench.again("D")["outcome"] == "PASS"


def test_a_signed_image_that_is_no_firmware_is_refused_before_the_flash_is_touched(bench: Bench) -> None:
    folder = bench.layout.etc / "images"
    names = ("gw-300-1.4.2.bin", "manifest.json", "manifest.json.sig")
    kept = {name: (folder / name).read_bytes() for name in names}
    (folder / names[0]).write_bytes(b"This is no firmware." * 500)
    entries = [f"{name}=1.4.2" for name in ("gw-200-1.4.2.bin", "gw-300-1.4.2.bin")]
    key = bench.layout.root / "bench/firmware.key"
    run(bench.layout.hallmark("recipe", "sign-images", str(folder), *entries, "--key", str(key)))
    board = bench.board("B", "SN-NO-FIRMWARE")
    try:
        seen = bench.visit(board)
    finally:
        for name, data in kept.items():
            (folder / name).write_bytes(data)
    assert (seen["outcome"], seen["step"]) in (("FAIL", "flash"), ("REFUSED", "flash")), seen
    assert seen["problem"] in ("FlashRejected", "ImageUntrusted")
    assert "MCUboot" in seen["message"]
    assert not (board.state / "flash.bin").read_bytes().strip(b"\xff")
    assert bench.again("B")["outcome"] == "PASS"


# --- boards that go and come ------------------------------------------------------------------------------------


def test_a_board_unplugged_in_mid_flash_is_gone_at_once_and_passes_when_it_is_back(
    bench: Bench, good: Board
) -> None:
    board = bench.board("C", "SN-PULLED", *CABLE)
    before = bench.visit_of("C")
    bench.plug(board)
    bench.until("C", lambda nest: nest["visit"] != before and nest["done"] > 0)
    pulled = time.monotonic()
    board.ask("unplug")
    seen = bench.verdict("C", after=before)
    assert time.monotonic() - pulled < GONE_SECONDS
    expect(seen, "ABORTED", "DeviceGone", "flash.write", "")
    bench.until("C", lambda nest: not nest["plugged"])
    others_go_on(bench, good)
    board.ask("plug")
    assert bench.verdict("C", after=seen["visit"])["outcome"] == "PASS"


def test_a_board_that_vanishes_for_its_reset_goes_on_when_it_is_back(bench: Bench) -> None:
    board = bench.board("C", "SN-NATIVE-USB", "--reset-absence", "0.6")
    before = bench.visit_of("C")
    bench.plug(board)
    bench.until("C", lambda nest: nest["visit"] != before and nest["state"] == "away")
    seen = bench.verdict("C", after=before)
    assert seen["outcome"] == "PASS", seen
    assert bench.line.unit(seen["unit"])["summary"]["visit"] == seen["visit"]


def test_a_board_that_does_not_come_back_from_its_reset_is_gone_and_the_nest_serves_the_next(
    bench: Bench,
) -> None:
    board = bench.board("D", "SN-LOST", "--no-tpm", "--reset-absence", "60")
    before = bench.visit_of("D")
    bench.plug(board)
    bench.until("D", lambda nest: nest["visit"] != before and nest["state"] == "away")
    began = time.monotonic()
    seen = bench.verdict("D", after=before)
    assert seen["outcome"] == "ABORTED", seen
    assert (seen["problem"], seen["step"], seen["action"]) == ("DeviceGone", "flash", "boot")
    assert time.monotonic() - began < 6
    bench.passed(bench.board("D", "SN-NEXT", "--no-tpm"))


def test_a_board_that_hangs_is_a_bad_board_and_comes_back_after_its_power_was_off(bench: Bench) -> None:
    board = bench.board("D", "SN-HUNG", "--no-tpm", *CABLE)
    before = bench.visit_of("D")
    bench.plug(board)
    bench.until("D", lambda nest: nest["visit"] != before and nest["done"] > 0)
    board.ask("hang")
    seen = bench.verdict("D", after=before)
    expect(seen, "FAIL", "DeadlineExceeded", "flash.write", "did not answer")
    bench.unplug(board)
    bench.passed(board)


# --- units that come back ---------------------------------------------------------------------------------------


def test_a_passed_unit_that_comes_back_has_nothing_done_twice(bench: Bench) -> None:
    board = bench.board("B", "SN-REWORK")
    first = bench.passed(board)
    wait_for("the upload", 20, lambda: _uploaded(bench, first["unit"]))
    had = bench.line.unit(first["unit"])
    bench.unplug(board)
    second = bench.passed(board)
    assert second["unit"] == first["unit"]
    now = bench.line.unit(first["unit"])
    assert now["certificate"] == had["certificate"]
    assert certificate(bench, first["unit"]) == certificate(bench, second["unit"])
    assert now["escrows"] == had["escrows"]
    assert len(had["escrows"]) == 1
    assert enrollments(bench, first["unit"]) == [
        item for item in had["outbox"] if item["kind"] == "enrollment"
    ]
    applied = {
        name for name, row in actions(bench, first["unit"], second["visit"]).items() if not row["found"]
    }
    assert applied <= {"enroll.queue"}


def _uploaded(bench: Bench, unit: str) -> bool:
    return [item["state"] for item in enrollments(bench, unit)] == ["acknowledged"]


def test_a_unit_whose_flash_was_replaced_is_mended_without_a_new_identity(bench: Bench) -> None:
    """Rework: the flash is blank again, the TPM is the one on record."""
    board = bench.board("C", "SN-REFLASHED")
    first = bench.passed(board)
    had = certificate(bench, first["unit"])
    bench.unplug(board)
    for kept in ("flash.bin", "settings.json"):
        (board.state / kept).unlink(missing_ok=True)
    shutil.rmtree(board.state / "files", ignore_errors=True)
    second = bench.passed(board)
    assert second["unit"] == first["unit"]
    assert certificate(bench, second["unit"]) == had
    done = actions(bench, second["unit"], second["visit"])
    assert not done["flash.write"]["found"]
    assert not done["certificate.install"]["found"]
    assert done["certificate.key"]["found"]
    assert done["certificate.issue"]["found"]


def test_a_unit_whose_tpm_key_was_erased_is_refused(bench: Bench) -> None:
    """For a board without TPM its key is its identity: another key is another board with a serial that is taken."""
    board = bench.board("D", "SN-ERASED", "--no-tpm")
    bench.passed(board)
    bench.unplug(board)
    for file in board.state.iterdir():
        if file.name.startswith("key"):
            file.unlink()
    seen = bench.visit(board)
    expect(seen, "REFUSED", "IdentityConflict", "key-identity.join", "known board with another key")
    decide(bench, "replaced")
    assert bench.again("D")["outcome"] == "PASS"
