"""Row 9: an audit trail that can be required, or not needed at all; on a real line with signer, token and board."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures_line import Bench, bench_line

REQUIRED = '\n[audit]\nmode = "required"\n'


def _require(bench: Bench) -> None:
    """Required, and the token has no key for it."""
    with (bench.layout.etc / "station.toml").open("a") as stream:
        stream.write(REQUIRED)
    bench.edit('driver = "pkcs11"\n', 'driver = "pkcs11"\naudit_key = "none-such"\n')


def _audit(bench: Bench) -> dict[str, Any]:
    found = bench.line.snapshot()
    assert found is not None
    return dict(found["station"]["audit"])


@pytest.fixture
def bench() -> Iterator[Bench]:
    yield from bench_line({"A": "gw-100.toml"}, _require)


def test_row_09_no_unit_proceeds_while_the_required_audit_trail_cannot_be_signed_and_off_asks_nobody(
    bench: Bench,
) -> None:
    board = bench.plug(bench.board("A", "SN-ROW-09"))
    seen = bench.until("A", lambda nest: "audit trail" in nest["message"])
    assert "hallmark ca init" in seen["hint"]
    assert (seen["outcome"], seen["visit"], seen["unit"]) == ("", "", "")
    assert bench.run("units", "--json").stdout == "", (
        "nothing was done to the board, and nothing is on record of it"
    )

    # The key is made, and the board that waited in its nest goes on by itself.
    bench.line.daemons["signer"].stop()
    bench.hallmark("ca", "init", "--bench")
    bench.begin("signer")
    passed = bench.verdict("A", after="")
    assert passed["outcome"] == "PASS", passed
    audit = _audit(bench)
    assert (audit["mode"], audit["problem"]) == ("required", "")
    assert audit["signed"] > 0

    # Where no audit is needed, nothing is signed and nobody waits for it.
    bench.edit('mode = "required"', 'mode = "off"')
    bench.edit('audit_key = "none-such"', 'audit_key = "not-even-this"')
    bench.restart("signer")
    bench.restart("run")
    assert bench.again("A")["outcome"] == "PASS"
    audit = _audit(bench)
    assert (audit["mode"], audit["signed"], audit["problem"]) == ("off", 0, "")
    lines = bench.hallmark("audit", "--json").splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds.count("visit-closed") == 2, "the log stays: status and recovery read it"
    bench.unplug(board)
