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


def _claims() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """Every entry point of the group by name, ours first. Nothing is imported."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    for entries in found.values():
        entries.sort(key=lambda entry: _owner(entry) != OWN_DISTRIBUTION)
    return found


def _owner(entry: importlib.metadata.EntryPoint) -> str:
    # A folder with broken metadata has no name, whatever the types say.
    return (entry.dist.name if entry.dist else "") or "?"


def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """One entry point for each name, nothing imported. Ours win over others of the same name."""
    return {name: entries[0] for name, entries in _claims().items()}


def shadowing() -> list[str]:
    """Names that another distribution claims although they are ours: reported, never loaded."""
    return sorted(
        f"{name}: {_owner(entry)} can't take a built-in name"
        for name, entries in _claims().items()
        if _owner(entries[0]) == OWN_DISTRIBUTION
        for entry in entries[1:]
    )


def load(names: list[str]) -> Registry:
    """Imports the named drivers and no others. A driver that can't be loaded is reported and left out."""
    claims = _claims()
    registry = Registry()
    for name in names:
        entries = claims.get(name)
        if not entries:
            registry.broken[name] = "no installed package offers it (entry point group hallmark.drivers)"
            continue
        entry = entries[0]
        if len(entries) > 1 and _owner(entry) != OWN_DISTRIBUTION:
            owners = ", ".join(sorted(_owner(entry) for entry in entries))
            registry.broken[name] = f"several packages offer it ({owners}); uninstall all but one"[:300]
            continue
        try:
            driver = entry.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a third party's import may fail in any way; it is reported
            registry.broken[name] = f"{type(error).__name__}: {error}"[:300]
            continue
        if not isinstance(driver, Driver) or driver.name != name:
            registry.broken[name] = f"{entry.value} is no hal.driver.Driver named {name!r}"
            continue
        registry.drivers[name] = driver
    return registry
