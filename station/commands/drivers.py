"""`hallmark drivers`: which drivers are installed, and what those that station.toml names offer and need."""

from __future__ import annotations

import argparse
import json

from hal.driver import Driver
from hal.registry import installed, shadowing
from station.config import load_configuration

HELP = "list the drivers, what they offer and need, and which can't be used"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for scripts")


def run(args: argparse.Namespace) -> int:
    """1 when a driver that the station names can't be used."""
    names: list[str] = []
    broken: dict[str, str] = {}
    loaded: dict[str, Driver] = {}
    if args.paths.configuration.exists():
        registry = load_configuration(args.paths, signed=False).registry
        loaded, broken = registry.drivers, registry.broken
        names = [*loaded, *broken]
    rows = [
        _row(name, entry.value, loaded.get(name), broken.get(name))
        for name, entry in sorted(installed().items())
    ]
    if args.json:
        print(json.dumps({"drivers": rows, "refused": shadowing()}, indent=2))
    else:
        for row in rows:
            print(f"{row['name']:<16} {row['state']:<10} {row['about']}")
        for text in shadowing():
            print(f"refused: {text}")
        if not names:
            print(
                "No station.toml here: nothing was imported. Name drivers under station.drivers to use them."
            )
    return 1 if broken else 0


def _row(name: str, target: str, driver: Driver | None, problem: str | None) -> dict[str, object]:
    if problem is not None:
        return {"name": name, "state": "broken", "about": problem, "target": target}
    if driver is None:
        return {"name": name, "state": "installed", "about": "not named in station.drivers", "target": target}
    return {
        "name": name,
        "state": "loaded",
        "about": driver.summary,
        "target": target,
        "offers": sorted(item.__name__ for item in driver.offers),
        "needs": sorted(item.__name__ for item in driver.needs),
        "bench_only": driver.bench_only,
    }
