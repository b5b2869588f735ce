"""`hallmark orders`: import signed work orders, see how far they are, reckon, end one early; and sign one."""

from __future__ import annotations

import argparse
import base64
import datetime as dt
import json
from pathlib import Path
from typing import Final

import msgspec

from hal.errors import PeerUnavailable
from station.commands.source import change
from station.config import Configuration, load_configuration
from station.images import ImageStore
from station.order_book import OrderBook, OrderView, Reckoning
from station.paths import Paths
from station.signed import load_private_key, write_signed
from station.signer_client import SignerClient
from station.status.client import StatusClient, segment
from station.store import Store
from station.work_order import SIZE_LIMIT, parse_order, read_order

HELP: Final = "signed work orders: import, list, reconcile, close, sign"
FINE, NOT_FINE = 0, 1


class _Orders(msgspec.Struct):
    orders: list[OrderView]


class _Reckonings(msgspec.Struct):
    orders: list[Reckoning]


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    take = actions.add_parser("import", help="take in FILE and FILE.sig; the same again changes nothing")
    take.add_argument("file", type=Path, metavar="FILE")
    listing = actions.add_parser("list", help="all orders and how far they are")
    listing.add_argument("--json", action="store_true", help="for scripts")
    reconcile = actions.add_parser(
        "reconcile", help="count the signer's signatures against the station's records; 1 when they differ"
    )
    reconcile.add_argument("--json", action="store_true", help="for scripts")
    close = actions.add_parser("close", help="end an order early: nothing new is begun for it")
    close.add_argument("order", metavar="ID")
    close.add_argument("--reason", required=True, metavar="TEXT", help="why; it goes on the audit trail")
    sign = actions.add_parser("sign", help="where orders are made: check FILE's form and write FILE.sig")
    sign.add_argument("file", type=Path, metavar="FILE")
    sign.add_argument(
        "--key", type=Path, required=True, help="private key, PEM, whose public part stations trust"
    )
    parser.set_defaults(json=False)


def run(args: argparse.Namespace) -> int:
    if args.action == "sign":
        return _sign(args.file, args.key)
    if args.action == "import":
        return _import(args.paths, args.file)
    if args.action == "close":
        path = f"/v1/orders/{segment(args.order)}/close"
        change(
            args.paths,
            path,
            lambda store, by: store.close_order(args.order, args.reason, by),
            reason=args.reason,
        )
        return FINE
    if args.action == "reconcile":
        return _reconcile(args)
    return _list(args)


def _sign(file: Path, key: Path) -> int:
    data = file.read_bytes()[: SIZE_LIMIT + 1]
    order = parse_order(data)
    write_signed(file, data, load_private_key(key))
    print(f"Signed {order.id}: {order.quantity} of {order.sku} until {order.until:%Y-%m-%d %H:%MZ}.")
    return FINE


def _import(paths: Paths, file: Path) -> int:
    data, signature = read_order(file)
    order = parse_order(data)
    given = {
        name: base64.b64encode(octets).decode()
        for name, octets in (("order", data), ("signature", signature))
    }
    change(
        paths,
        "/v1/orders",
        lambda store, by: _book(load_configuration(paths, drivers=False), store).take(data, signature, by),
        **given,
    )
    print(f"Imported {order.id}: {order.quantity} of {order.sku}.")
    return FINE


def _list(args: argparse.Namespace) -> int:
    try:
        found = StatusClient(args.paths.status_socket).get("/v1/orders", _Orders).orders
    except PeerUnavailable:
        if not args.paths.database.exists():
            raise
        configuration = load_configuration(args.paths, drivers=False)
        with Store.open(args.paths.database, readonly=True) as store:
            found = _book(configuration, store).listed()
    if args.json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
        return FINE
    for order in found:
        until = f", until {_day(order.until_at)}" if order.until_at is not None else ""
        scrapped = f", {order.given_back} scrapped" if order.given_back else ""
        kind = "" if order.signed else " (station.toml)"
        print(
            f"{order.id:<16} {order.sku:<16} {order.state:<9} {order.passed} of {order.quantity} passed{scrapped},"
            f" {order.attempts} visits{until}{kind}"
        )
        if order.detail:
            print(f"                 {order.detail}")
    return FINE


def _reconcile(args: argparse.Namespace) -> int:
    found = StatusClient(args.paths.status_socket).get("/v1/orders/reconcile", _Reckonings).orders
    if args.json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        for item in found:
            print(
                f"{item.order}: {item.signatures} signatures = {item.shipped} shipped + {item.scrapped} scrapped"
                f" + {item.rework} rework + {item.pending} pending"
                + (f", and {item.drift:+d} that nothing explains" if item.drift else "")
            )
            if item.drift:
                answer = f"answered: {item.decided}" if item.decided else "waits for an engineer"
                print(f"    decision {item.decision} {answer}; see `hallmark decisions`")
        if not found:
            print("No signed work orders.")
    return NOT_FINE if any(item.drift for item in found) else FINE


def _book(configuration: Configuration, store: Store) -> OrderBook:
    file = configuration.file
    return OrderBook(
        store,
        SignerClient(configuration.paths.signer_socket),
        ImageStore(configuration.path(file.trust.images), configuration.path(file.trust.firmware)),
        file.station.name,
        configuration.path(file.orders.keys),
        required=configuration.orders_required,
    )


def _day(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%MZ")
