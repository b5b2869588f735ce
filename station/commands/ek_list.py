"""`hallmark ek-list`: vendors' signed lists of endorsement keys, lot by lot; the station's own for its customers."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hal.errors import ConfigError, StationError, by_code, quote
from station.commands.source import Source
from station.config import Configuration, load_configuration
from station.signed import SUFFIX, load_private_key, load_signers
from station.store import Store
from station.store.ek_lists import EkList, MadeKey
from station.trust import exporting, intake
from station.trust.ek_list import opened

HELP: Final = "vendors' signed lists of endorsement keys: import, list, check; export the station's own"
FINE, NOT_FINE = 0, 1
SHOWN: Final = 20
"""EKs that `check` names of each kind, without --all."""


def arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    take = verbs.add_parser(
        "import", help="check a vendor's list and take it in; a newer one replaces its lot's"
    )
    take.add_argument("file", type=Path, help="the list (JSON Lines), with FILE.sig beside it")
    show = verbs.add_parser("list", help="the lists that count")
    show.add_argument("--json", action="store_true", help="for scripts")
    check = verbs.add_parser(
        "check", help="which of a lot's EKs were seen; which seen EKs are in no list (then 1)"
    )
    check.add_argument("lot", help="the lot")
    check.add_argument("--json", action="store_true", help="for scripts")
    check.add_argument("--all", action="store_true", help=f"name all EKs, not {SHOWN} of each kind")
    give = verbs.add_parser(
        "export", help="the EKs of the units that passed here, as a list that import takes"
    )
    give.add_argument("out", type=Path, metavar="OUT", help="where to write it; OUT.sig beside it")
    give.add_argument("--lot", required=True, help="the name of the lot")
    give.add_argument(
        "--key", type=Path, required=True, metavar="KEY", help="private key (PEM) that signs it"
    )
    give.add_argument("--vendor", metavar="NAME", help="who made them; default: the station's name")
    give.add_argument(
        "--since", metavar="DATE", help="only units that passed on or after that day (UTC, 2026-01-31)"
    )
    give.add_argument("--work-order", metavar="ID", help="only units of that work order")
    give.add_argument("--sku", metavar="SKU", help="only units of that SKU")


def run(args: argparse.Namespace) -> int:
    configuration = load_configuration(args.paths, drivers=False)
    if args.verb == "import":
        return _import(configuration, args.file)
    if args.verb == "list":
        return _list(args)
    if args.verb == "check":
        return _check(args)
    return _export(configuration, args)


# --- import -----------------------------------------------------------------------------------------------------


def _import(configuration: Configuration, path: Path) -> int:
    signers = load_signers(configuration.path(configuration.file.trust.ek_list_signers))
    with opened(path) as listed:  # what is plainly wrong is said at once, before anything is copied
        listed.signer(signers)
    with Source(configuration.paths) as source:
        if source.running():
            since = source.last_event()
            taken = _await_station(source, intake.put(configuration.paths.trust, path), since)
        else:
            taken = _take_in(configuration, path)
    already = "" if taken.new else ", there already"
    print(f"lot {taken.lot}: {taken.entries} endorsement keys{already}")
    return FINE


def _take_in(configuration: Configuration, path: Path) -> intake.Taken:
    """While no station runs: under the store's lock, which keeps one from starting."""
    signers = load_signers(configuration.path(configuration.file.trust.ek_list_signers))
    configuration.paths.state.mkdir(parents=True, exist_ok=True)
    with Store.open(configuration.paths.database) as store:
        copy = intake.put(configuration.paths.trust, path)
        try:
            taken = intake.take_in(store, copy, signers)
        finally:
            intake.remove(copy)
        intake.sweep(store)
        return taken


def _await_station(source: Source, copy: Path, since: int) -> intake.Taken:
    """The running station takes it in beside its visits; its word is an event on the audit trail."""
    for event in source.follow(since):
        if event.detail.get("file") != copy.name:
            continue
        if event.kind == "ek-list-refused":
            error = by_code().get(str(event.detail["code"]), StationError)
            raise error(str(event.detail["message"]), hint=str(event.detail["hint"]))
        if event.kind == "ek-list-taken":
            entries = event.detail["entries"]
            return intake.Taken(
                str(event.detail["lot"]),
                entries if isinstance(entries, int) else 0,
                new=bool(event.detail["new"]),
            )
    raise StationError("the station ended while it took in the list", hint="It goes on when it is back.")


# --- look -------------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    with Source(args.paths) as source:
        found = source.ek_lists()
    if args.json:
        print(json.dumps([_described(item) for item in found], indent=2))
        return FINE
    for item in found:
        print(
            f"{item.lot:<24} {item.entries:>9} EKs  {quote(item.vendor)}  of {_day(item.created_at)}"
            f"  signed by {quote(item.signer)}"
        )
    return FINE


def _described(item: EkList) -> dict[str, object]:
    return {
        "lot": item.lot,
        "vendor": item.vendor,
        "created_at": item.created_at,
        "entries": item.entries,
        "sha256": item.sha256.hex(),
        "signer": item.signer,
        "imported_at": item.imported_at,
    }


def _check(args: argparse.Namespace) -> int:
    most = None if args.all else SHOWN
    seen, unseen, foreign = _Kind(most), _Kind(most), _Kind(most)
    with Source(args.paths) as source:
        if args.lot not in {item.lot for item in source.ek_lists()}:
            raise StationError(
                f"there is no list of lot {quote(args.lot)}", hint="See `hallmark ek-list list`."
            )
        for item in source.ek_list_entries(args.lot):
            (unseen if item.unit is None else seen).add(item.ek_name.hex(), item.unit)
        for item in source.unlisted_eks():
            foreign.add(item.ek_name.hex(), item.unit)
    if args.json:
        kinds = {"seen": seen, "not_seen": unseen, "in_no_list": foreign}
        found: dict[str, object] = {"lot": args.lot, "listed": seen.count + unseen.count}
        found |= {name: kind.count for name, kind in kinds.items()}
        found |= {f"{name}_eks": kind.rows() for name, kind in kinds.items()}
        print(json.dumps(found, indent=2))
    else:
        print(
            f"lot {args.lot}: {seen.count + unseen.count} EKs listed, {seen.count} seen, {unseen.count} not yet"
        )
        for line in unseen.lines():
            print(f"  not seen    {line}")
        print(f"{foreign.count} EKs seen here are in no list at all")
        for line in foreign.lines():
            print(f"  in no list  {line}")
    return NOT_FINE if foreign.count else FINE


class _Kind:
    """Counts all, keeps `most`."""

    def __init__(self, most: int | None) -> None:
        self._most, self.count = most, 0
        self._kept: list[tuple[str, str | None]] = []

    def add(self, ek_name: str, unit: str | None) -> None:
        self.count += 1
        if self._most is None or len(self._kept) < self._most:
            self._kept.append((ek_name, unit))

    def rows(self) -> list[dict[str, str | None]]:
        return [{"ek_name": name, "unit": unit} for name, unit in self._kept]

    def lines(self) -> Iterator[str]:
        for name, unit in self._kept:
            yield name if unit is None else f"{name}  unit {unit}"
        if self.count > len(self._kept):
            yield f"and {self.count - len(self._kept)} more (--all names them)"


# --- export -----------------------------------------------------------------------------------------------------


def _export(configuration: Configuration, args: argparse.Namespace) -> int:
    since = _since(args.since)

    def wanted(key: MadeKey) -> bool:
        return (
            key.passed_at >= since
            and args.work_order in (None, key.work_order)
            and args.sku in (None, key.sku)
        )

    key = load_private_key(args.key)
    with Source(args.paths) as source:
        count = exporting.export(
            args.out,
            (item for item in source.made_eks() if wanted(item)),
            lot=args.lot,
            vendor=args.vendor or configuration.file.station.name,
            created=dt.datetime.now(dt.UTC),
            key=key,
        )
    print(f"lot {args.lot}: {count} endorsement keys in {args.out} and {args.out}{SUFFIX}")
    return FINE


def _since(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        return dt.datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=dt.UTC).timestamp()
    except ValueError as error:
        raise ConfigError(f"{quote(text)} is no day; expected one as 2026-01-31", key="--since") from error


def _day(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).date().isoformat()
