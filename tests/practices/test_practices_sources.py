"""Rows 8, 11 and 13 of the practices document, on a real line: certificates from everywhere, each to one unit."""

from __future__ import annotations

import hashlib
import json
import subprocess
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from drivers.emulated.bench.process import wait_for
from tests.fixtures_line import Bench
from tests.fixtures_sources import Holder, Sources, leaf_digest, own_key
from tests.stock_parts import new_key

SPKI = PublicFormat.SubjectPublicKeyInfo


def spki_of(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, SPKI))


def record(sources: Sources, unit: str) -> dict[str, Any]:
    """unit.json as it is exported."""
    out = sources.bench.layout.root / "export"
    sources.bench.hallmark("units", "export", unit, "--out", str(out))
    name = sources.bench.line.unit(unit)["summary"]["registration_id"]
    found: dict[str, Any] = json.loads((out / name / "unit.json").read_text())
    return found


def openssl_trusts(sources: Sources, unit: str, root: bytes) -> bool:
    """openssl's verdict on the exported chain."""
    out = sources.bench.layout.root / "export"
    sources.bench.hallmark("units", "export", unit, "--out", str(out))
    name = sources.bench.line.unit(unit)["summary"]["registration_id"]
    (out / "root.pem").write_bytes(root)
    command = ["openssl", "verify", "-purpose", "sslclient", "-CAfile", str(out / "root.pem")]
    command += ["-untrusted", str(out / name / "chain.pem"), str(out / name / "device.pem")]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


def _bench_root(bench: Bench) -> bytes:
    (root,) = (bench.layout.root / "var/lib/hallmark/signer").rglob("root.pem")
    return root.read_bytes()


def states(bench: Bench, unit: str) -> list[str]:
    """Of its enrollments in the outbox."""
    return [item["state"] for item in bench.line.unit(unit)["outbox"] if item["kind"] == "enrollment"]


def test_row_13_the_same_recipe_with_two_sources_issues_or_draws_from_a_pool(sources: Sources) -> None:
    bench = sources.bench
    issued = bench.passed(bench.board("I", "SN-I1", "--no-tpm"))
    assert record(sources, issued["unit"])["key"] == {"place": "element", "protection": "secure-element"}
    assert openssl_trusts(sources, issued["unit"], _bench_root(bench))

    keys = [sources.make_key("P")]
    names = ["pool-device-1", "pool-device-2"]
    chains = [sources.pki.chain(names[0], Holder(keys[0])), sources.pki.chain(names[1], new_key())]
    bench.hallmark("pool", "import", str(sources.pool("L1", chains)), "--lot", "L1")
    drawn = bench.passed(bench.board("P", "SN-P1", "--no-tpm"))
    assert drawn["registration_id"] == names[0]
    leaf = sources.certificate_of(drawn["unit"])
    assert leaf.public_bytes(Encoding.DER) == chains[0][0]
    assert openssl_trusts(sources, drawn["unit"], sources.pki.root.public_bytes(Encoding.PEM))
    enrollment = json.loads((bench.layout.root / "export" / names[0] / "unit.json").read_text())[
        "enrollments"
    ]
    assert [item["sink"] for item in enrollment] == ["dps"]
    again = bench.again("P")
    assert again["outcome"] == "PASS", again
    assert sources.certificate_of(again["unit"]) == leaf


def test_row_08_without_a_connection_units_are_issued_to_or_served_from_a_pool_and_uploaded_later(
    sources: Sources,
) -> None:
    bench = sources.bench
    bench.line.cloud.away()
    sources.insert("I")
    sources.insert("P")
    issued = bench.passed(bench.board("I", "SN-I8", "--no-tpm"))
    key = sources.make_key("P")
    chain = sources.pki.chain("offline-device", Holder(key))
    bench.hallmark("pool", "import", str(sources.pool("L8", [chain])), "--lot", "L8")
    bench.edit('lot = "L1"', 'lot = "L8"', "recipes/P.toml")
    bench.restart("run")
    drawn = bench.passed(bench.board("P", "SN-P8", "--no-tpm"))
    units = [issued["unit"], drawn["unit"]]
    assert [states(bench, unit) for unit in units] == [["queued"], ["queued"]]
    bench.line.cloud.back()
    taken = [["acknowledged"], ["acknowledged"]]
    wait_for("enrollments to be taken", 45, lambda: [states(bench, unit) for unit in units] == taken)


def test_row_11_an_element_that_its_vendor_loaded_is_adopted_by_the_vendors_manifest(
    sources: Sources,
) -> None:
    bench = sources.bench
    key = sources.make_key("V")
    leaf = sources.vendor.chain("element-0001", Holder(key))
    sources.load("V", leaf[0])
    stranger = bench.visit(bench.board("V", "SN-V1", "--no-tpm"))
    assert (stranger["outcome"], stranger["problem"]) == ("REFUSED", "CertificateUntrusted"), stranger
    (bench.layout.etc / "trust/preloaded/issuing.pem").write_bytes(
        sources.vendor.issuing.public_bytes(Encoding.PEM)
    )
    bench.restart("run")
    unlisted = bench.again("V")
    assert (unlisted["outcome"], unlisted["problem"]) == ("REFUSED", "CertificateUntrusted"), unlisted
    assert "not in the vendor's manifest" in unlisted["message"]
    listed = {"key": hashlib.sha256(spki_of(key)).hexdigest(), "certificate": leaf_digest(leaf[0])}
    bench.hallmark("manifest", "import", str(sources.manifest("V1", [listed])))
    adopted = bench.again("V")
    assert (adopted["outcome"], adopted["registration_id"]) == ("PASS", "element-0001"), adopted
    assert sources.certificate_of(adopted["unit"]).public_bytes(Encoding.DER) == leaf[0]
    (line,) = bench.hallmark("manifest", "list", "--json").splitlines()
    assert json.loads(line)["free"] == 0


def test_row_11_a_certificate_that_the_device_made_itself_is_adopted_and_its_key_on_no_other_board(
    sources: Sources,
) -> None:
    bench, key = sources.bench, new_key()
    board = bench.board("D", "SN-D1", "--no-tpm")
    der = own_key(board.state, key, "self-made-1")
    seen = bench.passed(board)
    assert seen["registration_id"] == "self-made-1"
    assert sources.certificate_of(seen["unit"]).public_bytes(Encoding.DER) == der
    clone = bench.board("D", "SN-D2", "--no-tpm")
    own_key(clone.state, key, "self-made-2")
    refused = bench.visit(clone)
    assert refused["outcome"] == "REFUSED", refused
    assert "self-made-1" in refused["message"]


def test_row_11_keys_made_by_an_offline_pki_reach_the_board_sealed_and_are_kept_no_longer(
    sources: Sources,
) -> None:
    bench = sources.bench
    keys = [new_key(), new_key()]
    chains = [sources.pki.chain(f"delivered-{number}", key) for number, key in enumerate(keys)]
    bench.hallmark("pool", "import", str(sources.pool("L2", chains, keys)), "--lot", "L2")
    seen = bench.passed(bench.board("K", "SN-K1"))
    leaf = sources.certificate_of(seen["unit"]).public_bytes(Encoding.DER)
    assert leaf in [chain[0] for chain in chains]
    assert record(sources, seen["unit"])["key"]["protection"] == "file"
    other = bench.passed(bench.board("K", "SN-K2"))
    assert sources.certificate_of(other["unit"]).public_bytes(Encoding.DER) != leaf
    lots = [json.loads(line) for line in bench.run("pool", "list", "--json").stdout.splitlines()]
    assert [(lot["free"], lot["installed"]) for lot in lots if lot["lot"] == "L2"] == [(0, 2)]
    empty = bench.visit(bench.board("K", "SN-K3"))
    assert (empty["outcome"], empty["problem"]) == ("REFUSED", "StockEmpty"), empty
    assert "hallmark pool import" in empty["hint"]
    problems = bench.line.snapshot()["station"]["problems"]  # type: ignore[index]
    assert any("lot L2: 0 certificates left" in problem for problem in problems), problems


def test_row_11_a_key_made_in_the_token_reaches_the_board_sealed(sources: Sources) -> None:
    bench = sources.bench
    seen = bench.passed(bench.board("T", "SN-T1"))
    leaf = sources.certificate_of(seen["unit"])
    assert f"CN={seen['registration_id']}" in leaf.subject.rfc4514_string()
    again = bench.again("T")
    assert again["outcome"] == "PASS", again
    assert sources.certificate_of(again["unit"]) == leaf


@pytest.fixture(autouse=True)
def _softhsm() -> None:
    from tests.fixtures_signer import softhsm_module

    softhsm_module()
