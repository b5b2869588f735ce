"""The status server over a real unix socket: what it answers, to whom, and that nobody can hold it up."""

from __future__ import annotations

import grp
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hal.errors import PeerUnavailable
from station.notify import listen_fds
from station.status import connection, server
from station.status.client import Refused, StatusClient
from station.status.routes import Groups
from station.status.server import StatusServer
from station.status.view import EventView, Snapshot
from tests.fixtures_status import FAILED, OUTBOX, FakeControl, FakeRecords, Served
from tests.status_probes import read_answer, talk

STRANGER = """
import os, socket, sys
path, group, request = sys.argv[1:]
os.setgroups([int(group)] if group else [])
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as s:
    s.connect(path)
    s.sendall(request.encode())
    while data := s.recv(65536):
        sys.stdout.write(data.decode())
"""
POST_PAUSE = "POST /v1/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
GET_NESTS = b"GET /v1/nests HTTP/1.1\r\nHost: x\r\n\r\n"


def test_the_snapshot_arrives_as_it_was_given(served: Served) -> None:
    found = served.client.snapshot()
    assert found == Snapshot(served.control.station, served.control.views, OUTBOX)


def test_every_documented_path_answers_with_json(served: Served) -> None:
    served.records.add("visit-opened", 3)
    assert [nest["name"] for nest in served.client.get("/v1/nests")["nests"]] == ["A", "B", "C", "D"]
    assert served.client.get("/v1/units", limit=2, after="u-000019")["units"] == [
        {"unit": "u-000018"},
        {"unit": "u-000017"},
    ]
    assert served.client.get("/v1/units/u-000001")["registration_id"] == "4mrkd2q7"
    assert served.client.get("/v1/outbox")["queued"] == 3
    assert [item["seq"] for item in served.client.get("/v1/outbox/items", after=7)["items"]] == [8, 9, 10]
    lines = served.client.fetch("GET", "/v1/events", since=1, follow=0).splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [2, 3]


def test_metrics_are_prometheus_text_with_escaped_labels(served: Served) -> None:
    served.control.views = [msgspec.structs.replace(FAILED, name='C"\n\\')]
    text = served.client.fetch("GET", "/metrics").decode()
    assert 'hallmark_outbox_items{state="queued"} 3\n' in text
    assert 'hallmark_nest_state{nest="C\\"\\n\\\\",state="done"} 1\n' in text
    for line in text.splitlines():
        assert line.startswith("# ") or float(line.rsplit(" ", 1)[1]) >= 0


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "NotFound"),
        ("GET", "/", 404, "NotFound"),
        ("GET", "/v1/units/nobody", 404, "NotFound"),
        ("POST", "/v1/retry?nest=Z", 404, "NotFound"),
        ("POST", "/v1/retry", 400, "BadRequest"),
        ("POST", "/v1/status", 405, "MethodNotAllowed"),
        ("DELETE", "/v1/units/u-000001", 405, "MethodNotAllowed"),
        ("GET", "/v1/units?limit=0", 400, "BadRequest"),
        ("GET", "/v1/units?limit=%C2%B2", 400, "BadRequest"),
        ("GET", "/v1/events?since=-1", 400, "BadRequest"),
        ("GET", "/v1/units/%ff", 400, "BadRequest"),
        ("GET", "/v1/units?" + "a=1&" * 40, 400, "BadRequest"),
        ("POST", "/v1/outbox/one/retry", 400, "BadRequest"),
    ],
)
def test_what_cannot_be_answered_says_why_and_what_to_do(
    served: Served, method: str, path: str, status: int, code: str
) -> None:
    with pytest.raises(Refused) as caught:
        served.client.fetch(method, path)
    assert (caught.value.status, caught.value.failure.code) == (status, code)
    assert caught.value.failure.message
    assert caught.value.failure.hint


def test_a_station_error_keeps_its_code_hint_and_unit(served: Served) -> None:
    served.records.broken = True
    with pytest.raises(Refused) as caught:
        served.client.get("/v1/units/u-000001")
    assert caught.value.status == 503
    assert caught.value.failure.code == "StoreUnavailable"
    assert caught.value.failure.unit == "u-000001"
    assert "Free disk space" in caught.value.failure.hint


def test_commands_reach_the_supervisor_with_the_name_of_who_asked(served: Served) -> None:
    assert served.client.post("/v1/pause") == {"state": "paused"}
    assert served.client.post("/v1/drain") == {"state": "draining"}
    assert served.client.post("/v1/resume") == {"state": "running"}
    served.client.post("/v1/retry", nest="A")
    served.client.post("/v1/outbox/7/retry")
    served.client.post("/v1/units/u-1/quarantine", reason="smells of smoke")
    served.client.post("/v1/units/u-1/release")
    by = f"(uid {os.geteuid()})"
    assert all(any(str(part).endswith(by) for part in call) for call in served.control.calls)
    assert [call[0] for call in served.control.calls][3:] == [
        "retry",
        "retry_outbox",
        "quarantine",
        "release",
    ]
    assert served.control.calls[5][3] == "smells of smoke"


def test_parameters_may_come_as_a_json_body(served: Served) -> None:
    body = b'{"nest": "A"}'
    answer = talk(
        served.path, b"POST /v1/retry HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    assert answer.startswith(b"HTTP/1.1 200")
    assert served.control.calls[0][:2] == ("retry", "A")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("member", [False, True])
def test_only_the_operators_group_may_change_anything(socket_folder: Path, *, member: bool) -> None:
    group = grp.getgrnam("games")  # any group that exists and is not the stranger's primary one
    control, path = FakeControl(), socket_folder / "s"
    running = StatusServer(control, FakeRecords(), path, Groups(group.gr_name, "root"))
    running.start()
    try:
        gid = str(group.gr_gid) if member else ""
        said = subprocess.run(
            [sys.executable, "-c", STRANGER, str(path), gid, POST_PAUSE],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout  # fmt: skip
        seen = subprocess.run(
            [sys.executable, "-c", STRANGER, str(path), "", POST_PAUSE.replace("POST /v1/pause", "GET /v1/status")],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout  # fmt: skip
    finally:
        running.stop()
    assert seen.startswith("HTTP/1.1 200")
    if member:
        assert said.startswith("HTTP/1.1 200")
        assert control.calls[0][1] == "nobody (uid 65534)"
    else:
        assert said.startswith("HTTP/1.1 403")
        assert '"code":"Forbidden"' in said
        assert "adduser" in said
        assert not control.calls


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("member", [False, True])
def test_only_the_engineers_group_may_answer_a_decision_and_operators_may_not(
    socket_folder: Path, *, member: bool
) -> None:
    group = grp.getgrnam("games")
    groups = Groups("root", group.gr_name) if member else Groups(group.gr_name, "root")
    control, path = FakeControl(), socket_folder / "s"
    running = StatusServer(control, FakeRecords(), path, groups)
    running.start()
    asked = POST_PAUSE.replace("/v1/pause", "/v1/decisions/7/answer?answer=clone&reason=two%20boards")
    try:
        said = subprocess.run(
            [sys.executable, "-c", STRANGER, str(path), str(group.gr_gid), asked],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout  # fmt: skip
    finally:
        running.stop()
    assert said.startswith("HTTP/1.1 200" if member else "HTTP/1.1 403")
    assert control.calls == ([("decide", "7", "clone", "two boards", "nobody (uid 65534)")] if member else [])


def test_an_answer_that_is_none_or_has_no_reason_is_a_bad_request(served: Served) -> None:
    for parameters in ("answer=no-choice&reason=x", "answer=clone", "reason=x"):
        asked = f"POST /v1/decisions/7/answer?{parameters} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        assert talk(served.path, asked).startswith(b"HTTP/1.1 400")
    assert not served.control.calls


def test_no_station_is_told_apart_from_a_station_that_says_no(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailable, match="no station answers") as caught:
        StatusClient(tmp_path / "none.sock").snapshot()
    assert "systemctl start" in caught.value.hint


# --- who may hold it up: nobody ---------------------------------------------------------------------------------


def test_three_hundred_idle_clients_cost_no_threads_and_no_answers(served: Served) -> None:
    before = threading.active_count()
    idle = [socket.socket(socket.AF_UNIX) for _ in range(300)]
    try:
        for client in idle:
            client.connect(str(served.path))
        began = time.monotonic()
        assert served.client.snapshot().station.name == "line-1"
        assert time.monotonic() - began < 2
        assert threading.active_count() == before
        idle[150].sendall(GET_NESTS)  # and an idle one is served when it wakes
        assert read_answer(idle[150]).startswith(b"HTTP/1.1 200")
    finally:
        for client in idle:
            client.close()


def test_the_longest_idle_makes_room_when_all_connections_are_taken(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 3)
    with (
        socket.socket(socket.AF_UNIX) as first,
        socket.socket(socket.AF_UNIX) as second,
        socket.socket(socket.AF_UNIX) as third,
    ):
        for client in (first, second, third):
            client.connect(str(served.path))
            client.settimeout(10)
        assert served.client.snapshot().station.name == "line-1"
        assert first.recv(1) == b""
        second.sendall(GET_NESTS)
        assert read_answer(second).startswith(b"HTTP/1.1 200")


def test_half_a_request_is_dropped_after_its_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(server, "ROUND_SECONDS", 0.1)
    served.client.snapshot()  # the loop comes round with the new times
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(served.path))
        client.sendall(b"GET /v1/status HTT")
        assert client.recv(100) == b""


def test_a_reader_that_stops_reading_is_dropped_and_the_others_go_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(server, "ROUND_SECONDS", 0.1)
    served.records.add("chatter", 20_000, text="x" * 400)  # megabytes: more than socket buffers take
    with socket.socket(socket.AF_UNIX) as lazy:
        lazy.connect(str(served.path))
        lazy.sendall(b"GET /v1/events?since=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        fast = served.client.events(since=19_990)
        assert [next(fast).seq for _ in range(10)] == list(range(19_991, 20_001))
        until = time.monotonic() + 10
        while len(served.server._clients) > 1 and time.monotonic() < until:
            served.client.snapshot()
        assert len(served.server._clients) == 1
        fast.close()  # type: ignore[attr-defined]


def test_an_answer_that_hangs_is_given_up_and_the_late_one_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(server, "ROUND_SECONDS", 0.1)
    served.control.hold = threading.Event()
    with pytest.raises(Refused) as caught:
        served.client.snapshot()
    assert (caught.value.status, caught.value.failure.code) == (503, "DeadlineExceeded")
    assert served.client.get("/v1/nests")  # another worker
    served.control.hold.set()
    served.control.hold = None
    assert served.client.snapshot().station.name == "line-1"


# --- events -----------------------------------------------------------------------------------------------------


def test_a_stream_gives_what_was_missed_and_then_what_comes_once_and_in_order(served: Served) -> None:
    served.records.add("old", 700)
    stream = served.client.events(since=100)
    assert [next(stream).seq for _ in range(600)] == list(range(101, 701))
    for _ in range(5):
        served.records.add("new")
        served.records.add("new")
    assert [next(stream).seq for _ in range(10)] == list(range(701, 711))
    stream.close()  # type: ignore[attr-defined]


def test_without_since_a_stream_begins_now(served: Served) -> None:
    served.records.add("old", 3)
    stream = served.client.events()
    found: list[EventView] = []
    reader = threading.Thread(target=lambda: found.append(next(stream)))
    reader.start()
    until = time.monotonic() + 10
    while not served.server._watch.wanted.is_set() and time.monotonic() < until:
        served.client.snapshot()
    served.records.add("new")
    reader.join(10)
    stream.close()  # type: ignore[attr-defined]
    assert [(event.seq, event.kind) for event in found] == [(4, "new")]


def test_a_silent_stream_has_heartbeats(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(server, "ROUND_SECONDS", 0.05)
    served.records.add("one")
    stream = served.client.events(since=0)
    assert [(event.seq, event.kind) for event in (next(stream), next(stream), next(stream))] == [
        (1, "one"),
        (1, "heartbeat"),
        (1, "heartbeat"),
    ]
    stream.close()  # type: ignore[attr-defined]


def test_streams_are_bounded_and_one_that_left_makes_room(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STREAMS", 2)
    served.records.add("one")
    streams = [served.client.events(since=0) for _ in range(2)]
    for stream in streams:
        next(stream)
    with pytest.raises(Refused, match="taken"):
        next(served.client.events(since=0))
    streams[0].close()  # type: ignore[attr-defined]
    until = time.monotonic() + 10
    while len(served.server._clients) > 1 and time.monotonic() < until:
        served.client.snapshot()
    again = served.client.events(since=0)
    assert next(again).seq == 1
    for stream in (streams[1], again):
        stream.close()  # type: ignore[attr-defined]


# --- beginning and end ------------------------------------------------------------------------------------------


def test_stopping_ends_streams_threads_and_the_socket(socket_folder: Path) -> None:
    before = threading.active_count()
    path = socket_folder / "s"
    beats: list[int] = []
    ended: list[bool] = []
    running = StatusServer(FakeControl(), FakeRecords(), path, Groups("x", "x"), beat=lambda: beats.append(1))
    running.start()
    stream = StatusClient(path).events(since=0)
    waiting = threading.Thread(target=lambda: ended.append(_ends(stream)))
    waiting.start()
    until = time.monotonic() + 10
    while not running._watch.wanted.is_set() and time.monotonic() < until:
        StatusClient(path).snapshot()
    running.stop()
    waiting.join(10)
    assert ended == [True]
    assert threading.active_count() == before
    assert not path.exists()
    assert beats


def test_a_listening_socket_from_systemd_is_served(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = socket_folder / "s"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen()
        monkeypatch.setattr("station.notify.FIRST_FD", os.dup(theirs.fileno()))
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "status")
    running = StatusServer(FakeControl(), FakeRecords(), listen_fds()["status"], Groups("x", "x"))
    running.start()
    assert StatusClient(path).snapshot().station.name == "line-1"
    running.stop()
    assert path.exists()  # it is systemd's
    assert "LISTEN_FDS" not in os.environ


def test_a_client_is_idle_only_while_nothing_is_owed_to_it() -> None:
    left, right = socket.socketpair()
    with left, right:
        client = connection.Client(left, 0.0)
        assert client.idle
        client.exchange.receive(b"GET /v1/st")
        assert not client.idle


def _ends(stream: Iterator[EventView]) -> bool:
    with pytest.raises(PeerUnavailable):
        next(stream)
    return True
