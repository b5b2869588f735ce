"""`hallmark signer`: the process that holds the CA token."""

from __future__ import annotations

import argparse
from typing import Final

from station import logs
from station.signer import process
from station.signer.pin import PinDescriptor

HELP: Final = "run the signer, the one process that has the CA token"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pin-fd",
        type=int,
        metavar="N",
        help="read the token's PIN from this file descriptor, not from ca-pin",
    )


def run(args: argparse.Namespace) -> int:
    logs.configure("signer")
    pin = None if args.pin_fd is None else PinDescriptor(args.pin_fd)
    return process.run(process.signer_configuration(args.paths), pin)
