"""`hallmark pool`: certificates that a PKI made in advance: import a lot, see what is left, judge it again."""

from __future__ import annotations

import argparse
import datetime as dt
import re
import sys
from pathlib import Path
from typing import Final

import msgspec

from hal.errors import CertificateUntrusted, ConfigError, quote
from hal.secret import Secret
from station import foreign
from station.commands.source import Source, change
from station.commands.units import moment
from station.config import Configuration, load_configuration
from station.foreign import Terms
from station.signed import Signer, load_signers, read_bounded
from station.signer_client import SignerClient
from station.stock_files import read_pool
from station.stock_import import StockFile, leave, pool_lot, take
from station.store import Store
from station.store.stock import PRELOADED, LotView
from station.trust_store import load_anchors

HELP: Final = "import certificates that were made in advance, list what is left of them, judge them again"
PASSWORD_LIMIT: Final = 1024
LOT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CHECK_LIMIT: Final = 1_000_000
FINE, ATTENTION = 0, 1


def arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    bring = sub.add_parser("import", help="read a lot: certificates, with their private keys or without")
    bring.add_argument(
        "path", type=Path, metavar="FOLDER|FILE", help="PEM, DER, PKCS#12, and pool.json with its .sig"
    )
    bring.add_argument("--lot", required=True, metavar="NAME", help="the lot's name, as recipes draw from it")
    bring.add_argument(
        "--password-file", type=Path, metavar="FILE", help="holds the password of PKCS#12 and encrypted keys"
    )
    show = sub.add_parser("list", help="lots, and what is left of each")
    show.add_argument("--json", action="store_true", help="for scripts: one lot a line")
    check = sub.add_parser("check", help="judge what is left by today's CAs and dates")
    check.add_argument("--json", action="store_true", help="for scripts: one lot a line")


def run(args: argparse.Namespace) -> int:
    """0 fine; 1 when a lot is low or holds what would be refused; 2 for files and configuration."""
    configuration = load_configuration(args.paths)
    if args.what == "import":
        return _import(args, configuration)
    if args.what == "check":
        return _check(args, configuration)
    low = configuration.file.pool.low_water
    with Source(args.paths) as source:
        found = [view for view in source.lots() if view.kind != PRELOADED]
    for view in found:
        print_lot(view, json=args.json, low=low)
    return ATTENTION if any(view.free < low for view in found) else FINE


def print_lot(view: LotView, *, json: bool, low: int) -> None:
    if json:
        sys.stdout.buffer.write(msgspec.json.encode(view) + b"\n")
        sys.stdout.buffer.flush()
        return
    state = "LOW" if view.free < low else ""
    ends = f", first ends {moment(view.first_ends)[:10]}" if view.first_ends else ""
    signed = f"signed by {view.signer}" if view.signer else "not signed"
    print(
        f"{view.lot:<24} {view.kind:<12} {view.free:>7} of {view.entries} left, {view.installed} installed{ends},"
        f" {signed} {state}".rstrip()
    )


def _import(args: argparse.Namespace, configuration: Configuration) -> int:
    password = None
    if args.password_file is not None:
        password = Secret(read_bounded(args.password_file, PASSWORD_LIMIT, ConfigError).rstrip(b"\r\n"))
    if not LOT.fullmatch(args.lot):
        raise ConfigError(
            f"{quote(args.lot)} can't be a lot's name: letters, digits, dot, dash, underscore, at most 64"
        )
    path, section = args.path.absolute(), configuration.file.trust
    signers = signers_of(configuration, section.pool_signers)
    delivery = read_pool(path, args.lot, password, signers, unsigned=configuration.bench)
    signer = SignerClient(configuration.paths.signer_socket)
    content = pool_lot(delivery, path.name, _terms(configuration), dt.datetime.now(dt.UTC), signer.wrap)
    hand_over(args, content)
    keys = (
        "with their private keys, which are wrapped now: destroy the files"
        if content.entries[0].wrapped
        else ""
    )
    print(f"lot {args.lot}: {len(content.entries)} certificates {keys}".rstrip())
    return FINE


def signers_of(configuration: Configuration, relative: str) -> tuple[Signer, ...]:
    """Those whose manifests count. On a bench there may be none."""
    path = configuration.path(relative)
    if configuration.bench and not path.exists():
        return ()
    return load_signers(path)


def hand_over(args: argparse.Namespace, content: StockFile) -> None:
    """To the station that runs, or into its store when none does."""
    if not args.paths.database.exists():
        with Store.open(args.paths.database):
            pass  # a station that has not begun yet may be given its stock
    name = leave(args.paths, content)
    change(args.paths, "/v1/stock", lambda store, by: take(args.paths, store, name, by), file=name)


def _terms(configuration: Configuration) -> Terms:
    anchors = load_anchors(configuration.path(configuration.file.trust.pool))
    return Terms(anchors, configuration.file.pool.minimum_days)


class _Judged(msgspec.Struct):
    lot: str
    free: int
    refused: int
    reason: str
    low: bool


def _check(args: argparse.Namespace, configuration: Configuration) -> int:
    """Chains are read from the database itself: a read-only connection, which doesn't disturb a station that runs."""
    if not args.paths.database.exists():
        return FINE
    terms, now = _terms(configuration), dt.datetime.now(dt.UTC)
    attention = False
    with Store.open(args.paths.database, readonly=True) as store:
        for view in store.lots():
            if view.kind == PRELOADED:
                continue
            refused, reason = _refused(store.free_chains(view.lot, CHECK_LIMIT), terms, now)
            judged = _Judged(
                view.lot, view.free, refused, reason, view.free < configuration.file.pool.low_water
            )
            attention = attention or bool(refused) or judged.low
            if args.json:
                sys.stdout.buffer.write(msgspec.json.encode(judged) + b"\n")
                continue
            verdict = f"{refused} would be refused: {quote(reason, 200)}" if refused else "fine"
            print(f"{view.lot:<24} {view.free:>7} left, {verdict}{', LOW' if judged.low else ''}")
    return ATTENTION if attention else FINE


def _refused(chains: list[list[bytes]], terms: Terms, now: dt.datetime) -> tuple[int, str]:
    count, first = 0, ""
    for chain in chains:
        try:
            foreign.judge(chain, terms, now)
        except CertificateUntrusted as error:
            count, first = count + 1, first or str(error)
    return count, first
