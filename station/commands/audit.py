"""`hallmark audit`: the audit trail: event by event, and for those who check it: exports, checkpoints and proofs."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import time
from collections.abc import Callable
from typing import Final

import msgspec

from hal.errors import ConfigError, PeerUnavailable, quote
from station.commands.source import Source
from station.commands.units import moment
from station.config import load_configuration
from station.signer import ledger, trails
from station.status.view import EventView
from station.store import Store

HELP: Final = "show the audit trail; export, sign, prove and verify it"
FINE: Final = 0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", type=int, default=0, metavar="N", help="only events with a number over N")
    parser.add_argument("--follow", action="store_true", help="go on as events come, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="for scripts: one event a line")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    anew = actions.add_parser(
        "new-trail", help="begin a new trail after the store was replaced or restored on purpose"
    )
    anew.add_argument("--reason", required=True, metavar="TEXT", help="why, for the record")


def run(args: argparse.Namespace) -> int:
    return _ACTIONS[args.action](args)


def _show(args: argparse.Namespace) -> int:
    with Source(args.paths) as source:
        for event in source.follow(args.since) if args.follow else source.events(args.since):
            line = msgspec.json.encode(event) if args.json else text(event).encode()
            sys.stdout.buffer.write(line + b"\n")
            if args.follow:
                sys.stdout.flush()
    return FINE


def _new_trail(args: argparse.Namespace) -> int:
    """The signer's memory and the store's, one after the other: a crash in between is mended by running it again."""
    if not args.reason.strip():
        raise ConfigError("say why with --reason: auditors will ask", hint="See `hallmark audit --help`.")
    load_configuration(args.paths, drivers=False)
    if not args.paths.database.exists():
        raise PeerUnavailable(f"there is no store at {args.paths.database}")
    by = f"{getpass.getuser()} (uid {os.getuid()})"
    with Store.open(args.paths.database) as store, ledger.sole_user(args.paths.signer_state):
        with ledger.opened(args.paths.signer_state) as book, book.transaction() as db:
            closed = trails.close(db, f"{args.reason} (by {by})", int(time.time()))
        store.begin_trail(args.reason, by)
    until = f"{closed.origin}, {closed.size} records" if closed else "none was signed"
    print(f"Ended: {until}. The next checkpoint begins another trail; all records of this store stay in it.")
    return FINE


_ACTIONS: Final[dict[str | None, Callable[[argparse.Namespace], int]]] = {
    None: _show,
    "new-trail": _new_trail,
}


def text(event: EventView) -> str:
    """One event on one line, safe for a terminal."""
    where = " ".join(part for part in (event.nest, event.unit, event.step) if part)
    detail = " ".join(
        f"{name}={quote(value, 200) if isinstance(value, str) else value}"
        for name, value in event.detail.items()
    )
    return f"{event.seq:>8}  {moment(event.at)}  {event.kind:<18} {where}  {detail}".rstrip()
