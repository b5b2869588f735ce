"""The verbs of `hallmark ca` for its keys and certificates: what a CA is made, renewed and rolled over with."""

from __future__ import annotations

import argparse
import datetime as dt
import re
import sys
from pathlib import Path
from typing import Final

from cryptography import x509

from hal.call import Call
from hal.errors import ConfigError, PeerUnavailable, StationError, quote
from hal.secret import Secret
from hal.types import KeyType
from station import messages
from station.commands.ca_reach import BY_COMMAND, administer, alone
from station.commands.ca_view import print_generation, print_profiles
from station.signer import administration, authority, ceremony, durable, group_keys
from station.signer_client import SignerClient

FINE: Final = 0
LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def init(args: argparse.Namespace) -> int:
    with alone(args) as (configuration, opened):
        if args.bench and not configuration.bench:
            message = "--bench is for bench mode; this station is in production mode"
            raise ConfigError(message, hint="Use `hallmark ca csr` and a root that is kept elsewhere.")
        section, folder = configuration.file.signer, configuration.paths.signer_state
        if args.bench and opened.generations.others:
            message = "this station has a production CA; a bench CA in its place would only look like it"
            raise ConfigError(message, hint='Set mode = "production", or take another --root for the bench.')
        key_type, now = KeyType(args.key_type), dt.datetime.now(dt.UTC)
        spki = ceremony.make_keys(
            opened.token,
            opened.wrap,
            section.ca_key,
            section.canary_key,
            section.wrap_key,
            section.audit_key,
            key_type,
        )
        opened.generations.note_key(section.ca_key, now)
        held = [one for one in opened.generations.all if one.authority.spki == spki]
        if held:
            print("The CA is there already:")
        elif args.bench:
            made = ceremony.bench_authority(folder / ceremony.BENCH_FOLDER, spki, key_type, now)
            made = authority.chain_from(made.chain, made.root, spki, now)
            held = [opened.generations.install(section.ca_key, made, now, BY_COMMAND)]
            opened.administration.refresh_copies()
            print("Made a bench CA, which production refuses:")
        else:
            print(
                "The keys are in the token. Next: `hallmark ca csr`, and `hallmark ca install` with the answer."
            )
            return FINE
        print_generation(opened.administration.view(held[-1]))
    return FINE


def csr(args: argparse.Namespace) -> int:
    asked = messages.MakeCaRequest(
        label=args.label,
        new_key=args.new_key,
        key_type=KeyType(args.key_type),
        common_name=args.common_name,
        organization=args.organization,
    )
    made = administer(args, asked, messages.CaRequest)
    if args.out is None:
        sys.stdout.write(made.csr.decode("ascii"))
    else:
        durable.write(args.out.absolute(), made.csr, mode=0o644)
        print(f"Wrote {args.out}, for the key {made.label}. Its answer goes in with `hallmark ca install`.")
    return FINE


def install(args: argparse.Namespace) -> int:
    certificates = [
        certificate
        for path in args.chain
        for certificate in authority.read_certificates(_given(path), str(path))
    ]
    root: x509.Certificate | None = None
    if args.root_certificate is not None:
        file = args.root_certificate
        root, *more = authority.read_certificates(_given(file), str(file))
        if more:
            message = "expected one certificate, the root's"
            raise ConfigError(message, file=str(file))
    asked = messages.InstallCa(
        [authority.der(one) for one in certificates], authority.der(root) if root else None
    )
    made = administer(args, asked, messages.CaGeneration)
    print("Installed:")
    print_generation(made)
    if made.state == administration.INSTALLED:
        print(f"It issues from when you say: `hallmark ca activate {made.number} [--at TIME]`.")
    print_profiles(args.paths, made)
    return FINE


def activate(args: argparse.Namespace) -> int:
    at = None if args.at is None else _moment(args.at)
    made = administer(args, messages.ActivateCa(args.generation, at), messages.CaGeneration)
    print_generation(made)
    return FINE


def group_key(args: argparse.Namespace) -> int:
    if not LABEL.fullmatch(args.label):
        raise ConfigError(f"--label {quote(args.label)}: expected letters, digits, dots, dashes, at most 64")
    if (args.what == "import") != (args.key_fd is not None):
        raise ConfigError(
            "--key-fd N goes with import, and import with it: a key on the command line is seen by all"
        )
    key = Secret(b"") if args.key_fd is None else group_keys.read_group_key(args.key_fd)
    importing = args.what == "import"
    client = SignerClient(args.paths.signer_socket)
    try:
        if importing:
            made = client.group_key(messages.ImportGroupKey(args.label, key.reveal()))
        else:
            made = client.group_key(messages.CheckGroupKey(args.label))
    except PeerUnavailable:
        with alone(args) as (_configuration, opened):
            call = Call.lasting(ceremony.CALL_SECONDS)
            if importing:
                made = group_keys.import_group_key(opened.secrets, call, args.label, key)
            else:
                made = group_keys.check_group_key(opened.secrets, call, args.label)
    print(f"group key {made.label}: in the token, check value {made.check}")
    if importing:
        print("Stations with the same key show the same check value. Destroy what the key came in.")
    return FINE


def _given(path: Path) -> bytes:
    try:
        found = durable.read(path, authority.SIZE_LIMIT)
    except StationError as error:
        raise ConfigError(str(error), file=str(path)) from error
    if found is None:
        message = "there is no such file; expected certificates in PEM"
        raise ConfigError(message, file=str(path))
    return found


def _moment(text: str) -> int:
    """Unix seconds of a time in UTC."""
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as error:
        message = f"--at {quote(text)}: expected a time in UTC, as 2027-03-01T06:00:00Z"
        raise ConfigError(message) from error
    return int((found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp())
