"""Driver "port-polling": ports that no udev tells of, looked at several times a second. Opens no device.

For soldered-in ports, containers, and emulated boards. Where udev runs, "udev" is told of changes and needn't look.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drivers.discovery.ports import configured, listed
from drivers.discovery.presence import Event, Port, Presence
from drivers.discovery.wait import wait
from hal.call import Call
from hal.driver import Bindings, Driver
from hal.errors import ConfigError, quote
from hal.interfaces import Discovery

INTERVALS: Final = (0.02, 10.0)
"""Seconds, least and most: below, looking is all that the processor does; above, a person waits."""
FAILURES_TOLERATED: Final = 5
"""Looks in a row that may fail before a person is told: a port that vanishes while it is read spoils one look."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`paths`: absolute paths or globs. `serial_ports`: all ports that pyserial lists too. `interval`: seconds."""

    paths: tuple[str, ...] = ()
    serial_ports: bool = False
    interval: float = 0.2


class PollingDiscovery:
    """hal.interfaces.Discovery by looking again and again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def watch(self, call: Call) -> Iterator[Event]:
        presence = Presence()
        last: dict[str, tuple[Port, ...]] = {}
        failures: dict[str, int] = {}
        going = not call.cancel.is_set()
        while going:
            for source in self._sources():
                look = configured(source) if source else listed()
                if look.ports is not None:
                    last[source] = look.ports
                failures[source] = failures.get(source, 0) + 1 if look.problem else 0
                if failures[source] in (0, FAILURES_TOLERATED):
                    yield from presence.fault(source, look.problem)
            yield from presence.settle(_once_each(last))
            going = wait(call, self._settings.interval)

    def _sources(self) -> tuple[str, ...]:
        """The paths, and "" for pyserial's list."""
        return (*self._settings.paths, "") if self._settings.serial_ports else self._settings.paths


def _once_each(looks: Mapping[str, tuple[Port, ...]]) -> Iterator[Port]:
    """Each device once, at the place that is named first: two patterns may lead to one port."""
    seen: set[str] = set()
    for ports in looks.values():
        here = {port.sighting.port for port in ports}
        yield from (port for port in ports if port.sighting.port not in seen)
        seen |= here


@contextmanager
def _open(settings: Settings, needs: Bindings) -> Iterator[Mapping[type, object]]:
    """ConfigError when the settings lead nowhere."""
    del needs
    if not settings.paths and not settings.serial_ports:
        raise ConfigError("nothing to look at; expected paths, or serial_ports = true", key="paths")
    for path in settings.paths:
        if not Path(path).is_absolute():
            raise ConfigError(f"{quote(path)} is relative; expected an absolute path or glob", key="paths")
    least, most = INTERVALS
    if not least <= settings.interval <= most:
        raise ConfigError(f"{settings.interval} s; expected {least} to {most}", key="interval")
    yield {Discovery: PollingDiscovery(settings)}


DRIVER = Driver(
    name="port-polling",
    summary="Configured paths and globs, and the system's serial ports, looked at several times a second",
    settings=Settings,
    open=_open,
    offers=frozenset({Discovery}),
)
