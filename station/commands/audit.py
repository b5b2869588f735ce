"""`hallmark audit`: the audit trail, event by event, from a number on; with --follow as it grows."""

from __future__ import annotations

import argparse
import sys
from typing import Final

import msgspec

from hal.errors import quote
from station.commands.source import Source
from station.commands.units import moment
from station.status.view import EventView

HELP: Final = "show the audit trail"
FINE: Final = 0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", type=int, default=0, metavar="N", help="only events with a number over N")
    parser.add_argument("--follow", action="store_true", help="go on as events come, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="for scripts: one event a line")


def run(args: argparse.Namespace) -> int:
    with Source(args.paths) as source:
        for event in source.follow(args.since) if args.follow else source.events(args.since):
            line = msgspec.json.encode(event) if args.json else text(event).encode()
            sys.stdout.buffer.write(line + b"\n")
            if args.follow:
                sys.stdout.flush()
    return FINE


def text(event: EventView) -> str:
    """One event on one line, safe for a terminal."""
    where = " ".join(part for part in (event.nest, event.unit, event.step) if part)
    detail = " ".join(
        f"{name}={quote(value, 200) if isinstance(value, str) else value}"
        for name, value in event.detail.items()
    )
    return f"{event.seq:>8}  {moment(event.at)}  {event.kind:<18} {where}  {detail}".rstrip()
