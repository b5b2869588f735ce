"""The HTTP exchange under octets of any kind: never an exception, bounded memory, and the next client is served."""

from __future__ import annotations

import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from station.status.http import BODY_LIMIT, HEAD_LIMIT, Answer, Exchange, Fate, Request
from tests.fixtures_status import Served
from tests.status_probes import read_answer, talk

GET = b"GET /v1/nests HTTP/1.1\r\nHost: x\r\n\r\n"
PIECES = st.sampled_from(
    [b"GET ", b"POST ", b"/v1/status", b" HTTP/1.1", b"\r\n", b"Host: x\r\n", b"Content-Length: 5\r\n", b"\x00",
     b"\xff",
     b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n", b"Upgrade: h2c\r\n", b"CONNECT ",
     b"HEAD ", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"0\r\n\r\n", b"\r\n\r\n", GET]
)  # fmt: skip


@given(st.lists(st.one_of(PIECES, st.binary(max_size=40)), max_size=20))
@settings(max_examples=300, deadline=None)
def test_no_octets_break_an_exchange(chunks: list[bytes]) -> None:
    exchange = Exchange()
    for chunk in [*chunks, b""]:
        request = exchange.receive(chunk) if not exchange.broken else None
        while request is not None:
            exchange.answer(Answer.json({"target": request.target}))
            exchange.out.clear()
            request = exchange.next_request() if exchange.fate() is Fate.NEXT else None
        assert len(exchange.out) < 4096


@given(st.integers(1, len(GET) - 1))
def test_a_request_in_two_parts_is_one_request(at: int) -> None:
    exchange = Exchange()
    assert exchange.receive(GET[:at]) is None
    assert exchange.begun
    assert exchange.receive(GET[at:]) == Request("GET", "/v1/nests")


@given(data=st.binary(max_size=200))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_on_the_socket_leaves_the_server_serving(served: Served, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(served.path))
        client.sendall(data + b"\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        read_answer(client)
    assert talk(served.path, GET).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v1/nests HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /" + b"a" * HEAD_LIMIT, 431),
        (
            b"POST /v1/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + b"a" * (BODY_LIMIT + 1),
            413,
        ),
        (b"POST /v1/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n[1]", 400),
        (b"GET http://elsewhere/v1/nests HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
def test_what_is_not_understood_is_refused_with_its_status(
    served: Served, request_bytes: bytes, status: int
) -> None:
    answer = talk(served.path, request_bytes)
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    assert b'"code":"BadRequest"' in answer


def test_requests_sent_at_once_are_answered_in_order(served: Served) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(served.path))
        client.sendall(GET + GET.replace(b"nests", b"outbox") + GET.replace(b"GET", b"HEAD"))
        first, rest = read_answer(client), b""
        if first.count(b"HTTP/1.1") == 1:
            rest = read_answer(client)
        said = first + rest
        while said.count(b"HTTP/1.1") < 3:
            said += client.recv(65536)
    assert said.index(b'"nests"') < said.index(b'"queued"') < said.index(b"HTTP/1.1 405")


def test_http_1_0_gets_its_answer_and_an_end(served: Served) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(served.path))
        client.sendall(b"GET /v1/nests HTTP/1.0\r\n\r\n")
        said = b""
        while data := client.recv(65536):
            said += data
    assert b"connection: close" in said.lower()
    assert b'"nests"' in said
