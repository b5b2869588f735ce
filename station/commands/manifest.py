"""`hallmark manifest`: element vendors' signed lists of the keys and certificates that they put into their elements."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from station.commands.pool import hand_over, print_lot, signers_of
from station.commands.source import Source
from station.config import load_configuration
from station.stock_files import read_vendor_manifest
from station.stock_import import vendor_lot
from station.store.stock import PRELOADED

HELP: Final = "import element vendors' manifests, and list which of their elements were seen"
FINE: Final = 0


def arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    bring = sub.add_parser("import", help="read a manifest; its signature stands beside it")
    bring.add_argument(
        "path", type=Path, metavar="FILE", help="the manifest (JSON); FILE.sig is its signature"
    )
    show = sub.add_parser("list", help="manifests, and how many of their elements were not seen yet")
    show.add_argument("--json", action="store_true", help="for scripts: one manifest a line")


def run(args: argparse.Namespace) -> int:
    if args.what == "list":
        with Source(args.paths) as source:
            for view in source.lots():
                if view.kind == PRELOADED:
                    print_lot(view, json=args.json, low=0)
        return FINE
    configuration = load_configuration(args.paths)
    signers = signers_of(configuration, configuration.file.trust.preloaded_signers)
    found, sha256, signer = read_vendor_manifest(args.path, signers, unsigned=configuration.bench)
    hand_over(args, vendor_lot(found, sha256, signer))
    print(f"manifest {found.lot} of {found.vendor}: {len(found.elements)} elements")
    return FINE
