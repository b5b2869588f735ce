"""Rows of the practices document that the whole trip shows; the others stand in the rooms' files beside this one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from drivers.emulated.bench.process import wait_for
from tests.fixtures_line import Bench, bench_line


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    yield from bench_line({"A": "gw-200.toml"})


def test_row_12_one_recipe_flashes_certifies_and_checks_in_one_pass(bench: Bench) -> None:
    board = bench.board("A", "SN-ROW-12")
    seen = bench.passed(board)
    record = bench.line.unit(seen["unit"])
    assert len(record["visits"]) == 1
    done = [f"{row['step']}.{row['action']}" for row in record["actions"] if row["done_at"] is not None]
    order = [done.index(name) for name in ("flash.write", "certificate.install", "final-check.certificate")]
    assert order == sorted(order)
    assert {"flash.write", "certificate.issue", "certificate.install", "final-check.firmware"} <= set(done)


def test_row_17_id_scope_and_endpoint_are_on_the_device_and_read_back(bench: Bench) -> None:
    board = bench.board("A", "SN-ROW-17")
    seen = bench.passed(board)
    facts = bench.line.unit(seen["unit"])["facts"]["configure.write"]
    bench.unplug(board)
    kept = json.loads((board.state / "settings.json").read_text())
    assert {name: bytes.fromhex(value).decode() for name, value in kept.items()} == {
        "dps/id-scope": facts["id_scope"],
        "dps/endpoint": facts["endpoint"],
        "dps/registration-id": seen["registration_id"],
    }


def test_row_21_what_was_made_without_a_network_is_enrolled_once_when_there_is_one(bench: Bench) -> None:
    bench.line.cloud.away()
    seen = bench.passed(bench.board("A", "SN-ROW-21"))
    name = seen["registration_id"]

    def queued() -> list[dict[str, Any]]:
        rows = bench.line.unit(seen["unit"])["outbox"]
        return [row for row in rows if row["kind"] == "enrollment"]

    assert [row["state"] for row in queued()] == ["queued"]
    bench.restart("uploader")
    bench.line.cloud.back()
    wait_for("the upload", 45, lambda: [row["state"] for row in queued()] == ["acknowledged"])
    assert [item["registrationId"] for item in bench.line.cloud.enrollments()].count(name) == 1
    assert bench.again("A")["outcome"] == "PASS"
    assert [row["state"] for row in queued()] == ["acknowledged"], "the same again is not queued twice"
