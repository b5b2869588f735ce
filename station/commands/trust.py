"""`hallmark trust`: which TPM makers are believed: make and sign a bundle, import it, look at it, try it on a list."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hal.errors import ConfigError, EkUntrusted, PeerUnavailable
from station.config import Configuration, load_configuration
from station.signed import SUFFIX, load_private_key, load_signers, read_bounded, write_signed
from station.status.client import StatusClient
from station.store import Store
from station.trust import bundle, ek_list, making
from station.trust.health import WRONG, Ailment, examine
from station.trust.installed import install
from station.trust.preflight import preflight
from station.trust.reading import Certificate
from station.trust.source import load
from station.trust.trust_set import TrustSet

HELP: Final = "which TPM makers are believed: make, import, list and check the trust bundle"
FINE, NOT_FINE = 0, 1


def arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    make = verbs.add_parser("make", help="build and sign a bundle from a folder, where the key is")
    make.add_argument(
        "folder", type=Path, help="a folder for each vendor, with its .pem .crt .cer .der and .crl files"
    )
    make.add_argument(
        "--key", type=Path, required=True, metavar="KEY", help="private key (PEM) that signs it"
    )
    make.add_argument(
        "--serial", type=int, required=True, metavar="N", help="its number: more than the one before"
    )
    make.add_argument("--note", default="", metavar="TEXT", help="for whoever reads it")
    make.add_argument(
        "--out", type=Path, default=Path(bundle.NAME), metavar="FILE", help="default: bundle.json"
    )
    take = verbs.add_parser("import", help="check a bundle and install it; the next board is judged by it")
    take.add_argument("file", type=Path, help="bundle.json, with bundle.json.sig beside it")
    for name, text in (
        ("list", "vendors, roots, intermediates and revocation lists that are believed"),
        ("check", "what ends soon, what is stale; 1 when something counts no more"),
    ):
        verbs.add_parser(name, help=text).add_argument("--json", action="store_true", help="for scripts")
    share = verbs.add_parser("preflight", help="what share of a vendor's list of EKs the bundle can verify")
    share.add_argument("list", type=Path, help="the list; it need not be imported, nor signed")
    share.add_argument("--json", action="store_true", help="for scripts")


def run(args: argparse.Namespace) -> int:
    if args.verb == "make":
        return _make(args)
    configuration = load_configuration(args.paths, drivers=False)
    if args.verb == "import":
        return _import(configuration, args.file)
    if args.verb == "list":
        return _list(configuration, as_json=args.json)
    if args.verb == "check":
        return _check(configuration, as_json=args.json)
    return _preflight(configuration, args.list, as_json=args.json)


def _make(args: argparse.Namespace) -> int:
    now = dt.datetime.now(dt.UTC)
    made = making.make(args.folder, args.serial, args.note, now)
    write_signed(args.out, bundle.encode(made), load_private_key(args.key))
    for vendor in made.vendors:
        print(f"{vendor.name}: {_counted(len(vendor.roots), len(vendor.intermediates), len(vendor.crls))}")
    print(f"bundle {made.serial}: {args.out} and {args.out}{SUFFIX}")
    return FINE


def _import(configuration: Configuration, path: Path) -> int:
    signers = load_signers(configuration.path(configuration.file.trust.bundle_signers))
    signed, found = bundle.read_bundle(path, signers)
    trust = bundle.trust_set(signed, found, path)
    if not trust.roots:
        raise ConfigError("has no root; expected at least one", file=str(path), hint=bundle.HINT)
    for ailment in examine(trust, dt.datetime.now(dt.UTC)):
        if ailment.state == WRONG:
            print(f"warning: {ailment.what}", file=sys.stderr)
    signature = read_bounded(path.with_name(path.name + SUFFIX), len(signed.data) + 1024, ConfigError)
    arguments = (found.serial, signed.sha256, signed.signer.name)
    running = StatusClient(configuration.paths.status_socket)
    try:
        running.snapshot()
        new = install(configuration.paths.trust, signed, signature, found)
        told = "the station takes it for its next board"
    except PeerUnavailable:
        if configuration.paths.database.exists():
            with Store.open(configuration.paths.database) as store:
                store.take_bundle(*arguments)
        new = install(configuration.paths.trust, signed, signature, found)
        told = "the station takes it when it starts"
    _hand_over(configuration)
    print(
        f"trust bundle {found.serial}, signed by {signed.signer.name}: "
        + (told if new else "is installed already")
    )
    return FINE


def _hand_over(configuration: Configuration) -> None:
    """What root has put there belongs to the station's user, as the folder around it does."""
    if os.geteuid() != 0:
        return
    owner, folder = configuration.paths.state.stat(), configuration.paths.trust
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _list(configuration: Configuration, *, as_json: bool) -> int:
    trust, now = load(configuration), dt.datetime.now(dt.UTC)
    if as_json:
        print(json.dumps(_described(trust, now), indent=2))
        return FINE
    origin = trust.origin
    print(
        f"bundle {origin.serial}, signed by {origin.signer}"
        if origin.serial
        else f"folder {origin.place}, not signed"
    )
    for kind, certificates in (("root", trust.roots), ("intermediate", trust.intermediates)):
        for item in certificates:
            print(f"  {kind:<12} {item.subject!a}  until {item.end.date()}  {item.sha256.hex()[:16]}")
    for crl in trust.crls:
        stale = "  STALE" if crl.stale_at(now) else ""
        print(
            f"  {'CRL':<12} {crl.issuer!a}  {crl.this_update.date()} to {crl.next_update.date()}"
            f"  {len(crl.revoked)} revoked{stale}"
        )
    return FINE


def _described(trust: TrustSet, now: dt.datetime) -> dict[str, object]:
    origin = trust.origin
    return {
        "source": origin.kind,
        "serial": origin.serial or None,
        "sha256": origin.sha256.hex() or None,
        "signer": origin.signer or None,
        "roots": list(_certificates(trust.roots)),
        "intermediates": list(_certificates(trust.intermediates)),
        "crls": [
            {
                "issuer": crl.issuer,
                "this_update": crl.this_update.isoformat(),
                "next_update": crl.next_update.isoformat(),
                "stale": crl.stale_at(now),
                "revoked": len(crl.revoked),
                "sha256": crl.sha256.hex(),
            }
            for crl in trust.crls
        ],
    }


def _certificates(items: tuple[Certificate, ...]) -> Iterator[dict[str, object]]:
    for item in items:
        yield {
            "vendor": item.vendor,
            "subject": item.subject,
            "issuer": item.issuer,
            "not_before": item.start.isoformat(),
            "not_after": item.end.isoformat(),
            "sha256": item.sha256.hex(),
        }


def _check(configuration: Configuration, *, as_json: bool) -> int:
    try:
        found = examine(load(configuration), dt.datetime.now(dt.UTC))
    except (ConfigError, EkUntrusted) as error:
        found = [Ailment(WRONG, str(error), error.hint)]
    if as_json:
        rows = [{"state": item.state, "what": item.what, "hint": item.hint} for item in found]
        print(json.dumps(rows, indent=2))
    else:
        for item in found:
            print(
                f"{item.state:<8} {item.what}" + (f"\n         What to do: {item.hint}" if item.hint else "")
            )
        if not found:
            print("fine")
    return NOT_FINE if any(item.state == WRONG for item in found) else FINE


def _preflight(configuration: Configuration, path: Path, *, as_json: bool) -> int:
    with ek_list.opened(path) as listed:
        share = preflight(load(configuration), listed, dt.datetime.now(dt.UTC))
    if as_json:
        print(json.dumps(share.described(), indent=2))
    else:
        for line in share.lines():
            print(line)
    return NOT_FINE if share.failed else FINE


def _counted(roots: int, intermediates: int, crls: int) -> str:
    return f"{roots} roots, {intermediates} intermediates, {crls} revocation lists"
