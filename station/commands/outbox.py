"""`hallmark outbox`: what waits for upload, what a service refused; making a refused item due again."""

from __future__ import annotations

import argparse
import sys
from typing import Final

import msgspec

from hal.errors import ConfigError, quote
from station.commands.source import Source, change
from station.commands.units import moment
from station.store.outbox import ENROLLMENT

HELP: Final = "list what waits for upload or was refused, and try refused items again"
STATES: Final = ("queued", "parked", "acknowledged", "superseded")
FINE: Final = 0
ATTENTION: Final = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "hallmark outbox [--json] [list [--state STATE]] | retry SEQ"
    parser.add_argument("verb", nargs="?", choices=("list", "retry"), default="list")
    parser.add_argument("seq", nargs="?", type=int, metavar="SEQ", help="the number of a parked row")
    parser.add_argument(
        "--state",
        choices=(*STATES, "all"),
        help="only these (without it: enrollments that are queued or parked)",
    )
    parser.add_argument("--json", action="store_true", help="for scripts: one row a line")


def run(args: argparse.Namespace) -> int:
    """1 when something is parked: it waits for a person."""
    if args.verb == "retry":
        if args.seq is None:
            raise ConfigError("retry needs the number of a parked row", hint="See `hallmark outbox`.")
        change(args.paths, f"/v1/outbox/{args.seq}/retry", lambda store, by: store.requeue(args.seq, by))
        return FINE
    if args.seq is not None:
        raise ConfigError("a list takes no number", hint="See `hallmark outbox --help`.")
    states = ("parked", "queued") if args.state is None else (None,) if args.state == "all" else (args.state,)
    parked = False
    with Source(args.paths) as source:
        for state in states:
            for row in source.outbox(state):
                if row.kind != ENROLLMENT and args.state is None:
                    continue
                parked = parked or row.state == "parked"
                if args.json:
                    sys.stdout.buffer.write(msgspec.json.encode(row) + b"\n")
                    continue
                problem = f"  {row.code}: {quote(row.message, 200)}" if row.code else ""
                when = moment(row.closed_at or row.queued_at)
                print(
                    f"{row.seq:>8}  {row.registration_id}  {row.sink}  {row.state}  {row.tries} tries  {when}{problem}"
                )
                if row.state == "parked" and row.hint:
                    print(f"          What to do: {quote(row.hint, 300)}")
    return ATTENTION if parked else FINE
