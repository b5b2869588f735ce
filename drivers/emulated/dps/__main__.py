"""`python -m drivers.emulated.dps`: prints one line {"endpoint": ...} when it is ready, and serves until SIGTERM."""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import signal
import sys
from pathlib import Path

from drivers.emulated.dps.control import ControlServer, bulk_pattern
from drivers.emulated.dps.device_api import DeviceApi
from drivers.emulated.dps.server import Cloud, Tls
from drivers.emulated.dps.service_api import ServiceApi
from drivers.emulated.dps.store import Store
from drivers.emulated.dps.weather import Weather


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m drivers.emulated.dps", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 (the default): a free one")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"), help="PEM files; without, plain HTTP")
    parser.add_argument("--policy", default="station", help="name of the shared access policy")
    parser.add_argument(
        "--key-file", type=Path, help="file with the policy's base64 key; without, no SAS is asked"
    )
    parser.add_argument("--state", type=Path, help="SQLite file that keeps the records over a restart")
    parser.add_argument("--id-scope", default="0ne00000000")
    parser.add_argument(
        "--hub", default="emulated.azure-devices.net", help="IoT hub that devices are assigned to"
    )
    parser.add_argument("--rate-limit", type=int, metavar="N", help="operations a minute; more get 429")
    parser.add_argument(
        "--fail-bulk",
        type=bulk_pattern,
        metavar="PATTERN[=CODE]",
        help="bulk items whose registration ID matches fail with errorCode CODE",
    )
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument(
        "--control", type=Path, metavar="SOCKET", help="unix socket of /emulator/ (see control.py)"
    )
    parser.add_argument("--away", action="store_true", help="start unreachable, until told to come back")
    return parser


def main(given: list[str] | None = None) -> int:
    options = arguments().parse_args(given)
    # Blocked before any thread starts, so that only the wait below takes them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        key = (
            base64.b64decode(options.key_file.read_text().strip(), validate=True)
            if options.key_file
            else None
        )
    except (OSError, ValueError, binascii.Error) as error:
        print(f"--key-file: {error}", file=sys.stderr)
        return 2
    store = Store(options.state)
    weather = Weather(options.rate_limit, options.latency, options.fail_bulk)
    cloud = Cloud(
        store,
        weather,
        ServiceApi(store, weather, options.policy, key),
        DeviceApi(store, weather, options.id_scope, options.hub),
        port=options.port,
        tls=Tls(*options.tls) if options.tls else None,
    )
    try:
        cloud.open()
    except OSError as error:
        print(f"--port {options.port}: {error.strerror}", file=sys.stderr)
        return 2
    if options.away:
        cloud.close()
    control = ControlServer(options.control, cloud) if options.control else None
    print(json.dumps({"endpoint": cloud.endpoint, "id_scope": options.id_scope}), flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    if control is not None:
        control.close()
    cloud.close()
    store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
