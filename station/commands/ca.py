"""`hallmark ca`: what people do to the issuing CA. Everything but `status` and `unblock` needs the signer stopped."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography import x509

from hal.call import Call
from hal.errors import ConfigError, PeerUnavailable, StationError
from hal.types import KeyType, TokenCondition
from station.config import Configuration
from station.messages import SignerState
from station.paths import Paths
from station.signer import authority as ca
from station.signer import ceremony, durable, ledger, pin, process
from station.signer_client import SignerClient

HELP: Final = "the issuing CA: init, csr, install, status, unblock"
FINE, NOT_FINE, NO_DAEMON = 0, 1, 3
EXPIRY_WARNING: Final = dt.timedelta(days=90)


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    init = actions.add_parser("init", help="make the CA's keys; with --bench also a root and a certificate")
    init.add_argument(
        "--bench", action="store_true", help="sign the issuing CA with a root in a file: bench mode only"
    )
    init.add_argument("--key-type", choices=[kind.value for kind in KeyType], default=KeyType.P256.value)
    _pin_argument(init)

    csr = actions.add_parser("csr", help="the request for the issuing CA's certificate, for any root")
    csr.add_argument("--out", type=Path, metavar="FILE", help="write it here (default: standard output)")
    csr.add_argument("--common-name", metavar="NAME", help="default: the station's name")
    csr.add_argument("--organization", metavar="NAME")
    _pin_argument(csr)

    install = actions.add_parser("install", help="install the issuing CA's certificate and its chain")
    install.add_argument("chain", type=Path, metavar="CHAIN.pem", help="its certificate and those above it")
    install.add_argument(
        "--root", type=Path, metavar="ROOT.pem", dest="root_certificate", help="if not in CHAIN.pem"
    )
    _pin_argument(install)

    status = actions.add_parser("status", help="the token and the CA, as the signer sees them now")
    status.add_argument("--json", action="store_true", help="for scripts")

    unblock = actions.add_parser("unblock", help="allow one more login after the PIN was made right")
    unblock.add_argument("--yes", action="store_true", help="don't ask")
    unblock.add_argument(
        "--final-try", action="store_true", help="also when a wrong PIN would lock the token"
    )


def _pin_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pin-fd", type=int, metavar="N", help="read the PIN from this file descriptor")


def run(args: argparse.Namespace) -> int:
    return _ACTIONS[args.action](args)


def _init(args: argparse.Namespace) -> int:
    with _token(args) as (configuration, opened):
        if args.bench and not configuration.bench:
            message = "--bench is for bench mode; this station is in production mode"
            raise ConfigError(message, hint="Use `hallmark ca csr` and a root that is kept elsewhere.")
        section, folder = configuration.file.signer, configuration.paths.signer_state
        key_type = KeyType(args.key_type)
        spki = ceremony.make_keys(
            opened.token, opened.wrap, section.ca_key, section.canary_key, section.wrap_key, key_type
        )
        installed = ca.load(folder)
        if installed is not None and installed.spki == spki:
            print("The CA is there already:")
        elif args.bench:
            now = dt.datetime.now(dt.UTC)
            made, root = ceremony.bench_authority(folder / ceremony.BENCH_FOLDER, spki, key_type, now)
            installed, root = ca.chain_from(made.chain, root, spki, now)
            ca.store(folder, installed, root)
            print("Made a bench CA, which production refuses:")
        else:
            print(
                "The keys are in the token. Next: `hallmark ca csr`, and `hallmark ca install` with the answer."
            )
            return FINE
    _print_chain(installed)
    return FINE


def _csr(args: argparse.Namespace) -> int:
    with _token(args) as (configuration, opened):
        name = args.common_name or f"{configuration.file.station.name} issuing CA"
        made = ceremony.request(opened.token, configuration.file.signer.ca_key, name, args.organization)
    if args.out is None:
        sys.stdout.write(made.decode("ascii"))
    else:
        durable.write(args.out.absolute(), made, mode=0o644)
        print(f"Wrote {args.out}. Its answer goes in with `hallmark ca install`.")
    return FINE


def _install(args: argparse.Namespace) -> int:
    certificates = ca.read_pem(_given(args.chain), str(args.chain))
    root: x509.Certificate | None = None
    if args.root_certificate is not None:
        root, *more = ca.read_pem(_given(args.root_certificate), str(args.root_certificate))
        if more:
            message = "expected one certificate, the root's"
            raise ConfigError(message, file=str(args.root_certificate))
    with _token(args) as (configuration, opened):
        call = Call.lasting(ceremony.CALL_SECONDS)
        spki = opened.token.public_key(call, configuration.file.signer.ca_key)
        made, found_root = ca.chain_from(certificates, root, spki, dt.datetime.now(dt.UTC))
        if made.bench and not configuration.bench:
            message = (
                "this certificate was made by `hallmark ca init --bench`; this station is in production mode"
            )
            raise ConfigError(message, file=str(args.chain))
        ca.store(configuration.paths.signer_state, made, found_root)
    print("Installed:")
    _print_chain(made)
    return FINE


def _status(args: argparse.Namespace) -> int:
    try:
        state = SignerClient(args.paths.signer_socket).state()
    except PeerUnavailable as error:
        return _offline(args.paths, error, as_json=args.json)
    fine = state.condition == TokenCondition.READY and bool(state.chain) and not state.problem
    if args.json:
        print(json.dumps(_plain(state), indent=2))
        return FINE if fine else NOT_FINE
    print(f"token     {state.label}: {state.condition}")
    if state.problem:
        print(f"problem   {state.problem}\nto do     {state.hint}")
    if state.chain:
        _print_chain(ca.Authority(tuple(x509.load_der_x509_certificate(one) for one in state.chain)))
    print(f"issued    {state.issued}")
    if state.pending:
        print(
            f"pending   {state.pending} intended and not signed yet; each is finished when its unit comes back"
        )
    return FINE if fine else NOT_FINE


def _plain(state: SignerState) -> dict[str, object]:
    return {
        "signer": "running",
        "token": {"label": state.label, "condition": state.condition},
        "problem": state.problem,
        "hint": state.hint,
        "ca": {"subject": state.subject, "not_after": state.not_after} if state.chain else None,
        "issued": state.issued,
        "pending": state.pending,
    }


def _offline(paths: Paths, error: PeerUnavailable, *, as_json: bool) -> int:
    """What files tell while the signer isn't there. The token is not touched."""
    installed = ca.load(paths.signer_state)
    mark = pin.read_mark(paths.signer_state / pin.MARK)
    blocked = mark is not None and mark.state != "allowed"
    if as_json:
        issuer = installed.issuer if installed else None
        about = issuer and {
            "subject": issuer.subject.rfc4514_string(),
            "not_after": f"{issuer.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        }
        print(
            json.dumps(
                {"signer": "absent", "ca": about, "pin_attempt": mark.state if mark else None}, indent=2
            )
        )
    else:
        print(f"signer    not there ({error})")
        if blocked and mark is not None:
            print(f"PIN       an attempt is on record as {mark.state}; see `hallmark ca unblock`")
        if installed:
            _print_chain(installed)
        else:
            print("CA        no certificate is installed")
    return NO_DAEMON


def _unblock(args: argparse.Namespace) -> int:
    folder = args.paths.signer_state
    mark = pin.read_mark(folder / pin.MARK)
    print(f"On record: {mark.state if mark else 'no attempt that bars another'}.")
    if not args.yes:
        print(
            "The signer will try the PIN in its credential once. Too many wrong ones lock the token for good."
        )
        try:
            answer = input("Is the PIN right now? Type yes: ")
        except EOFError:
            answer = ""
        if answer.strip() != "yes":
            print("Nothing was changed.")
            return NOT_FINE
    pin.unblock(folder, final_try=args.final_try)
    print("One more login is allowed. Restart the signer, so that it reads the PIN anew.")
    return FINE


@contextlib.contextmanager
def _token(args: argparse.Namespace) -> Iterator[tuple[Configuration, process.OpenToken]]:
    """The token for this command alone."""
    configuration = process.signer_configuration(args.paths)
    source = None if args.pin_fd is None else pin.PinDescriptor(args.pin_fd)
    with ledger.sole_user(args.paths.signer_state), process.open_token(configuration, source) as opened:
        yield configuration, opened


def _given(path: Path) -> bytes:
    try:
        found = durable.read(path, ca.SIZE_LIMIT)
    except StationError as error:
        raise ConfigError(str(error), file=str(path)) from error
    if found is None:
        message = "there is no such file; expected certificates in PEM"
        raise ConfigError(message, file=str(path))
    return found


def _print_chain(authority: ca.Authority) -> None:
    for depth, certificate in enumerate(authority.chain):
        print(f"{'CA' if depth == 0 else 'under':<10}{certificate.subject.rfc4514_string()}")
    end = authority.issuer.not_valid_after_utc
    late = (
        ""
        if end - dt.datetime.now(dt.UTC) > EXPIRY_WARNING
        else "   SOON: ask for a new one with `hallmark ca csr`"
    )
    print(f"until     {end:%Y-%m-%d}{late}")


_ACTIONS: Final = {"init": _init, "csr": _csr, "install": _install, "status": _status, "unblock": _unblock}
