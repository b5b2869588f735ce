"""`hallmark ca`: what people do to the issuing CA.

Through the signer while it runs, so that the line goes on; without it directly, as `init` always does.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar, get_args

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from hal.call import Call
from hal.errors import ConfigError, PeerUnavailable, ProtocolViolation, StationError, quote
from hal.secret import Secret
from hal.types import KeyType, TokenCondition
from station import messages
from station.config import Configuration, load_configuration
from station.messages.ca import CaAsked, CaGeneration, Reason
from station.messages.signer import SignerState
from station.paths import Paths
from station.signer import administration, ceremony, durable, group_keys, ledger, pin, process
from station.signer import authority as ca
from station.signer.policy import Verdict, judge
from station.signer.profiles import load_profiles
from station.signer_client import SignerClient

HELP: Final = (
    "the issuing CA: init, csr, install, activate, accept-clock, revoke, crl, group-key, status, unblock"
)
FINE, NOT_FINE, NO_DAEMON = 0, 1, 3
LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
EXPIRY_WARNING: Final = dt.timedelta(days=90)
BY_COMMAND: Final = "the command, with the signer stopped"
"""Who did it, on record. Only those who may read token PIN and ledger can."""
R = TypeVar(
    "R",
    messages.CaRequest,
    messages.CaGeneration,
    messages.ClockAccepted,
    messages.Revoked,
    messages.RevocationList,
)


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
    csr.add_argument("--common-name", metavar="NAME", help="default: by the station's name")
    csr.add_argument("--organization", metavar="NAME")
    which = csr.add_mutually_exclusive_group()
    which.add_argument("--new-key", action="store_true", help="make the next generation's key in the token")
    which.add_argument("--label", metavar="NAME", help="for this key, which is made when it isn't there")
    csr.add_argument(
        "--key-type",
        choices=[kind.value for kind in KeyType],
        default=KeyType.P256.value,
        help="of a key that is made (default: p256)",
    )
    _pin_argument(csr)

    install = actions.add_parser(
        "install", help="install a certificate of the issuing CA and its chain: PEM, DER or PKCS#7"
    )
    install.add_argument(
        "chain", type=Path, nargs="+", metavar="FILE", help="its certificate and those above it, in any order"
    )
    install.add_argument(
        "--root", type=Path, metavar="ROOT.pem", dest="root_certificate", help="if not in a FILE"
    )
    _pin_argument(install)

    activate = actions.add_parser("activate", help="from when on an installed generation issues")
    activate.add_argument("generation", type=int, metavar="NUMBER", help="as `hallmark ca status` shows it")
    activate.add_argument(
        "--at", metavar="TIME", help="UTC, as 2027-03-01T06:00:00Z or 2027-03-01 (default: now)"
    )
    _pin_argument(activate)

    group = actions.add_parser("group-key", help="group keys that devices' symmetric keys are derived from")
    group.add_argument(
        "what", choices=["import", "check"], help="put one into the token; look whether it is there"
    )
    group.add_argument("--label", required=True, metavar="NAME", help="as recipes name it: group_key")
    group.add_argument(
        "--key-fd", type=int, metavar="N", help="import: read the key, in base64, from this file descriptor"
    )
    _pin_argument(group)

    accept = actions.add_parser(
        "accept-clock", help="say that the station's clock is right, after comparing it with another one"
    )
    accept.add_argument("--reason", required=True, metavar="TEXT", help="how that is known; goes on record")
    accept.add_argument("--yes", action="store_true", help="don't ask")
    _pin_argument(accept)

    revoke = actions.add_parser(
        "revoke", help="revoke the certificate of a unit that was scrapped or withdrawn"
    )
    revoke.add_argument("name", metavar="UNIT", help="unit, registration ID, or serial number in hexadecimal")
    reasons = get_args(Reason)
    revoke.add_argument("--reason", choices=reasons, default="cessation-of-operation", help="as in the list")
    revoke.add_argument("--why", default="", metavar="TEXT", help="for the record")
    _pin_argument(revoke)

    crl = actions.add_parser("crl", help="make a revocation list, signed by the issuing CA's key")
    crl.add_argument("--generation", type=int, metavar="NUMBER", help="default: the one that issues")
    crl.add_argument(
        "--out", type=Path, metavar="FILE", help="write it here, DER (default: standard output, PEM)"
    )
    _pin_argument(crl)

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
    with _alone(args) as (configuration, opened):
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
            made = ca.chain_from(made.chain, made.root, spki, now)
            held = [opened.generations.install(section.ca_key, made, now, BY_COMMAND)]
            opened.administration.refresh_copies()
            print("Made a bench CA, which production refuses:")
        else:
            print(
                "The keys are in the token. Next: `hallmark ca csr`, and `hallmark ca install` with the answer."
            )
            return FINE
        _print_generation(opened.administration.view(held[-1]))
    return FINE


def _csr(args: argparse.Namespace) -> int:
    asked = messages.MakeCaRequest(
        label=args.label,
        new_key=args.new_key,
        key_type=KeyType(args.key_type),
        common_name=args.common_name,
        organization=args.organization,
    )
    made = _administer(args, asked, messages.CaRequest)
    if args.out is None:
        sys.stdout.write(made.csr.decode("ascii"))
    else:
        durable.write(args.out.absolute(), made.csr, mode=0o644)
        print(f"Wrote {args.out}, for the key {made.label}. Its answer goes in with `hallmark ca install`.")
    return FINE


def _install(args: argparse.Namespace) -> int:
    certificates = [
        certificate for path in args.chain for certificate in ca.read_certificates(_given(path), str(path))
    ]
    root: x509.Certificate | None = None
    if args.root_certificate is not None:
        file = args.root_certificate
        root, *more = ca.read_certificates(_given(file), str(file))
        if more:
            message = "expected one certificate, the root's"
            raise ConfigError(message, file=str(file))
    asked = messages.InstallCa([ca.der(one) for one in certificates], ca.der(root) if root else None)
    made = _administer(args, asked, messages.CaGeneration)
    print("Installed:")
    _print_generation(made)
    if made.state == administration.INSTALLED:
        print(f"It issues from when you say: `hallmark ca activate {made.number} [--at TIME]`.")
    _print_profiles(args.paths, made)
    return FINE


def _activate(args: argparse.Namespace) -> int:
    at = None if args.at is None else _moment(args.at)
    made = _administer(args, messages.ActivateCa(args.generation, at), messages.CaGeneration)
    _print_generation(made)
    return FINE


def _group_key(args: argparse.Namespace) -> int:
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
        with _alone(args) as (_configuration, opened):
            call = Call.lasting(ceremony.CALL_SECONDS)
            if importing:
                made = group_keys.import_group_key(opened.secrets, call, args.label, key)
            else:
                made = group_keys.check_group_key(opened.secrets, call, args.label)
    print(f"group key {made.label}: in the token, check value {made.check}")
    if importing:
        print("Stations with the same key show the same check value. Destroy what the key came in.")
    return FINE


def _accept_clock(args: argparse.Namespace) -> int:
    shown = dt.datetime.now(dt.UTC)
    print(f"The station's clock shows {shown:%Y-%m-%d %H:%M} UTC. Compare it with another clock.")
    if not args.yes and not _agreed("Is it right? Type yes: "):
        print("Nothing was changed.")
        return NOT_FINE
    asked = messages.AcceptClock(int(shown.timestamp()), args.reason)
    made = _administer(args, asked, messages.ClockAccepted)
    print(f"Accepted: {_day(made.now):%Y-%m-%d %H:%M} UTC. Certificates are issued from this time on.")
    return FINE


def _revoke(args: argparse.Namespace) -> int:
    made = _administer(args, messages.Revoke(args.name, args.reason, args.why), messages.Revoked)
    serial, when = made.serial.hex(), f"{_day(made.at):%Y-%m-%d %H:%M} UTC"
    if made.new:
        print(f"Revoked: unit {made.unit}, serial {serial}. The next `hallmark ca crl` says so.")
    else:
        print(f"Unit {made.unit}, serial {serial}, was revoked already: {when}, {made.reason}.")
    return FINE


def _crl(args: argparse.Namespace) -> int:
    made = _administer(args, messages.MakeCrl(args.generation), messages.RevocationList)
    if args.out is None:
        found = x509.load_der_x509_crl(made.crl)
        sys.stdout.write(found.public_bytes(serialization.Encoding.PEM).decode("ascii"))
    else:
        durable.write(args.out.absolute(), made.crl, mode=0o644)
        until = f"{_day(made.next_update):%Y-%m-%d %H:%M} UTC"
        print(f"Wrote {args.out}: list {made.number}, {made.entries} revoked, the next one until {until}.")
    return FINE


def _agreed(question: str) -> bool:
    try:
        return input(question).strip() == "yes"
    except EOFError:
        return False


def _moment(text: str) -> int:
    """Unix seconds of a time in UTC."""
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as error:
        message = f"--at {quote(text)}: expected a time in UTC, as 2027-03-01T06:00:00Z"
        raise ConfigError(message) from error
    return int((found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp())


def _status(args: argparse.Namespace) -> int:
    try:
        state = SignerClient(args.paths.signer_socket).state()
    except PeerUnavailable as error:
        return _offline(args.paths, error, as_json=args.json)
    fine = state.condition == TokenCondition.READY and bool(state.chain) and not state.problem
    if args.json:
        print(json.dumps(_plain(args.paths, state), indent=2))
        return FINE if fine else NOT_FINE
    print(f"token     {state.label}: {state.condition}")
    if state.problem:
        print(f"problem   {state.problem}\nto do     {state.hint}")
    for one in state.generations:
        _print_generation(one)
        if one.state in (administration.ACTIVE, administration.NEXT):
            _print_profiles(args.paths, one)
    print(f"issued    {state.issued}")
    if state.pending:
        print(
            f"pending   {state.pending} intended and not signed yet; each is finished when its unit comes back"
        )
    return FINE if fine else NOT_FINE


def _plain(paths: Paths, state: SignerState) -> dict[str, object]:
    return {
        "signer": "running",
        "token": {"label": state.label, "condition": state.condition},
        "problem": state.problem,
        "hint": state.hint,
        "ca": {"subject": state.subject, "not_after": state.not_after} if state.chain else None,
        "generations": [_plain_generation(paths, one) for one in state.generations],
        "issued": state.issued,
        "pending": state.pending,
    }


def _plain_generation(paths: Paths, one: CaGeneration) -> dict[str, object]:
    problem, verdicts = "", {}
    try:
        verdicts = _verdicts(paths, one)
    except ConfigError as error:
        problem = str(error)
    return {
        "number": one.number,
        "state": one.state,
        "key": one.label,
        "subject": one.subject,
        "not_after": f"{_day(one.not_after):%Y-%m-%dT%H:%M:%SZ}",
        "since": None if one.since is None else f"{_day(one.since):%Y-%m-%dT%H:%M:%SZ}",
        "profiles": {
            name: {"until": f"{verdict.until:%Y-%m-%dT%H:%M:%SZ}", "problem": str(verdict.problem or "")}
            for name, verdict in verdicts.items()
        },
        "profiles_problem": problem,
    }


def _offline(paths: Paths, error: PeerUnavailable, *, as_json: bool) -> int:
    """What files tell while the signer isn't there. The token is not touched."""
    installed = ca.load(paths.signer_state)
    mark = pin.read_mark(paths.signer_state / pin.MARK)
    blocked = mark is not None and mark.state != "allowed"
    if as_json:
        about = installed and {
            "subject": installed.issuer.subject.rfc4514_string(),
            "not_after": f"{installed.not_after:%Y-%m-%dT%H:%M:%SZ}",
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
            end = installed.not_after
            print(f"CA        {installed.issuer.subject.rfc4514_string()}, until {end:%Y-%m-%d}")
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
        if not _agreed("Is the PIN right now? Type yes: "):
            print("Nothing was changed.")
            return NOT_FINE
    pin.unblock(folder, final_try=args.final_try)
    print("One more login is allowed. Restart the signer, so that it reads the PIN anew.")
    return FINE


@contextlib.contextmanager
def _alone(args: argparse.Namespace) -> Iterator[tuple[Configuration, process.OpenCa]]:
    """The CA for this command alone: StationError while a signer runs."""
    configuration = process.signer_configuration(args.paths)
    source = None if args.pin_fd is None else pin.PinDescriptor(args.pin_fd)
    with ledger.sole_user(args.paths.signer_state), process.open_ca(configuration, source) as opened:
        yield configuration, opened


def _administer(args: argparse.Namespace, asked: CaAsked, reply: type[R]) -> R:
    """Done by the signer, or here in its place when none runs."""
    try:
        answer = SignerClient(args.paths.signer_socket).administer(asked)
    except PeerUnavailable:
        with _alone(args) as (_configuration, opened):
            call = Call.lasting(ceremony.CALL_SECONDS)
            answer = opened.administration.answer(call, asked, BY_COMMAND)
    if not isinstance(answer, reply):
        message = f"the signer answered {type(asked).__name__} with {type(answer).__name__}"
        raise ProtocolViolation(message)
    return answer


def _given(path: Path) -> bytes:
    try:
        found = durable.read(path, ca.SIZE_LIMIT)
    except StationError as error:
        raise ConfigError(str(error), file=str(path)) from error
    if found is None:
        message = "there is no such file; expected certificates in PEM"
        raise ConfigError(message, file=str(path))
    return found


def _print_generation(one: CaGeneration) -> None:
    """A generation for people: what it is, what it is under, when it issues, when it ends."""
    chain = [x509.load_der_x509_certificate(der) for der in (*one.chain, one.root)]
    print(f"CA {one.number:<7}{chain[0].subject.rfc4514_string()}")
    for certificate in chain[1:]:
        print(f"  under   {certificate.subject.rfc4514_string()}")
    print(f"  key     {one.label}")
    issues = {
        administration.ACTIVE: "now",
        administration.NEXT: f"from {_day(one.since or 0):%Y-%m-%d %H:%M} UTC on",
        administration.INSTALLED: f"not before `hallmark ca activate {one.number}`",
        administration.FORMER: "no longer; what it has issued stays",
    }
    print(f"  issues  {issues.get(one.state, one.state)}")
    end = _day(one.not_after)
    soon = one.state == administration.ACTIVE and end - dt.datetime.now(dt.UTC) <= EXPIRY_WARNING
    late = "   SOON: ask for a new one with `hallmark ca csr --new-key`" if soon else ""
    print(f"  until   {end:%Y-%m-%d}{late}")


def _print_profiles(paths: Paths, one: CaGeneration) -> None:
    """Until when it can issue each profile, or why it can't."""
    try:
        found = _verdicts(paths, one)
    except ConfigError as error:  # it says nothing against the CA
        print(f"  profiles can't be read: {error}")
        return
    for name, verdict in found.items():
        print(f"  profile {name}: {verdict.text}{'   SOON' if verdict.soon else ''}")


def _verdicts(paths: Paths, one: CaGeneration) -> dict[str, Verdict]:
    now = max(dt.datetime.now(dt.UTC), _day(one.since or 0))
    configuration = load_configuration(paths, drivers=False)
    profiles = load_profiles(configuration.path(configuration.file.signer.profiles))
    authority = administration.authority_of(one)
    return {name: judge(profile, authority, now) for name, profile in profiles.items()}


def _day(at: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)


_ACTIONS: Final = {
    "init": _init,
    "csr": _csr,
    "install": _install,
    "activate": _activate,
    "accept-clock": _accept_clock,
    "revoke": _revoke,
    "crl": _crl,
    "status": _status,
    "unblock": _unblock,
    "group-key": _group_key,
}
