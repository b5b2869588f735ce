"""`hallmark uploader`: the process that has the network and the cloud credentials."""

from __future__ import annotations

import argparse
from typing import Final

from station import logs
from station.config import load_configuration
from station.uploader import process

HELP: Final = "run the uploader: enrollments from the outbox to the sinks"


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    logs.configure("uploader")
    return process.run(load_configuration(args.paths, drivers=False))
