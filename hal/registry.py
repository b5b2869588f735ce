"""Finds drivers by name through entry points, and imports only those that the station's configuration names."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from typing import Final

from hal.driver import Driver
from hal.errors import ConfigError

GROUP: Final = "hallmark.drivers"
OWN_DISTRIBUTION: Final = "hallmark-station"


@dataclass(frozen=True, slots=True)
class Registry:
    """`drivers`: those that loaded, by name. `broken`: name to reason, for those that did not."""

    drivers: dict[str, Driver] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def get(self, name: str) -> Driver:
        if name in self.drivers:
            return self.drivers[name]
        reason = self.broken.get(name, "it is not among the drivers that station.toml names")
        message = f"driver {name!r} can't be used: {reason}"
        raise ConfigError(message)


def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """Every entry point of the group by name, nothing imported. Ours win over others of the same name."""
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        ours = entry.dist is not None and entry.dist.name == OWN_DISTRIBUTION
        if ours or entry.name not in found:
            found[entry.name] = entry
    return found


def shadowing() -> list[str]:
    """Names that another distribution claims although they are ours: reported, never loaded."""
    by_name: dict[str, list[str]] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        by_name.setdefault(entry.name, []).append(entry.dist.name if entry.dist else "?")
    return sorted(
        f"{name}: {owner} can't take a built-in name"
        for name, owners in by_name.items()
        if OWN_DISTRIBUTION in owners
        for owner in owners
        if owner != OWN_DISTRIBUTION
    )


def load(names: list[str]) -> Registry:
    """Imports the named drivers and no others. A driver that can't be loaded is reported and left out."""
    entries = installed()
    registry = Registry()
    for name in names:
        entry = entries.get(name)
        if entry is None:
            registry.broken[name] = "no installed package offers it (entry point group hallmark.drivers)"
            continue
        try:
            driver = entry.load()
        except Exception as error:  # noqa: BLE001 - a third party's import may fail in any way; it is reported
            registry.broken[name] = f"{type(error).__name__}: {error}"[:300]
            continue
        if not isinstance(driver, Driver) or driver.name != name:
            registry.broken[name] = f"{entry.value} is no hal.driver.Driver named {name!r}"
            continue
        registry.drivers[name] = driver
    return registry
