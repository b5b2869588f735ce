"""The outbox socket: leases end with their connection, reports are durable, bad frames end one connection only."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hal.errors import PeerUnavailable
from station.messages import Batch, Lease, Ok, OutboxSays, Outcome, Report, SinkHealth
from station.outbox import CONNECTIONS, OutboxServer
from station.store import Store
from station.wire import Link, Problem, connect
from tests import store_parts as parts


@pytest.fixture
def heard() -> list[SinkHealth]:
    return []


@pytest.fixture
def server(store: Store, tmp_path: Path, heard: list[SinkHealth]) -> Iterator[Path]:
    path = tmp_path / "outbox.sock"
    running = OutboxServer(store, path, heard.append)
    running.start()
    yield path
    running.stop()
    assert not path.exists()
    for thread in threading.enumerate():
        if thread.name.startswith("outbox"):
            thread.join(5)
            assert not thread.is_alive()


def ask(link: Link[Any], message: object) -> Any:
    link.send(message)
    return link.receive()


def lease(link: Link[Any], wait: float = 0.0) -> list[int]:
    batch = ask(link, Lease("dps", 10, wait))
    assert isinstance(batch, Batch)
    return [item.seq for item in batch.items]


def test_what_is_leased_and_reported_is_acknowledged_durably(
    server: Path, store: Store, tmp_path: Path
) -> None:
    parts.trip(store, 1)
    link = connect(server, OutboxSays)
    batch = ask(link, Lease("dps", 10, 0.0))
    assert [(item.registration_id, item.enrollment) for item in batch.items] == [
        ("board-1", parts.enrollment(1))
    ]
    assert ask(link, Report([Outcome(batch.items[0].seq, etag="e", sent=b"{}")])) == Ok()
    assert parts.rows(tmp_path / "station.db", "SELECT etag, sent FROM outbox WHERE seq = 1") == [
        ("e", b"{}")
    ]
    link.close()


def test_a_lease_waits_until_a_unit_passes(server: Path, store: Store) -> None:
    link = connect(server, OutboxSays)
    link.send(Lease("dps", 10, 30.0))
    began = time.monotonic()
    parts.trip(store, 1)
    assert len(link.receive().items) == 1
    assert time.monotonic() - began < 5
    assert lease(link, wait=0.05) == []
    link.close()


def test_a_lease_comes_back_when_its_connection_ends(server: Path, store: Store) -> None:
    parts.trip(store, 1)
    first, second = connect(server, OutboxSays), connect(server, OutboxSays)
    assert lease(first) == [1]
    assert lease(second) == []
    second.send(Lease("dps", 10, 30.0))
    first.close()
    assert [item.seq for item in second.receive().items] == [1]
    second.close()


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
        struct.pack(">I", 1) + b"\x80",
        struct.pack(">I", 100) + b"cut",
    ],
)
def test_a_malformed_frame_ends_its_connection_only(server: Path, store: Store, frame: bytes) -> None:
    parts.trip(store, 1)
    good = connect(server, OutboxSays)
    bad = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bad.connect(str(server))
    bad.sendall(frame)
    bad.shutdown(socket.SHUT_WR)
    bad.settimeout(10)
    while bad.recv(4096):
        pass
    bad.close()
    assert lease(good) == [1]
    good.close()


def test_what_is_not_leased_here_can_not_be_reported(server: Path, store: Store) -> None:
    parts.trip(store, 1)
    owner, thief = connect(server, OutboxSays), connect(server, OutboxSays)
    assert lease(owner) == [1]
    answer = ask(thief, Report([Outcome(1, etag="mine")]))
    assert isinstance(answer, Problem)
    with pytest.raises(PeerUnavailable):
        thief.receive()
    assert store.depth().acknowledged == 0
    assert ask(owner, Report([Outcome(1, etag="e")])) == Ok()
    owner.close()
    thief.close()


@pytest.mark.parametrize("asked", [Lease("dps", 0, 0.0), Lease("dps", 1, -1.0), Lease("dps", 1, 1e9)])
def test_a_lease_that_makes_no_sense_ends_the_connection(server: Path, asked: Lease) -> None:
    link = connect(server, OutboxSays)
    assert isinstance(ask(link, asked), Problem)
    link.close()


def test_how_a_sink_is_seen_reaches_status(server: Path, heard: list[SinkHealth]) -> None:
    link = connect(server, OutboxSays)
    health = SinkHealth("dps", reachable=False, detail="no route", next_try=3.0)
    assert ask(link, health) == Ok()
    assert heard == [health]
    link.close()


def test_one_connection_too_many_is_told_so(server: Path) -> None:
    links = [connect(server, OutboxSays) for _ in range(CONNECTIONS)]
    for link in links:
        assert lease(link) == []
    extra = connect(server, OutboxSays)
    answer = extra.receive()
    assert isinstance(answer, Problem)
    assert "connections already" in answer.message
    for link in (*links, extra):
        link.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users_are_turned_away(server: Path, store: Store) -> None:
    parts.trip(store, 1)
    server.chmod(0o666)
    for folder in server.parents:
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
        if folder.name.startswith("pytest-of"):
            break
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
            answer = connect(server, OutboxSays).receive()
            code = 0 if isinstance(answer, Problem) and "not the uploader" in answer.message else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.leased == 0


def test_a_stop_ends_waiting_uploaders_at_once(store: Store, tmp_path: Path) -> None:
    running = OutboxServer(store, tmp_path / "o.sock", lambda _: None)
    running.start()
    link = connect(tmp_path / "o.sock", OutboxSays)
    link.send(Lease("dps", 10, 50.0))
    began = time.monotonic()
    running.stop()
    assert time.monotonic() - began < 3
    link.close()
