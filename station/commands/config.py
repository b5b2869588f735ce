"""`hallmark config`: sign a configuration folder as one set, and see whether a station's set holds."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from pathlib import Path
from typing import Final

from hal.errors import ConfigurationUntrusted
from station.configuration_set import ConfigurationSet, read_set, refuse_older, sign_set
from station.paths import Paths
from station.signed import load_private_key
from station.store import Store
from station.toml_source import read

HELP: Final = "sign the configuration as a set, or verify the one that is here"
FINE, NOT_FINE = 0, 1
NOT_ASKED: Final = "not checked: the station's memory can't be read by this user"


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    sign = actions.add_parser("sign", help="write set.json and its signature for all files of a folder")
    sign.add_argument(
        "folder", type=Path, metavar="DIR", help="a configuration folder, with station.toml in it"
    )
    sign.add_argument(
        "--key", type=Path, required=True, help="the release key (Ed25519, EC or RSA), PEM; keep it offline"
    )
    sign.add_argument(
        "--serial",
        type=int,
        metavar="N",
        help="this release's number (default: one more than the last one's)",
    )
    verify = actions.add_parser("verify", help="check signature, every file, and that it is no old set")
    verify.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="default: this station's")
    verify.add_argument(
        "--key", type=Path, metavar="PUBLIC.pem", help="default: the release key installed on this station"
    )
    verify.add_argument("--json", action="store_true", help="for scripts")


def run(args: argparse.Namespace) -> int:
    return _sign(args) if args.action == "sign" else _verify(args)


def _sign(args: argparse.Namespace) -> int:
    key = load_private_key(args.key)
    for path in sorted(args.folder.rglob("*.toml")):
        read(path)  # what is no TOML would be refused by every station at its start
    made = sign_set(args.folder, key, args.serial, dt.datetime.now(dt.UTC))
    print(f"Signed set {made.serial}: {len(made.files)} files of {args.folder}.")
    print(
        "Bring the whole folder to the stations, and restart each: `hallmark config verify`, `hallmark check`."
    )
    return FINE


def _verify(args: argparse.Namespace) -> int:
    own = args.folder is None
    folder = args.paths.configuration.parent if own else args.folder
    key = args.key or args.paths.release_key
    history = "not asked: another folder than this station's"
    try:
        found = read_set(folder, key)
        if own:
            history = no_roll_back(args.paths, found)
    except ConfigurationUntrusted as error:
        if args.json:
            print(json.dumps({"valid": False, "problem": str(error), "hint": error.hint}, indent=2))
        else:
            print(f"This configuration does not hold: {error}\nWhat to do: {error.hint}")
        return NOT_FINE
    if args.json:
        print(json.dumps({"valid": True, **as_plain(found), "roll_back": history}, indent=2))
        return FINE
    print(
        f"set        {found.serial}, of {found.created:%Y-%m-%d %H:%M:%SZ}, {len(found.files)} files: holds"
    )
    print(f"digest     {found.digest.hex()}")
    print(f"signed by  {found.signer.name}, {found.signer.sha256.hex()}")
    print(f"roll-back  {history}")
    return FINE


def as_plain(found: ConfigurationSet) -> dict[str, object]:
    """What scripts and `hallmark check` say of a set; the key's digest is over its SubjectPublicKeyInfo."""
    return {
        "serial": found.serial,
        "created": f"{found.created:%Y-%m-%dT%H:%M:%SZ}",
        "sha256": found.digest.hex(),
        "files": len(found.files),
        "release_key": {"name": found.signer.name, "sha256": found.signer.sha256.hex()},
    }


def no_roll_back(paths: Paths, found: ConfigurationSet) -> str:
    """In words; ConfigurationUntrusted when the station has taken a newer set before."""
    try:
        there = paths.database.exists()
    except PermissionError:
        return NOT_ASKED
    if not there:
        return "none: this station has taken no set yet"
    with Store.open(paths.database, readonly=True) as store:
        last = store.newest_release()
    refuse_older(last, found.serial, found.digest)
    return (
        f"none: the newest set taken is {last.serial}" if last else "none: this station has taken no set yet"
    )
