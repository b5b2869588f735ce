"""`hallmark escrow offer`: from a descriptor to the station's memory. By engineers only, for the right TPM only, and in
no path, log or record on the way."""

from __future__ import annotations

import grp
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from hal.errors import EkMismatch, EscrowUnreadable
from hal.secret import Secret
from station import cli
from station.config import load_configuration
from station.escrow import EscrowRecord
from station.images import ImageStore
from station.offered import Offered
from station.order_book import OrderBook
from station.overview import Overview
from station.paths import Paths
from station.signer_client import SignerClient
from station.status.routes import Groups
from station.status.server import StatusServer
from station.status.view import AuditView, TokenView
from station.store import Store
from tests import store_parts as parts
from tests.fixtures_signer import station_toml
from tests.fixtures_status import FakeControl, FakeRecords
from tests.integration.test_status_server import POST_PAUSE, STRANGER

VALUE = b"\xab" * 32
RECORD = EscrowRecord(parts.ek_name(1), "board-1", "line-1", 1, {"lockout": Secret(VALUE)})


def offer(root: Path, unit: str, data: bytes) -> int:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    try:
        return cli.main(["--root", str(root), "escrow", "offer", unit, "--auths-fd", str(reader)])
    finally:
        os.close(reader)


def test_what_an_officer_brings_is_in_memory_and_nowhere_else(
    short_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = Paths(short_root)
    paths.state.mkdir(parents=True)
    paths.runtime.mkdir(parents=True)
    paths.configuration.parent.mkdir(parents=True)
    paths.configuration.write_text(station_toml(Path("/nonexistent.so")))
    offered = Offered()
    with Store.open(paths.database, ballast=4096) as store, structlog.testing.capture_logs() as logs:
        parts.trip(store, 1)
        parts.trip(store, 2)
        overview = Overview(
            load_configuration(paths),
            store,
            {},
            lambda: TokenView("ready"),
            list,
            lambda: AuditView("off"),
            lambda: None,
            offered,
            OrderBook(
                store,
                SignerClient(paths.signer_socket),
                ImageStore(paths.state / "images", paths.state / "firmware.pem"),
                "line-1",
                paths.state / "no-orders",
                required=False,
            ),
        )
        server = StatusServer(overview, store, paths.status_socket, Groups("root", "root"))
        server.start()
        try:
            assert offer(short_root, "board-1", RECORD.canonical()) == 0
            assert offered.take(parts.ek_name(1), "v") == (
                dict(RECORD.auths),
                f"root (uid {os.geteuid()})",
                True,
            )
            assert offer(short_root, "board-2", RECORD.canonical()) == 1
            assert offer(short_root, "nobody", RECORD.canonical()) == 1
            assert (
                offer(short_root, "board-1", b'{"auths": {"lockout": "' + VALUE.hex().encode() + b'"}}') == 1
            )
            assert not offered.waits(parts.ek_name(2))
        finally:
            server.stop()
        (event,) = [event for event in store.events(0, 100) if event.kind == "auths-offered"]
        assert event.detail["hierarchies"] == "lockout"
        with pytest.raises(EkMismatch):
            overview.offer("board-2", RECORD.canonical().decode(), "x")
        with pytest.raises(EscrowUnreadable):
            overview.offer("board-1", "{}", "x")
    everything = b"".join(path.read_bytes() for path in short_root.rglob("*") if path.is_file())
    said = "".join(capsys.readouterr()) + str(logs)
    assert VALUE not in everything
    assert VALUE.hex() not in said + everything.decode("latin-1")


def test_without_a_station_there_is_nobody_to_bring_it_to(short_root: Path) -> None:
    assert offer(short_root, "board-1", RECORD.canonical()) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("member", [False, True])
def test_only_engineers_may_bring_auths(short_root: Path, *, member: bool) -> None:
    group = grp.getgrnam("games")
    groups = Groups("root", group.gr_name) if member else Groups(group.gr_name, "root")
    short_root.chmod(0o755)
    control, path = FakeControl(), short_root / "s"
    server = StatusServer(control, FakeRecords(), path, groups)
    server.start()
    asked = POST_PAUSE.replace("/v1/pause", "/v1/units/board-1/auths?record=x")
    try:
        said = subprocess.run(
            [sys.executable, "-c", STRANGER, str(path), str(group.gr_gid), asked],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout  # fmt: skip
    finally:
        server.stop()
    assert said.startswith("HTTP/1.1 200" if member else "HTTP/1.1 403")
    assert bool(control.calls) is member
