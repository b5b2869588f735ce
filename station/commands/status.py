"""`hallmark status`: the running station on one screen, as JSON, live or as a picture; pause, resume, drain, retry.

Exit status: 0 all is well, 1 something needs a person (or the station said no), 3 no station answers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from rich.console import Console

from station.status import watch, wording
from station.status.client import StatusClient, decode
from station.status.view import Snapshot

HELP: Final = "show the running station: once, as JSON, or live with --watch"
FINE: Final = 0
ATTENTION: Final = 1


def arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="all of it as JSON, as /v1/status gives it")
    what.add_argument(
        "--watch", action="store_true", help="live until q or Ctrl-C; without a terminal, a line a change"
    )
    what.add_argument("--svg", metavar="FILE", type=Path, help="the panel as it is now, as a picture")
    parser.add_argument(
        "--columns",
        metavar="N",
        type=int,
        default=watch.PICTURE_COLUMNS,
        help="how wide --svg draws it (150)",
    )
    what.add_argument("--pause", action="store_true", help="begin no new visits (operators)")
    what.add_argument("--resume", action="store_true", help="begin visits again (operators)")
    what.add_argument(
        "--drain", action="store_true", help="pause, and say when the last nest is free (operators)"
    )
    what.add_argument(
        "--retry", metavar="NEST", help="begin another visit of the board in the nest (operators)"
    )


def run(args: argparse.Namespace) -> int:
    client = StatusClient(args.paths.status_socket)
    if args.json:
        body = client.fetch("GET", "/v1/status")
        sys.stdout.write(body.decode())
        return _verdict(decode(body, Snapshot))
    if args.pause or args.resume or args.drain:
        word = "pause" if args.pause else "resume" if args.resume else "drain"
        client.post(f"/v1/{word}")
    elif args.retry is not None:
        client.post("/v1/retry", nest=args.retry)
    elif args.watch:
        keyboard, out = watch.standard_streams()
        if out.isatty():
            return _verdict(watch.on_terminal(client, Console(), keyboard))
        return _verdict(watch.as_lines(client, out))
    snapshot = client.snapshot()
    if args.svg is not None:
        watch.save_svg(snapshot, args.svg, max(40, args.columns))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in wording.summary(snapshot)))
    return _verdict(snapshot)


def _verdict(snapshot: Snapshot) -> int:
    return ATTENTION if wording.attention(snapshot) else FINE
