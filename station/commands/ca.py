"""`hallmark ca`: what people do to the issuing CA.

Its verbs are in ca_ceremony.py (keys and certificates) and ca_running.py (a CA that issues).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final, get_args

from hal.types import KeyType
from station.commands import ca_ceremony, ca_running
from station.messages.ca import Reason

HELP: Final = (
    "the issuing CA: init, csr, install, activate, accept-clock, revoke, crl, group-key, status, unblock"
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


_ACTIONS: Final = {
    "init": ca_ceremony.init,
    "csr": ca_ceremony.csr,
    "install": ca_ceremony.install,
    "activate": ca_ceremony.activate,
    "accept-clock": ca_running.accept_clock,
    "revoke": ca_running.revoke,
    "crl": ca_running.crl,
    "status": ca_running.status,
    "unblock": ca_running.unblock,
    "group-key": ca_ceremony.group_key,
}
