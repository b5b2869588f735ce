"""One structured log for every process: structlog, one event a line, with unit, nest and step where they are known.

To journald's own fields under systemd, as JSON lines into a pipe, readable on a terminal; a worker's go to the station.
Nothing secret comes through: what may be written is decided in station/redaction.py, before any output sees it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import threading
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final, Protocol

import structlog

from hal.errors import HallmarkError
from station import redaction
from station.redaction import Event

Scalar = str | int | float | bool | None
Forward = Callable[[str, str, dict[str, Scalar]], object]
"""`(level, event, fields)`: how a worker's log reaches the station."""

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")
JOURNAL_PATIENCE: Final = 1.0
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog(3)'s, which journald uses."""
_JOURNAL_NAME: Final = re.compile(r"[^A-Z0-9_]")


class Output(Protocol):
    """Where finished events go. Never raises: a log that can't be written must not stop a unit."""

    def write(self, event: Event) -> None: ...


def configure(
    process: str,
    *,
    level: str = "info",
    style: str | None = None,
    stream: IO[str] | None = None,
    forward: Forward | None = None,
) -> None:
    """Sets up logging for this process ("station", "signer" ...); afterwards `structlog.get_logger()` is all one needs.

    `style`: "journal", "json" or "text"; None chooses by where stderr goes. `forward` sends events on instead. The
    standard library's warnings and log records (of libraries, from WARNING up) and uncaught exceptions come here too.
    """
    stream = stream or sys.stderr
    output: Output
    if forward is not None:
        output = _Forwarding(forward)
    else:
        style = style or ("journal" if _under_journald(stream) else "text" if stream.isatty() else "json")
        output = (
            Journal(process) if style == "journal" else Text(stream) if style == "text" else Lines(stream)
        )

    def finish(_logger: object, _method: str, event: Event) -> Event:
        event["process"] = process
        output.write(event)
        raise structlog.DropEvent  # written; structlog's own output has nothing left to do

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            redaction.exception,
            redaction.scrub,
            finish,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def replay(level: str, event: str, fields: Mapping[str, Scalar], **known: Scalar) -> None:
    """Writes an event that another process forwarded. `known` (nest, unit) is ours and wins over what it claims."""
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    reserved = {"event", "level", "timestamp", "process", "exc_info", "stack_info"}
    claimed = {name: value for name, value in fields.items() if name not in reserved}
    structlog.get_logger().log(number, "%s", event, **{**claimed, **known})


# --- where it goes ---------------------------------------------------------------------------------------------


class _Stream:
    """Whole lines to a text stream; a reader that went away is not our trouble."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def put(self, line: str) -> None:
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # ValueError: closed, at the very end of a process
                return


class Lines:
    """JSON, one object a line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = _Stream(stream)

    def write(self, event: Event) -> None:
        first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
        self._stream.put(json.dumps({**first, **event}, ensure_ascii=False, default=str))


class Text:
    """For eyes: structlog's columns, in colour on a terminal."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = _Stream(stream)
        self._render = structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )

    def write(self, event: Event) -> None:
        self._stream.put(str(self._render(None, "", event)))


class Journal:
    """journald's native protocol: one datagram of fields; JSON lines on stderr when it doesn't take one."""

    def __init__(self, process: str, path: Path = JOURNAL_SOCKET, stream: IO[str] | None = None) -> None:
        self._identifier, self._path = f"hallmark-{process}", path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(JOURNAL_PATIENCE)
        self._fallback = Lines(stream or sys.stderr)

    def write(self, event: Event) -> None:
        try:
            self._socket.sendto(encode_journal(self._identifier, event), str(self._path))
        except OSError:
            self._fallback.write(event)

    def close(self) -> None:
        self._socket.close()


class _Forwarding:
    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    def write(self, event: Event) -> None:
        level, text = str(event.pop("level", "info")), str(event.pop("event", ""))
        fields = {name: _flat(value) for name, value in event.items() if name not in ("timestamp", "process")}
        try:
            self._forward(level, text, fields)
        except (OSError, HallmarkError):
            return  # the station is gone, and so are we in a moment


def encode_journal(identifier: str, event: Mapping[str, Any]) -> bytes:
    """One datagram of systemd's native journal protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), from a scrubbed event.

    unit, nest, step and all other fields become HALLMARK_UNIT and so on. Texts hold no newline after `scrub`, so that
    the simple form NAME=value suffices. MESSAGE repeats the fields: it is all that plain `journalctl` shows.
    """
    extra = {
        name: _flat(value) for name, value in event.items() if name not in ("event", "level", "timestamp")
    }
    extra.pop("process", None)
    shown = " ".join(f"{name}={value}" for name, value in extra.items() if value not in (None, ""))
    fields = {
        "MESSAGE": f"{event.get('event', '')} {shown}".strip(),
        "PRIORITY": str(PRIORITIES.get(str(event.get("level")), 6)),
        "SYSLOG_IDENTIFIER": identifier,
    }
    for name, value in extra.items():
        if value is not None:
            fields[f"HALLMARK_{_JOURNAL_NAME.sub('_', name.upper())}"[:64]] = str(value)
    return "".join(f"{name}={value}\n" for name, value in fields.items()).encode("utf-8", "backslashreplace")


def _flat(value: Any) -> Scalar:
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value, default=str)


def _under_journald(stream: IO[str]) -> bool:
    """Whether the stream is the one that systemd joined to the journal: $JOURNAL_STREAM names its device and inode."""
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}" and JOURNAL_SOCKET.exists()


# --- what others log -------------------------------------------------------------------------------------------


class _Bridge(logging.Handler):
    """Log records of libraries, as events."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().log(
            max(record.levelno, logging.WARNING),
            "%s",
            record.getMessage(),
            library=record.name,
            exc_info=error,
        )


def _uncaught(
    kind: type[BaseException], error: BaseException, _traceback: types.TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger().critical("an error that nobody expected ends this process", exc_info=error)


def _uncaught_in_thread(about: threading.ExceptHookArgs) -> None:
    name = about.thread.name if about.thread else ""
    structlog.get_logger().critical(
        "an error that nobody expected ends a thread", thread=name, exc_info=about.exc_value
    )
