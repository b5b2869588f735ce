"""The `hallmark` command: finds the subcommand, turns errors into messages and exit codes.

Exit codes: 0 fine, 1 the thing asked about is not, 2 usage or configuration, 3 the daemon isn't there.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from hal.errors import ConfigError, HallmarkError, PeerUnavailable
from station.paths import Paths

COMMANDS: Final = (
    "run",
    "signer",
    "uploader",
    "status",
    "units",
    "outbox",
    "decisions",
    "escrow",
    "audit",
    "attestation",
    "ca",
    "check",
    "trust",
    "ek-list",
    "config",
    "pool",
    "manifest",
    "orders",
    "recipe",
    "drivers",
)
FINE, NOT_FINE, USAGE, NO_DAEMON = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; its exit code. Only the chosen one is imported, so that each process stays small."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if word in COMMANDS), None)
    parser = _parser(chosen)
    args = parser.parse_args(words)
    if args.command is None:
        parser.print_help()
        return USAGE
    args.paths = Paths(Path(args.root).absolute())
    try:
        return int(_module(args.command).run(args))
    except ConfigError as error:
        for problem in (error, *error.others):
            print(problem, file=sys.stderr)
        print(f"What to do: {error.hint}", file=sys.stderr)
        return USAGE
    except PeerUnavailable as error:
        print(f"{error}\nWhat to do: start it, or name its folder with --root.", file=sys.stderr)
        return NO_DAEMON
    except HallmarkError as error:
        print(f"{error.code}: {error}\nWhat to do: {error.hint}", file=sys.stderr)
        return NOT_FINE
    except BrokenPipeError:
        # `hallmark units | head`: the reader has seen enough. Keep Python from complaining once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except KeyboardInterrupt:
        return 130


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hallmark",
        description="Gives every device its identity, on the production line, without a network.",
        epilog="exit codes: 0 fine, 1 the thing asked about is not, 2 usage or configuration, 3 the daemon isn't there",
    )
    parser.add_argument(
        "--root", default="/", metavar="DIR", help="the installation's root, for bench use (default: /)"
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        if chosen not in (None, name):
            subparsers.add_parser(name)
            continue
        module = _module(name)
        sub = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.arguments(sub)
    return parser


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"station.commands.{name.replace('-', '_')}")


if __name__ == "__main__":
    sys.exit(main())
