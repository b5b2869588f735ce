"""`hallmark units`: what is on record; a unit's files; putting a unit aside for a decision, and releasing it."""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from hal.errors import ConfigError, PeerUnavailable, StationError, quote
from station import history
from station.commands.source import Source, change
from station.export import ek_candidates, export, key_of, tpm_of
from station.history_page import page
from station.status.client import segment
from station.status.view import PAGE_LIMIT
from station.store import Store
from station.store.records import ActionRecord, UnitRecord

HELP: Final = "list and show units, export their files, put units aside or release them"
LIST, SHOW, EXPORT, QUARANTINE, RELEASE, SCRAP = "list", "show", "export", "quarantine", "release", "scrap"
VERBS: Final = (LIST, SHOW, EXPORT, QUARANTINE, RELEASE, SCRAP)
FINE: Final = 0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "hallmark units [--json] [--find TEXT] | [show] ID | export ID|--all --out DIR"
        " | quarantine ID --reason TEXT | release ID | scrap ID --reason TEXT"
    )
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="a unit or registration ID, or a verb and one"
    )
    parser.add_argument("--json", action="store_true", help="for scripts; lists give one unit a line")
    parser.add_argument("--find", metavar="TEXT", help="only units with an identifier that begins so")
    parser.add_argument("--all", action="store_true", help="export all units")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to export: DIR/REGISTRATION-ID/")
    parser.add_argument("--reason", metavar="TEXT", help="why the unit is put aside, for whoever decides")


def run(args: argparse.Namespace) -> int:
    verb, unit = _words(args.words)
    if verb == EXPORT:
        return _export(args, unit)
    if verb == SCRAP:
        return _scrap(args, _needed(unit, verb))
    if verb in (QUARANTINE, RELEASE):
        return _decide(args, verb, _needed(unit, verb))
    with Source(args.paths) as source:
        if verb == SHOW:
            record = source.unit(_needed(unit, verb))
            if args.json:
                _write(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
            else:
                _write("".join(f"{line}\n" for line in show(record)).encode())
            return FINE
        for found in source.units(args.find):
            if args.json:
                _write(msgspec.json.encode(found) + b"\n")
            else:
                outcome = found.outcome or "-"
                when = moment(found.passed_at or found.created_at)
                print(f"{found.registration_id:<52}  {found.sku:<16} {found.state:<12} {outcome:<8} {when}")
    return FINE


def show(record: UnitRecord) -> Iterator[str]:
    """The record for people, from the unit's name to its last visits."""
    summary = record.summary
    yield f"{summary.registration_id}  {summary.sku}  {summary.state}"
    yield f"  unit          {summary.unit}"
    if summary.quarantine is not None:
        yield f"  quarantine    {quote(summary.quarantine, 300)}"
    if summary.retired is not None:
        yield f"  retired       {quote(summary.retired, 300)}"
    for item in record.identifiers:
        yield f"  {item.kind:<12}  {quote(item.value, 150)}{'' if item.strong else '  (claimed)'}"
    if record.work_order is not None:
        yield f"  work order    {record.work_order}"
    if (tpm := tpm_of(record)) is not None:
        yield f"  tpm           {quote(tpm['says'], 100)}{'  SOFTWARE TPM: bench only' if tpm['software'] else ''}"
    for line in ek_candidates(record):
        yield f"  ek            {quote(line, 300)}"
    if record.attestation is not None:
        yield "  attestation   on record: `hallmark attestation` checks it"
    if record.certificate is not None:
        certificate = record.certificate
        until = moment(certificate.not_after)
        yield f"  certificate   {certificate.profile}, serial {certificate.serial}, until {until}"
    if (key := key_of(record)) is not None:
        yield f"  key           {quote(key['protection'])} ({quote(key['place'])})"
        if "override" in key:
            yield f"  override      {quote(key['override'], 450)}"
    for escrow in record.escrows:
        names = ", ".join(escrow.hierarchies)
        yield f"  escrow        generation {escrow.generation}: {names}, {moment(escrow.recorded_at)}"
    for row in record.outbox:
        problem = f", {row.code}: {quote(row.message, 200)}" if row.code else ""
        yield f"  {row.kind:<12}  {row.sink}: {row.state}, {row.tries} tries{problem}"
    for asked in record.decisions:
        given = (
            "waits" if asked.answer is None else f"{asked.answer}, by {asked.by}: {quote(asked.reason, 200)}"
        )
        yield f"  decision {asked.id:<4} {asked.kind}: {given}"
    for visit in record.visits:
        told = f"  {visit.code}: {quote(visit.message, 200)}" if visit.code else ""
        place = f" in {visit.step}.{visit.action}" if visit.code and visit.step else ""
        yield f"  visit         {moment(visit.opened_at)} {visit.nest}: {visit.outcome or 'open'}{place}{told}"
    for action in record.actions:
        if action.visit == (record.visits[-1].visit if record.visits else None):
            yield f"    {action.step}.{action.action:<24} {_took(action)}"


def _took(action: ActionRecord) -> str:
    if action.done_at is None:
        return "not finished"
    if action.found:
        return "found done"
    return "done" if action.begun_at is None else f"{action.done_at - action.begun_at:.2f} s"


def moment(at: float) -> str:
    """Unix seconds as UTC, to the second."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _export(args: argparse.Namespace, unit: str | None) -> int:
    if args.out is None or (unit is None) != bool(args.all):
        raise ConfigError(
            "export needs --out DIR, and either an ID or --all", hint="See `hallmark units --help`."
        )
    if not args.paths.database.exists():
        raise PeerUnavailable(f"there is no store at {args.paths.database}")
    # The files are made from the database alone: a read-only connection, which doesn't disturb a station that runs.
    with Store.open(args.paths.database, readonly=True) as store:
        for name in _all(store) if unit is None else [unit]:
            record = store.unit(name)
            if record is None:
                raise ConfigError(f"there is no unit {quote(name)}", hint="See `hallmark units`.")
            made = history.history(store, name)
            whole = {history.JSON_FILE: history.encode(made), history.PAGE_FILE: page(made)}
            print(export(record, args.out, whole))
    return FINE


def _all(store: Store) -> Iterator[str]:
    after: str | None = None
    while found := store.units(PAGE_LIMIT, after):
        yield from (summary.unit for summary in found)
        after = found[-1].unit


def _decide(args: argparse.Namespace, verb: str, unit: str) -> int:
    path = f"/v1/units/{segment(unit)}/{verb}"
    if verb == RELEASE:
        change(args.paths, path, lambda store, by: store.set_quarantine(unit, None, by))
    elif not args.reason:
        raise ConfigError(
            "say why with --reason: whoever decides wants to know", hint="See `hallmark units --help`."
        )
    else:
        change(
            args.paths,
            path,
            lambda store, by: store.set_quarantine(unit, args.reason, by),
            reason=args.reason,
        )
    return FINE


def _scrap(args: argparse.Namespace, unit: str) -> int:
    """Out for good. Says what is left to be done by hand: what a service has already, nobody here can take back."""
    if not args.reason:
        raise ConfigError("say why with --reason: it stays on record", hint="See `hallmark units --help`.")
    path = f"/v1/units/{segment(unit)}/scrap"

    def directly(store: Store, by: str) -> None:
        store.scrap(unit, args.reason, by)

    change(args.paths, path, directly, reason=args.reason)
    with Source(args.paths) as source:
        record = source.unit(unit)
    scrap = record.scrap
    if scrap is None:
        raise StationError(f"unit {unit[:128]!a} is not scrapped", hint="See `hallmark audit`.")
    print(f"{record.summary.registration_id} is scrapped: it can't pass again.")
    if scrap.serial is not None and scrap.given_back_at is None:
        print(
            "Its share of the work order comes back once the signer has confirmed it; see `hallmark units`."
        )
    for sink in scrap.sinks:
        print(f"{sink} has its enrollment already: delete it there.")
    return FINE


def _words(words: list[str]) -> tuple[str, str | None]:
    verb = words[0] if words and words[0] in VERBS else SHOW if words else LIST
    rest = words[1:] if words and words[0] in VERBS else words
    if len(rest) > 1:
        raise ConfigError(f"one unit at a time, not {len(rest)} words", hint="See `hallmark units --help`.")
    return verb, rest[0] if rest else None


def _needed(unit: str | None, verb: str) -> str:
    if unit is None:
        raise ConfigError(f"{verb} needs a unit or registration ID", hint="See `hallmark units --help`.")
    return unit


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
