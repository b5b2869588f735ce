"""The station's own surroundings go wrong, on a real line: disk, token, PIN, recipes, sockets. Boards wait with a hint
or get a verdict that blames the station, nothing is lost, and what needn't stop goes on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers.emulated.bench.process import wait_for
from station.paths import Paths
from tests.fixtures_config import Releaser
from tests.fixtures_line import Bench, bench_line

SLOW = ("--baud", "230400")
DISK = "48m"
"""Room for the ballast (8 MiB, made when four times as much is free) and a day of this test."""


def state_folder(bench: Bench) -> Path:
    return bench.layout.root / "var/lib/hallmark"


def mount_small_disk(bench: Bench) -> None:
    """The station's state on a disk of its own, which a test can fill. Only root can; others skip that test."""
    folder = state_folder(bench)
    made = folder.with_name("hallmark.before")
    folder.rename(made)
    folder.mkdir(mode=0o700)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    subprocess.run(["cp", "-a", f"{made}/.", str(folder)], check=True)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    nests = {"A": "gw-200.toml", "B": "gw-300.toml", "C": "gw-200.toml", "D": "gw-100.toml"}
    mounted: list[Path] = []

    def prepare(bench: Bench) -> None:
        mounted.append(state_folder(bench))
        mount_small_disk(bench)

    try:
        yield from bench_line(nests, prepare)
    finally:
        for folder in mounted:
            subprocess.run(["umount", str(folder)], check=False, capture_output=True)
            shutil.rmtree(folder.parents[2], ignore_errors=True)


@pytest.fixture(scope="module")
def good(bench: Bench) -> str:
    """The nest of a board that has passed, and can be made to pass again without any waiting."""
    bench.passed(bench.board("D", "SN-GOOD", "--no-tpm"))
    return "D"


def pids(bench: Bench) -> dict[str, tuple[int, int]]:
    return {name: (daemon.pid, daemon.starts) for name, daemon in bench.line.daemons.items()}


# --- sockets ----------------------------------------------------------------------------------------------------

FRAME_LIMIT = 1 << 20
GARBAGE = {
    "nothing": b"",
    "noise": random.Random(1).randbytes(70_000),
    "a frame that is said to be huge": struct.pack(">I", 0xFFFFFFFF) + b"x" * 100,
    "a frame one octet too long": struct.pack(">I", FRAME_LIMIT + 1) + b"\0" * (FRAME_LIMIT + 1),
    "half a frame": struct.pack(">I", 1000) + b"\x81",
    "a frame of nested arrays": struct.pack(">I", 50_000) + b"\x91" * 50_000,
    "a message of another pair": struct.pack(">I", 17) + b"\x81\xa4type\xaasign-reque",
    "an endless HTTP line": b"GET /" + b"a" * 200_000,
    "HTTP with endless headers": b"GET /v1/status HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    "HTTP of another kind": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a length that lies": b"POST /v1/pause HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\n",
}


@pytest.mark.parametrize("name", ["status", "outbox", "signer"])
def test_garbage_on_a_socket_costs_its_connection_only(bench: Bench, good: str, name: str) -> None:
    paths = Paths(bench.layout.root)
    path = {
        "status": paths.status_socket,
        "outbox": paths.outbox_socket,
        "signer": paths.signer_socket,
    }[name]
    before = pids(bench)
    kept = []
    for garbage in GARBAGE.values():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
            with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
                connection.sendall(garbage)
                connection.recv(65536)
            kept.append(connection.dup())  # some stay open and silent
    assert bench.again(good)["outcome"] == "PASS"
    assert bench.line.snapshot() is not None
    assert pids(bench) == before
    for connection in kept:
        connection.close()


# --- the CA token -----------------------------------------------------------------------------------------------


@contextmanager
def token_pulled(bench: Bench) -> Iterator[None]:
    tokens = bench.layout.root / "var/lib/softhsm/tokens"
    away = tokens.with_name("pulled")
    tokens.rename(away)
    try:
        yield
    finally:
        away.rename(tokens)


def test_a_token_pulled_in_mid_flight_is_waited_for_and_all_go_on_by_themselves(bench: Bench) -> None:
    under_way = bench.board("B", "SN-UNDER-WAY", *SLOW)
    before, waiting_before = bench.visit_of("B"), bench.visit_of("A")
    bench.plug(under_way)
    bench.until("B", lambda nest: nest["visit"] != before and nest["done"] > 0)
    with token_pulled(bench):
        seen = bench.until("B", lambda nest: nest["phase"] == "wait")
        assert not seen["outcome"]
        assert seen["state"] == "busy"
        assert seen["message"]
        assert "Plug the CA token in" in seen["hint"]
        # A board that comes now isn't begun: it waits, and says for what and what to do.
        bench.plug(bench.board("A", "SN-WAITS"))
        waits = bench.until("A", lambda nest: nest["problem"] == "TokenAbsent")
        assert waits["state"] == "paused"
        assert "Plug the CA token in" in waits["hint"]
        assert not waits["outcome"]
        assert wait_for("status to say so", 10, lambda: bench.token()["condition"] == "absent")
        assert bench.token()["hint"]
    assert bench.verdict("B", after=before)["outcome"] == "PASS"
    assert bench.verdict("A", after=waiting_before)["outcome"] == "PASS"
    assert wait_for("status to say so", 10, lambda: bench.token()["condition"] == "ready")


def test_a_wrong_pin_is_tried_once_blames_the_station_and_a_person_unblocks_it(bench: Bench) -> None:
    pin = bench.layout.etc / "credentials/ca-pin"
    right = pin.read_text()
    mark = state_folder(bench) / "signer/pin-attempt"
    pin.write_text("0" * 16)
    try:
        bench.restart("signer")
        wait_for("the refusal", 20, lambda: bench.token()["condition"] == "pin-wrong")
        tried = mark.read_text()
        for _ in range(3):  # as systemd would, and a person in a hurry
            bench.line.daemons["signer"].kill()
            wait_for("the next start", 20, lambda: bench.token()["condition"] in ("pin-wrong", "pin-blocked"))
        seen = bench.visit(bench.board("C", "SN-PIN"))
        assert (seen["outcome"], seen["problem"]) == ("ERROR", "PinRejected"), seen
        assert "hallmark ca unblock" in seen["hint"]
        said = bench.check()
        assert said.returncode == 1
        row = next(row for row in json.loads(said.stdout) if row["what"] in ("CA token", "token"))
        assert row["state"] == "error"
        assert "unblock" in row["hint"]
        assert mark.read_text() == tried, "the PIN was tried again"
    finally:
        pin.write_text(right)
        bench.line.daemons["signer"].stop()
        bench.hallmark("ca", "unblock", "--yes")
        bench.begin("signer")
    wait_for("the token", 20, lambda: bench.token()["condition"] == "ready")
    assert bench.again("C")["outcome"] == "PASS"


# --- disk -------------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(bench: Bench) -> Iterator[None]:
    folder = state_folder(bench)
    if not os.path.ismount(folder):
        pytest.skip("mounting a small disk takes root")
    fill = folder / "fill"
    with fill.open("wb") as stream:
        while True:
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            if not free:
                break
            stream.seek(0, os.SEEK_END)
            stream.write(b"x" * free)
            stream.flush()
    try:
        yield
    finally:
        fill.unlink()


def test_a_full_disk_stops_boards_with_a_hint_and_they_go_on_when_there_is_room(bench: Bench) -> None:
    board = bench.board("B", "SN-FULL", *SLOW)
    before = bench.visit_of("B")
    bench.plug(board)
    bench.until("B", lambda nest: nest["visit"] != before and nest["done"] > 0)
    with full_disk(bench):
        cut = bench.verdict("B", after=before)
        assert (cut["outcome"], cut["problem"]) == ("ERROR", "StoreUnavailable"), cut
        assert "Free disk space" in cut["hint"]
        waits_before = bench.visit_of("D")
        bench.post("/v1/retry?nest=D")
        waits = bench.until("D", lambda nest: nest["problem"] == "StoreUnavailable")
        assert waits["state"] == "paused"
        assert "Free disk space" in waits["hint"]
        station = bench.line.snapshot()
        assert station is not None
        assert station["station"]["disk"]["low"] is True
    assert bench.verdict("D", after=waits_before)["outcome"] == "PASS"
    assert bench.again("B")["outcome"] == "PASS"


# --- configuration ----------------------------------------------------------------------------------------------


def test_a_broken_recipe_costs_its_nest_and_no_other(bench: Bench) -> None:
    recipe = "recipes/gw-300.toml"
    bench.edit('use = "configure"', 'use = "configurre"', recipe)
    try:
        bench.restart("run")
        seen = bench.until("B", lambda nest: nest["problem"] == "RecipeError")
        assert "gw-300.toml" in seen["message"]
        assert "no step 'configurre'" in seen["message"]
        assert "hallmark recipe check" in seen["hint"]
        assert bench.verdict("D", after="")["outcome"] == "PASS"
        said = bench.check()
        assert said.returncode == 2
        assert "configurre" in said.stdout
    finally:
        bench.edit('use = "configurre"', 'use = "configure"', recipe)
        bench.restart("run")
    assert bench.verdict("B", after="")["outcome"] == "PASS"


def test_a_broken_station_toml_is_refused_with_file_line_and_key_and_the_old_one_works_again(
    bench: Bench,
) -> None:
    bench.edit("minimum_free_mib", "minimum_free_mb")
    try:
        said = bench.run("run")
    finally:
        bench.edit("minimum_free_mb", "minimum_free_mib")
    assert said.returncode == 2
    assert "station.toml:" in said.stderr
    assert "minimum_free_mb" in said.stderr
    assert bench.run("check", "--offline").returncode == 0


def test_in_production_a_software_tpm_is_refused_and_boards_without_tpm_pass(bench: Bench, good: str) -> None:
    """Last: from here on the station is another one. The signer refuses its bench CA for itself, see its own tests."""
    bench.line.daemons["uploader"].stop()
    bench.line.daemons["run"].stop()
    endpoint = bench.line.cloud.endpoint
    bench.edit('mode = "bench"', 'mode = "production"')
    with (bench.layout.etc / "station.toml").open("a") as stream:
        stream.write("\n[orders]\nrequired = false\n")
    bench.edit(f'endpoint = "{endpoint}"', 'endpoint = "https://example.azure-devices-provisioning.net"')
    Releaser(bench.layout.root).release()
    bench.begin("run")
    assert bench.verdict(good, after="")["outcome"] == "PASS"
    seen = bench.visit(bench.board("C", "SN-SOFTWARE"))
    assert (seen["outcome"], seen["problem"]) == ("REFUSED", "SoftwareTpmRefused"), seen
    assert seen["unit"] == ""
    assert "bench mode" in seen["hint"]
