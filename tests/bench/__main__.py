"""`./dev bench`: what Hallmark costs beside what has to be: wire, TPM, token, disk, network. Prints tables of ratios.

Nothing here passes or fails: a figure is worth something beside the raw baseline of the same run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

from tests.bench import attestation, durable, idle, signing, trip, uploading
from tests.bench.rig import rig
from tests.bench.table import Row, as_json, text

PARTS = ("durable", "attestation", "idle", "signing", "upload", "trip")
NESTS = (1, 4, 8)
FAST, SLOW = 921600, 115200


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--quick", action="store_true", help="fewer units and shorter runs, for a first look")
    parser.add_argument("--slow", action="store_true", help="trips at 115200 baud too")
    parser.add_argument("--json", action="store_true", help="the figures as JSON, with all digits")
    args = parser.parse_args()
    parts = set(args.only or PARTS)
    quick: bool = args.quick
    found: dict[str, list[Row]] = {}

    def show(title: str, rows: list[Row]) -> None:
        found[title] = rows
        if not args.json:
            print(text(title, rows), flush=True)

    if not args.json:
        load = os.getloadavg()[0]
        print(f"{os.cpu_count()} processors, load before the start {load:.1f}\n", flush=True)
    if "durable" in parts:
        show("Durable steps", durable.run(0.5 if quick else 3.0))
    if "attestation" in parts:
        show("EK and key attestation", attestation.run(5 if quick else 25))
    if "upload" in parts:
        show("Upload", uploading.run(200 if quick else 1000))
    if parts & {"idle", "signing", "trip"}:
        with rig(max(NESTS)) as line:
            line.start()
            if "idle" in parts:
                show(f"Idle, {max(NESTS)} nests", idle.run(line, 3.0 if quick else 10.0))
            if "signing" in parts:
                show("Certificates", signing.run(line, 100 if quick else 500))
            if "trip" in parts:
                for baud in (FAST, SLOW) if args.slow else (FAST,):
                    for nests in NESTS:
                        rounds = 1 if quick else 3
                        show(f"Trips, {nests} nests", trip.run(line, nests, rounds, baud))
    if args.json:
        print(as_json(found))
    return 0


if __name__ == "__main__":
    # Also where a shell has started it with SIGINT ignored: whatever ends the bench ends its processes in order.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(130))
    sys.exit(main())
