"""`hallmark audit`: the audit trail: event by event, and for those who check it: exports, checkpoints and proofs."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from cryptography.hazmat.primitives import serialization

from hal.errors import ConfigError, PeerUnavailable, StationError, quote
from station import trail
from station.audit import note, proof, verify
from station.checkpoints import Checkpoints
from station.commands.source import Source, change
from station.commands.units import moment
from station.config import Configuration, load_configuration
from station.signed import Signer, load_signers, read_bounded
from station.signer import durable, ledger, trails
from station.signer_client import SignerClient
from station.status.view import EventView
from station.store import Store

HELP: Final = "show the audit trail; export, sign, prove and verify it"
FINE: Final = 0
OUT_MODE: Final = 0o644


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", type=int, default=0, metavar="N", help="only events with a number over N")
    parser.add_argument("--follow", action="store_true", help="go on as events come, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="for scripts: one event a line")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    export = actions.add_parser("export", help="the trail up to its newest checkpoint, as JSON Lines")
    export.add_argument("file", type=Path, metavar="FILE", help="- for standard output")
    export.add_argument("--since", type=int, default=0, metavar="N", help="only records with a number over N")
    export.add_argument("--all", action="store_true", help="also the records that no checkpoint covers yet")

    check = actions.add_parser("verify", help="check an export, on any machine")
    check.add_argument("file", type=Path, metavar="FILE", help="- for standard input")
    _trust_arguments(check)
    check.add_argument("--json", action="store_true", help="for scripts")

    prove = actions.add_parser("prove", help="proofs of a unit's records, against the newest checkpoint")
    prove.add_argument("unit", metavar="UNIT", help="its unit or registration ID")
    prove.add_argument("--out", type=Path, metavar="FILE", help="write it here (default: standard output)")

    check_proof = actions.add_parser("verify-proof", help="check such a proof, on any machine")
    check_proof.add_argument("file", type=Path, metavar="FILE")
    _trust_arguments(check_proof)

    actions.add_parser("checkpoint", help="sign the trail now, and print the checkpoint")
    actions.add_parser("head", help="print the newest checkpoint, to be remembered elsewhere")
    key = actions.add_parser("key", help="print the public keys that signed checkpoints (PEM), newest first")
    key.add_argument("--out", type=Path, metavar="FILE", help="write them here (default: standard output)")

    anew = actions.add_parser(
        "new-trail", help="begin a new trail after the store was replaced or restored on purpose"
    )
    anew.add_argument("--reason", required=True, metavar="TEXT", help="why, for the record")


def _trust_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key",
        type=Path,
        action="append",
        default=[],
        metavar="PEM",
        help="a public key that checkpoints are signed with, from `hallmark audit key`; more than once after a change",
    )
    parser.add_argument("--root-hash", metavar="HEX", help="the trail's root hash as it was written down")
    parser.add_argument("--size", type=int, metavar="N", help="how many records that root is over")
    parser.add_argument(
        "--old",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a checkpoint that a receiver has kept, from `hallmark audit head`: a trail that was rolled back is found",
    )


def run(args: argparse.Namespace) -> int:
    return _ACTIONS[args.action](args)


def _show(args: argparse.Namespace) -> int:
    with Source(args.paths) as source:
        for event in source.follow(args.since) if args.follow else source.events(args.since):
            line = msgspec.json.encode(event) if args.json else text(event).encode()
            sys.stdout.buffer.write(line + b"\n")
            if args.follow:
                sys.stdout.flush()
    return FINE


def _export(args: argparse.Namespace) -> int:
    configuration = load_configuration(args.paths, drivers=False)
    with _store(args) as store:
        lines = trail.lines(store, configuration.file.station.name, args.since, everything=args.all)
        if args.file == Path("-"):
            sys.stdout.buffer.writelines(lines)
        else:
            durable.write_lines(args.file.absolute(), lines, mode=OUT_MODE)
        newest = store.audit_checkpoint()
        left = store.audit_size() - (newest.size if newest else 0)
    if newest is None:
        print("No checkpoint was signed yet: the export shows nothing by itself.", file=sys.stderr)
    elif left and not args.all:
        print(
            f"It ends with record {newest.size}, the last one that is signed; {left} came later"
            " (`hallmark audit checkpoint` signs them).",
            file=sys.stderr,
        )
    return FINE


def _verify(args: argparse.Namespace) -> int:
    trust = _trust(args)
    if args.file == Path("-"):
        verdict = verify.verify_export(sys.stdin.buffer, trust)
    else:
        with _opened(args.file) as stream:
            verdict = verify.verify_export(stream, trust)
    if args.json:
        sys.stdout.buffer.write(msgspec.json.encode(verdict) + b"\n")
        return FINE
    print(f"Holds: records {verdict.first} to {verdict.last} of {verdict.origin or verdict.station}")
    print(f"  {verdict.checkpoints} checkpoints; root over {verdict.last} records {verdict.root.hex()}")
    if not trust.remembered:
        print(
            "  Whether later records were cut off, only a checkpoint shows that was kept elsewhere (--old)."
        )
    return FINE


def _prove(args: argparse.Namespace) -> int:
    with _store(args) as store:
        made = trail.unit_proof(store, args.unit)
    _write(args.out, msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    if made.unproven:
        print(f"{made.unproven} records came after the checkpoint and are not in it.", file=sys.stderr)
    return FINE


def _verify_proof(args: argparse.Namespace) -> int:
    trust = _trust(args)
    found = proof.verify(proof.read(read_bounded(args.file, proof.PROOF_LIMIT, ConfigError)), trust)
    print(
        f"Holds: {len(found.records)} records of unit {quote(found.unit)} are in the trail {found.head.origin},"
        f" of {found.head.size} records"
    )
    for item in found.records:
        print(f"{item.seq:>8}  {moment(item.at / 1000)}  {quote(item.kind)}")
    return FINE


def _checkpoint(args: argparse.Namespace) -> int:
    configuration = load_configuration(args.paths, drivers=False)
    change(args.paths, "/v1/audit/checkpoint", lambda store, _by: _sign(store, configuration))
    return _head(args)


def _sign(store: Store, configuration: Configuration) -> None:
    signer = SignerClient(configuration.paths.signer_socket)
    Checkpoints(store, signer, configuration.file.audit, configuration.file.station.name).sign()


def _head(args: argparse.Namespace) -> int:
    with _store(args) as store:
        newest = store.audit_checkpoint()
    if newest is None:
        raise _unsigned()
    sys.stdout.buffer.write(newest.note)
    return FINE


def _key(args: argparse.Namespace) -> int:
    with _store(args) as store:
        keys = store.audit_keys()
    if not keys:
        raise _unsigned()
    _write(args.out, b"".join(note.checkpoint_key(key).pem for key in keys))
    return FINE


def _new_trail(args: argparse.Namespace) -> int:
    """The signer's memory and the store's, one after the other: a crash in between is mended by running it again."""
    if not args.reason.strip():
        raise ConfigError("say why with --reason: auditors will ask", hint="See `hallmark audit --help`.")
    load_configuration(args.paths, drivers=False)
    if not args.paths.database.exists():
        raise PeerUnavailable(f"there is no store at {args.paths.database}")
    by = f"{getpass.getuser()} (uid {os.getuid()})"
    with Store.open(args.paths.database) as store, ledger.sole_user(args.paths.signer_state):
        with ledger.opened(args.paths.signer_state) as book, book.transaction() as db:
            closed = trails.close(db, f"{args.reason} (by {by})", int(time.time()))
        store.begin_trail(args.reason, by)
    until = f"{closed.origin}, {closed.size} records" if closed else "none was signed"
    print(f"Ended: {until}. The next checkpoint begins another trail; all records of this store stay in it.")
    return FINE


_ACTIONS: Final[dict[str | None, Callable[[argparse.Namespace], int]]] = {
    None: _show,
    "export": _export,
    "verify": _verify,
    "prove": _prove,
    "verify-proof": _verify_proof,
    "checkpoint": _checkpoint,
    "head": _head,
    "key": _key,
    "new-trail": _new_trail,
}


def _trust(args: argparse.Namespace) -> verify.Trust:
    """What the reader brings; ConfigError when that is nothing, or half of something."""
    keys = [_checkpoint_key(path, signer) for path in args.key for signer in load_signers(path)]
    root = None
    if (args.root_hash is None) != (args.size is None):
        raise ConfigError(
            "--root-hash and --size belong together", hint="See `hallmark audit verify --help`."
        )
    if args.root_hash is not None:
        try:
            root = (args.size, verify.read_root(args.root_hash))
        except ValueError as error:
            raise ConfigError(f"--root-hash {quote(args.root_hash)} is no root: {error}") from error
    remembered = [note.read_note(read_bounded(path, note.NOTE_LIMIT, ConfigError)) for path in args.old]
    trust = verify.Trust(keys, root, remembered)
    if trust.empty:
        raise ConfigError(
            "say what you trust: --key PEM, --root-hash HEX with --size N, or --old CHECKPOINT",
            hint="A file can't vouch for itself: get the key from `hallmark audit key`, once and by another way.",
        )
    return trust


def _checkpoint_key(path: Path, signer: Signer) -> note.CheckpointKey:
    spki = signer.key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    try:
        return note.checkpoint_key(spki)
    except StationError as error:
        raise ConfigError(str(error), file=str(path)) from error


def _store(args: argparse.Namespace) -> Store:
    """The database itself, read only: a station that runs isn't disturbed by it."""
    if not args.paths.database.exists():
        raise PeerUnavailable(f"there is no store at {args.paths.database}")
    return Store.open(args.paths.database, readonly=True)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error


def _write(out: Path | None, data: bytes) -> None:
    if out is None:
        sys.stdout.buffer.write(data)
    else:
        durable.write(out.absolute(), data, mode=OUT_MODE)


def _unsigned() -> StationError:
    return StationError(
        "the audit trail has no checkpoint yet", hint="Sign one with `hallmark audit checkpoint`."
    )


def text(event: EventView) -> str:
    """One event on one line, safe for a terminal."""
    where = " ".join(part for part in (event.nest, event.unit, event.step) if part)
    detail = " ".join(
        f"{name}={quote(value, 200) if isinstance(value, str) else value}"
        for name, value in event.detail.items()
    )
    return f"{event.seq:>8}  {moment(event.at)}  {event.kind:<18} {where}  {detail}".rstrip()
