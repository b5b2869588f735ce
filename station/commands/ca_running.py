"""The verbs of `hallmark ca` for a CA that issues: its clock, its revocations, how it is, and its PIN's next try."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from hal.errors import PeerUnavailable
from hal.types import TokenCondition
from station import messages
from station.commands.ca_reach import administer
from station.commands.ca_view import day, plain_generation, print_generation, print_profiles
from station.messages.signer import SignerState
from station.paths import Paths
from station.signer import administration, authority, durable, pin
from station.signer_client import SignerClient

FINE, NOT_FINE, NO_DAEMON = 0, 1, 3


def accept_clock(args: argparse.Namespace) -> int:
    shown = dt.datetime.now(dt.UTC)
    print(f"The station's clock shows {shown:%Y-%m-%d %H:%M} UTC. Compare it with another clock.")
    if not args.yes and not _agreed("Is it right? Type yes: "):
        print("Nothing was changed.")
        return NOT_FINE
    asked = messages.AcceptClock(int(shown.timestamp()), args.reason)
    made = administer(args, asked, messages.ClockAccepted)
    print(f"Accepted: {day(made.now):%Y-%m-%d %H:%M} UTC. Certificates are issued from this time on.")
    return FINE


def revoke(args: argparse.Namespace) -> int:
    made = administer(args, messages.Revoke(args.name, args.reason, args.why), messages.Revoked)
    serial, when = made.serial.hex(), f"{day(made.at):%Y-%m-%d %H:%M} UTC"
    if made.new:
        print(f"Revoked: unit {made.unit}, serial {serial}. The next `hallmark ca crl` says so.")
    else:
        print(f"Unit {made.unit}, serial {serial}, was revoked already: {when}, {made.reason}.")
    return FINE


def crl(args: argparse.Namespace) -> int:
    made = administer(args, messages.MakeCrl(args.generation), messages.RevocationList)
    if args.out is None:
        found = x509.load_der_x509_crl(made.crl)
        sys.stdout.write(found.public_bytes(serialization.Encoding.PEM).decode("ascii"))
    else:
        durable.write(args.out.absolute(), made.crl, mode=0o644)
        until = f"{day(made.next_update):%Y-%m-%d %H:%M} UTC"
        print(f"Wrote {args.out}: list {made.number}, {made.entries} revoked, the next one until {until}.")
    return FINE


def status(args: argparse.Namespace) -> int:
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
        print_generation(one)
        if one.state in (administration.ACTIVE, administration.NEXT):
            print_profiles(args.paths, one)
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
        "generations": [plain_generation(paths, one) for one in state.generations],
        "issued": state.issued,
        "pending": state.pending,
    }


def _offline(paths: Paths, error: PeerUnavailable, *, as_json: bool) -> int:
    """What files tell while the signer isn't there. The token is not touched."""
    installed = authority.load(paths.signer_state)
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


def unblock(args: argparse.Namespace) -> int:
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


def _agreed(question: str) -> bool:
    try:
        return input(question).strip() == "yes"
    except EOFError:
        return False
