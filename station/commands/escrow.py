"""`hallmark escrow`: what an officer does with escrow records. Opening and drilling need no station, and no network.

Values leave only where they are asked to: into a new file of mode 0600, onto the screen with --reveal, or from a
descriptor to the station. Never as arguments.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from hal.call import Call
from hal.driver import in_order, opened
from hal.errors import ConfigError
from hal.registry import load
from hal.types import Sighting
from station import escrow_files
from station.config import as_settings
from station.escrow import EscrowRecord
from station.escrow_drill import SECONDS, Finding, drill
from station.escrow_opener import OfficerKey, parse
from station.signed import read_bounded
from station.status.client import StatusClient, segment

HELP: Final = "open escrow records, prove them on a TPM, bring auths to a station for one visit"
FINE, NOT_FINE = 0, 1
KEY_LIMIT: Final = 64 * 1024
RECORD_LIMIT: Final = 4 * 1024
"""Octets of a record in clear, and of a password."""


def arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    text = "open a unit's sealed records with an officer's key (on the officer's own machine)"
    _records(show := sub.add_parser("open", help=text, description=text))
    show.add_argument(
        "--out", type=Path, metavar="FILE", help="write the record in clear to a new file, 0600"
    )
    show.add_argument("--reveal", action="store_true", help="print the record in clear")
    text = "prove that a record's values are those of a live TPM, without a guess"
    _records(prove := sub.add_parser("drill", help=text, description=text))
    where = prove.add_mutually_exclusive_group(required=True)
    where.add_argument("--tcti", help="a TPM of this machine, as for tpm2-tools: device:/dev/tpmrm0, ...")
    where.add_argument("--port", help="a board's port, whose TPM is behind its link")
    prove.add_argument(
        "--link", default="smp-serial", metavar="DRIVER", help="with --port (default: smp-serial)"
    )
    prove.add_argument("--baud", type=int, default=115200, help="with --port (default: 115200)")
    text = "bring a unit's auths, as `open` writes them, to the running station for the unit's next visit"
    offer = sub.add_parser("offer", help=text, description=text)
    offer.add_argument("unit", metavar="UNIT", help="a unit or registration ID")
    offer.add_argument(
        "--auths-fd", type=int, default=0, metavar="N", help="descriptor to read from (default: 0)"
    )


def _records(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "records", type=Path, metavar="PATH", help="a unit's exported folder, its archive record, or a .p7m"
    )
    parser.add_argument("--key", type=Path, required=True, help="the officer's private key, PEM")
    parser.add_argument("--certificate", type=Path, help="the officer's certificate, PEM, where it matters")
    parser.add_argument("--password-fd", type=int, metavar="N", help="descriptor with the key's password")
    parser.add_argument("--generation", type=int, metavar="N", help="that record (default: the newest)")
    parser.add_argument("--json", action="store_true", help="for scripts")


def run(args: argparse.Namespace) -> int:
    if args.what == "offer":
        record = _read_descriptor(args.auths_fd, "the record in clear")
        parse(record)  # what is no record is refused here, with a sentence
        StatusClient(args.paths.status_socket).post(
            f"/v1/units/{segment(args.unit)}/auths", record=record.decode()
        )
        return FINE
    certificate = _certificate(args.certificate) if args.certificate else None
    records = escrow_files.opened(args.records, _key(args.key, args.password_fd), certificate)
    record_ = _chosen(records, args.generation)
    return _drill(args, record_) if args.what == "drill" else _open(args, record_)


def _open(args: argparse.Namespace, record: EscrowRecord) -> int:
    clear = record.canonical() + b"\n"
    if args.out is not None:
        _write(args.out, clear)
    if args.reveal:
        sys.stdout.buffer.write(clear)
        return FINE
    if args.json:
        print(json.dumps(_about(record)))
    else:
        print(f"unit {record.unit}, made at {record.station}, generation {record.generation}")
        print(f"  EK     {record.ek_name.hex()}")
        print(f"  auths  {', '.join(sorted(record.auths))}")
        print(
            f"  {f'written to {args.out}' if args.out else 'It opens. --out FILE or --reveal gives the values.'}"
        )
    return FINE


def _drill(args: argparse.Namespace, record: EscrowRecord) -> int:
    names = ["tcti"] if args.tcti else ["serial", args.link, "tcti-tunnel"]
    registry = load(names)
    settings = {"tcti": {"tcti": args.tcti}, "serial": {"baud": args.baud}}
    known: dict[type, object] = {Sighting: Sighting(args.port, args.port)} if args.port else {}
    plan = [
        (role, driver, as_settings(driver, settings.get(role, {})))
        for role, driver in in_order({name: registry.get(name) for name in names}, frozenset(known))
    ]
    with opened(plan, known) as board:
        found = drill(board, record, Call.lasting(SECONDS))
    if args.json:
        proven = {item.hierarchy.value: item.held for item in found}
        print(json.dumps({**_about(record), "proven": proven}))
    else:
        for item in found:
            print(f"{item.hierarchy.value:<12} {_verdict(item)}")
    return FINE if all(item.held for item in found) else NOT_FINE


def _verdict(item: Finding) -> str:
    return item.why if item.held is None else "holds" if item.held else f"DOES NOT HOLD: {item.why}"


def _about(record: EscrowRecord) -> dict[str, object]:
    return {
        "unit": record.unit,
        "station": record.station,
        "generation": record.generation,
        "ek_name": record.ek_name.hex(),
        "auths": sorted(record.auths),
    }


def _chosen(records: list[EscrowRecord], generation: int | None) -> EscrowRecord:
    if generation is None:
        return records[-1]
    for record in records:
        if record.generation == generation:
            return record
    there = ", ".join(str(record.generation) for record in records)
    raise ConfigError(f"there is no generation {generation}; there is {there}")


def _key(path: Path, password_fd: int | None) -> OfficerKey:
    data = read_bounded(path, KEY_LIMIT, ConfigError)
    try:
        try:
            key = serialization.load_pem_private_key(data, None)
        except TypeError:  # it has a password
            key = serialization.load_pem_private_key(data, _password(path, password_fd))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("is no private key in PEM, or the password is wrong", file=str(path)) from error
    if not isinstance(key, OfficerKey):
        raise ConfigError("is another kind of key; expected RSA or EC", file=str(path))
    return key


def _password(path: Path, password_fd: int | None) -> bytes:
    if password_fd is not None:
        return _read_descriptor(password_fd, "the password").removesuffix(b"\n")
    if not sys.stdin.isatty():
        raise ConfigError("has a password; expected --password-fd N, or a terminal to ask at", file=str(path))
    return getpass.getpass(f"Password of {path}: ").encode()


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_bounded(path, KEY_LIMIT, ConfigError))
    except ValueError as error:
        raise ConfigError("is no certificate in PEM", file=str(path)) from error


def _read_descriptor(descriptor: int, what: str) -> bytes:
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            data = stream.read(RECORD_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{what} can't be read from descriptor {descriptor}: {error.strerror}") from error
    if not data or len(data) > RECORD_LIMIT:
        raise ConfigError(f"{what} from descriptor {descriptor}: expected 1 to {RECORD_LIMIT} octets")
    return data


def _write(path: Path, data: bytes) -> None:
    """A file of its own, so that nobody else's rights on an older one let the values out."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"can't be made: {error.strerror}; expected a new file", file=str(path)) from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
