"""Secrets can't get into the log, on any output and by any way in; and what is logged is bounded and printable."""

from __future__ import annotations

import enum
import io
import json
import logging
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import DeadlineExceeded, PinRejected
from hal.secret import Secret
from station import logs, redaction
from station.messages import Auths, Log
from station.redaction import REDACTED, TEXT_LIMIT, clean, clean_text

CANARY = b"tr0ub4dor&3-canary"
TRACES = (CANARY.decode(), CANARY.hex(), repr(CANARY)[2:-1])


@dataclass
class Holder:
    auth: bytes
    secret: Secret


class Colour(enum.Enum):
    RED = "red"


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    hooks = sys.excepthook, threading.excepthook
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    sys.excepthook, threading.excepthook = hooks
    root.handlers[:], root.level = handlers, level


def written(**choices: Any) -> tuple[io.StringIO, structlog.stdlib.BoundLogger]:
    stream = io.StringIO()
    logs.configure("test", stream=stream, **choices)
    return stream, structlog.get_logger()


WAYS_IN: list[dict[str, Any]] = [
    {"value": Secret(CANARY)},
    {"value": CANARY},
    {"value": bytearray(CANARY)},
    {"value": memoryview(CANARY)},
    {"value": {"deep": [{"deeper": (Secret(CANARY), CANARY)}]}},
    {"value": {Secret(CANARY): 1}},
    {"value": {CANARY: 1}},
    {"value": Holder(CANARY, Secret(CANARY))},
    {"value": Auths({"owner": CANARY})},
    {"value": {CANARY, b"other"}},
    {"value": f"auth is {CANARY!r}"},
    {"value": ValueError(CANARY)},
    {"value": ValueError({"auth": CANARY})},
    {"pin": CANARY.decode()},
    {"user_pin": CANARY.decode()},
    {"so_pin": CANARY.decode()},
    {"userPin": CANARY.decode()},
    {"lockout_auth": CANARY.hex()},
    {"settings": {"shared_access_key": CANARY.decode()}},
    {"settings": {"SharedAccessKey": CANARY.decode()}},
    {"headers": {"Authorization": CANARY.decode()}},
    {"url": f"HostName=x;SharedAccessKeyName=y;SharedAccessKey={CANARY.decode()}"},
    {"header": f"SharedAccessSignature sr=x&sig={CANARY.decode()}&se=1"},
    {"header": f"Bearer {CANARY.decode()}"},
    {"text": f"-----BEGIN EC PRIVATE KEY-----\n{CANARY.decode()}\n-----END EC PRIVATE KEY-----"},
    {"text": f"-----BEGIN PRIVATE KEY-----\n{CANARY.decode()}"},
]


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("fields", WAYS_IN, ids=lambda fields: str(next(iter(fields))))
def test_no_way_in_lets_a_secret_through(style: str, fields: dict[str, Any]) -> None:
    stream, log = written(style=style)
    log.warning("something happened", **fields)
    with structlog.contextvars.bound_contextvars(**fields):
        log.info("and again")
    said = stream.getvalue()
    assert "something happened" in said
    for trace in TRACES:
        assert trace not in said


@pytest.mark.parametrize("fields", WAYS_IN, ids=lambda fields: str(next(iter(fields))))
def test_no_way_in_reaches_the_journal_or_the_station(fields: dict[str, Any]) -> None:
    sent: list[object] = []
    _, log = written(forward=lambda *args: sent.append(args))
    log.warning("something happened", **fields)
    datagram = logs.encode_journal("test", redaction.scrub(None, "", {"event": "x", **fields}))
    for trace in TRACES:
        assert trace not in repr(sent)
        assert trace.encode() not in datagram
    assert len(sent) == 1


def test_exceptions_come_without_locals_and_without_source_lines() -> None:
    stream, log = written(style="json")

    def sign(pin: str) -> None:
        held = pin.encode()
        raise RuntimeError("no luck") from PinRejected(f"refused {held!r}")

    try:
        sign(CANARY.decode())
    except RuntimeError:
        log.exception("signing failed", unit="u-1")
    said = stream.getvalue()
    event = json.loads(said)
    assert event["exception"] == "RuntimeError: no luck"
    assert event["causes"][0].startswith("PinRejected: refused")
    assert event["where"][-1].endswith(" sign")
    assert not any(trace in said for trace in TRACES)


def test_an_uncaught_error_is_logged_without_locals() -> None:
    stream, _ = written(style="json")

    def doomed() -> None:
        held = Secret(CANARY).reveal().decode()
        raise ValueError(len(held))

    thread = threading.Thread(target=doomed, name="nest-A")
    thread.start()
    thread.join()
    event = json.loads(stream.getvalue())
    assert (event["level"], event["thread"]) == ("critical", "nest-A")
    assert not any(trace in stream.getvalue() for trace in TRACES)


def test_one_event_is_one_line_with_unit_nest_and_step() -> None:
    stream, log = written(style="json")
    with structlog.contextvars.bound_contextvars(unit="u-1", nest="A", step="flash"):
        log.info("image\nwritten", octets=7, place=Path("/dev/x"), colour=Colour.RED)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    event = json.loads(lines[0])
    assert {key: event[key] for key in ("unit", "nest", "step", "octets", "place", "colour", "process")} == {
        "unit": "u-1", "nest": "A", "step": "flash", "octets": 7, "place": "/dev/x", "colour": "red", "process": "test",
    }  # fmt: skip
    assert event["event"] == "image\\nwritten"
    assert event["timestamp"].endswith("Z")


def test_libraries_and_warnings_end_up_in_the_same_log() -> None:
    stream, _ = written(style="json")
    logging.getLogger("urllib3").warning("retrying %s", "x")
    logging.getLogger("urllib3").info("not this")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old ways", UserWarning, stacklevel=1)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert events[0]["event"] == "retrying x"
    assert events[0]["library"] == "urllib3"
    assert "old ways" in events[1]["event"]
    assert len(events) == 2


def test_a_workers_events_arrive_as_messages_and_cannot_claim_another_nest() -> None:
    sent: list[Log] = []
    _, log = written(forward=lambda level, event, fields: sent.append(Log(level, event, fields)))
    log.error("no answer", nest="Z", error=DeadlineExceeded("late"), list=[1, 2])
    stream, _ = written(style="json")
    for message in sent:
        logs.replay(
            message.level, message.event, {**message.fields, "event": "forged", "level": "x"}, nest="A"
        )
    event = json.loads(stream.getvalue())
    assert (event["nest"], event["event"], event["level"]) == ("A", "no answer", "error")
    assert event["error"] == "DeadlineExceeded: late"
    assert event["list"] == "[1, 2]"


def test_journald_gets_native_fields(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "j"))
        output = logs.Journal("station", tmp_path / "j")
        output.write(
            {"event": "image written", "level": "error", "unit": "u-1", "nest": "A", "step": "flash", "n": 7}
        )
        output.close()
        lines = dict(line.split("=", 1) for line in journal.recv(65536).decode().splitlines())
    assert lines == {
        "MESSAGE": "image written unit=u-1 nest=A step=flash n=7", "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "hallmark-station", "HALLMARK_UNIT": "u-1", "HALLMARK_NEST": "A",
        "HALLMARK_STEP": "flash", "HALLMARK_N": "7",
    }  # fmt: skip


def test_without_a_journal_the_event_goes_to_stderr(tmp_path: Path) -> None:
    stream = io.StringIO()
    output = logs.Journal("station", tmp_path / "none", stream)
    output.write({"event": "still here", "level": "info"})
    output.close()
    assert json.loads(stream.getvalue())["event"] == "still here"


def test_a_reader_that_went_away_stops_nobody() -> None:
    stream, log = written(style="json")
    stream.close()
    log.info("nobody hears this")
    _, log = written(forward=lambda *_: (_ for _ in ()).throw(BrokenPipeError()))
    log.info("nor this")


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=30,
)


@given(Json)
def test_whatever_is_logged_comes_out_as_one_printable_bounded_journal_field(value: object) -> None:
    datagram = logs.encode_journal("t", redaction.scrub(None, "", {"event": "x", "value": value}))
    lines = datagram.decode().split("\n")
    assert all("=" in line for line in lines[:-1])
    assert lines[-1] == ""
    assert len(lines) <= 6


@given(st.text(max_size=3 * TEXT_LIMIT))
def test_text_is_printable_and_bounded(text: str) -> None:
    shown = clean_text(text)
    assert shown.isprintable()
    assert len(shown) <= TEXT_LIMIT


def test_names_that_only_look_like_secrets_are_kept() -> None:
    assert clean("x", "spinning") == "x"
    assert clean("x", "design") == "x"
    assert clean("x", "token") == "x"  # the CA token's label, not a bearer's
    assert clean("x", "pin") == REDACTED
