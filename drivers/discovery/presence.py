"""Turns "these ports are there now" into sightings and departures, for both ways of looking.

A port that is there but may not be opened yet is held back: udev makes a node first and sets its owner, mode and access
list later. Permissions are asked for, the port is never opened.
"""

from __future__ import annotations

import grp
import os
import stat
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hal.errors import ConfigError, DeviceBusy, HallmarkError, quote
from hal.types import Departure, DiscoveryFault, Sighting

PORT_LIMIT: Final = 256
"""Ports followed at once; a station has at most 64 nests."""
ACCESS_PATIENCE: Final = 3.0
"""Seconds that a new port may stay inaccessible before a person is told. udev's rules take well under one."""
ACCESS_RETRY: Final = 0.1
"""Seconds between looks at such a port, while patience lasts."""
ACCESS_RETRY_LATER: Final = 2.0
"""The same, after the person was told: a changed mode gives no event."""

Event = Sighting | Departure | DiscoveryFault


@dataclass(frozen=True, slots=True)
class Port:
    """What is at a place. Two that differ in anything are two plug-ins, even at one place."""

    sighting: Sighting
    identity: Hashable


@dataclass(slots=True)
class _Waiting:
    port: Port
    since: float
    told: bool = False


def accessible(node: str) -> bool:
    """Whether this process could open `node` for reading and writing, by its effective user and groups."""
    return os.access(node, os.R_OK | os.W_OK, effective_ids=True)


class Presence:
    """What has been yielded so far. Used by one thread."""

    def __init__(
        self,
        may_open: Callable[[str], bool] = accessible,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._may_open = may_open
        self._clock = clock
        self._shown: dict[str, Port] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._faults: dict[str, str] = {}

    def settle(self, ports: Iterable[Port]) -> Iterator[Event]:
        """The changes that lead to exactly `ports` being there: departures first, so that a swap is seen as both."""
        found: dict[str, Port] = {}
        surplus = 0
        for port in ports:
            if len(found) >= PORT_LIMIT and port.sighting.place not in found:
                surplus += 1
                continue
            found[port.sighting.place] = port
        for place in [place for place, port in self._shown.items() if found.get(place) != port]:
            del self._shown[place]
            yield Departure(place)
        self._waiting = {place: one for place, one in self._waiting.items() if found.get(place) == one.port}
        for place, port in found.items():
            if place not in self._shown:
                yield from self._admit(place, port)
        message = f"{surplus} more ports than the {PORT_LIMIT} that are followed"
        yield from self.fault("surplus", ConfigError(message) if surplus else None)

    def fault(self, topic: str, error: HallmarkError | None) -> Iterator[DiscoveryFault]:
        """`error` once, until it changes or is over (None): what is looked at five times a second says so once."""
        text = str(error) if error else ""
        if self._faults.get(topic, "") == text:
            return
        self._faults[topic] = text
        if error:
            yield DiscoveryFault(error)

    def retry_after(self) -> float | None:
        """Seconds after which `settle` is worth calling though nothing has happened; None when it isn't."""
        if not self._waiting:
            return None
        all_told = all(one.told for one in self._waiting.values())
        return ACCESS_RETRY_LATER if all_told else ACCESS_RETRY

    def _admit(self, place: str, port: Port) -> Iterator[Event]:
        node = port.sighting.port
        if self._may_open(node):
            self._waiting.pop(place, None)
            self._shown[place] = port
            yield port.sighting
            return
        now = self._clock()
        waiting = self._waiting.setdefault(place, _Waiting(port, now))
        if not waiting.told and now - waiting.since >= ACCESS_PATIENCE:
            waiting.told = True
            yield DiscoveryFault(_inaccessible(node, place))


def _inaccessible(node: str, place: str) -> DeviceBusy:
    try:
        found = Path(node).stat()
    except OSError as error:
        return DeviceBusy(f"{quote(node)} at {quote(place)} can't be looked at: {error.strerror}")
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return DeviceBusy(
        f"{quote(node)} at {quote(place)} may not be read and written by this user: "
        f"it belongs to group {group}, mode {stat.S_IMODE(found.st_mode):04o}",
        hint=f"Add the station's user to group {group}, or install Hallmark's udev rules; then re-plug the board.",
    )
