"""Driver "udev": boards on the USB by hot-plug events, placed by their USB path. Opens no device.

Only ttys on the USB come in; ports that are soldered in have no hot-plug and belong to "port-polling".
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from drivers.discovery.libudev import CONTROL, Libudev, TtyDevice
from drivers.discovery.presence import Event, Port, Presence, accessible
from drivers.discovery.usb import locate
from drivers.discovery.wait import wait
from hal.call import Call
from hal.driver import Bindings, Driver
from hal.errors import DeadlineExceeded, StationError
from hal.interfaces import Discovery
from hal.types import Sighting

RESTART_PAUSE: Final = 1.0
"""Seconds until a udev that isn't there, or that failed, is tried again."""
BURST_LIMIT: Final = 4096
"""Events thrown away after an overflow before the enumeration is read all the same."""


class Source(Protocol):
    """What is used of `Libudev`; tests put another one in its place."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def receive(self) -> tuple[str, TtyDevice] | None: ...
    def devices(self) -> Iterator[TtyDevice]: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """None: what is followed is decided by the nests' places."""


class UdevDiscovery:
    """hal.interfaces.Discovery over udev. Each `watch` has a monitor of its own."""

    def __init__(
        self,
        make_source: Callable[[], Source] = Libudev,
        control: Path = CONTROL,
        may_open: Callable[[str], bool] = accessible,
    ) -> None:
        self._make_source = make_source
        self._control = control
        self._may_open = may_open

    def watch(self, call: Call) -> Iterator[Event]:
        presence = Presence(self._may_open)
        while not call.cancel.is_set():
            try:
                if not self._control.exists():
                    raise StationError(
                        "udev does not run here, so plugged-in boards go unseen",
                        hint="Start systemd-udevd, or use the discovery driver port-polling.",
                    )
                with closing(self._make_source()) as source:
                    yield from presence.fault("udev", None)
                    yield from _Watch(source, presence, call).run()
            except DeadlineExceeded:  # a TimeoutError, and so an OSError
                raise
            except OSError as error:
                problem = StationError(f"udev can't be listened to: {error.strerror or error}")
                yield from presence.fault("udev", problem)
            except StationError as error:
                yield from presence.fault("udev", error)
            wait(call, RESTART_PAUSE)


class _Watch:
    """The ttys that one source has told of, from its first enumeration on."""

    def __init__(self, source: Source, presence: Presence, call: Call) -> None:
        self._source = source
        self._presence = presence
        self._call = call
        self._attached: dict[str, tuple[TtyDevice, Port]] = {}

    def run(self) -> Iterator[Event]:
        """Until the cancel is set. OSError when the source is broken."""
        yield from self._enumerate()
        while wait(self._call, self._presence.retry_after(), self._source.fileno()):
            try:
                event = self._source.receive()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # What is still queued is older than what was lost: it would undo what the enumeration finds.
                self._drop_queued()
                yield from self._enumerate()
                continue
            if event is not None:
                self._take(*event)
            yield from self._presence.settle(port for _, port in self._attached.values())

    def _enumerate(self) -> Iterator[Event]:
        self._attached.clear()
        for device in self._source.devices():
            # What udev hasn't been through yet will be told of by an event.
            if device.initialized:
                self._attach(device)
        yield from self._presence.settle(port for _, port in self._attached.values())

    def _drop_queued(self) -> None:
        for _ in range(BURST_LIMIT):
            try:
                if self._source.receive() is None:
                    return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def _take(self, action: str, device: TtyDevice) -> None:
        if action != "remove":
            self._attach(device)
            return
        known = self._attached.get(device.key)
        if known and (not device.made or not known[0].made or device.made == known[0].made):
            del self._attached[device.key]

    def _attach(self, device: TtyDevice) -> None:
        if device.node is None:
            return
        usb = locate(device.folder)
        if usb is None:
            return
        sighting = Sighting(
            place=usb.place,
            port=device.node,
            vendor_id=usb.vendor_id,
            product_id=usb.product_id,
            serial_number=usb.serial_number,
            description=usb.description,
        )
        # One place holds one tty: another one there means that its removal went unseen.
        for key, (_, port) in list(self._attached.items()):
            if port.sighting.place == usb.place and key != device.key:
                del self._attached[key]
        self._attached[device.key] = (device, Port(sighting, (device.key, device.made, usb.number)))


@contextmanager
def _open(settings: Settings, needs: Bindings) -> Iterator[Mapping[type, object]]:
    del settings, needs
    yield {Discovery: UdevDiscovery()}


DRIVER = Driver(
    name="udev",
    summary="Serial ports on the USB, by hot-plug events, placed by their USB path",
    settings=Settings,
    open=_open,
    offers=frozenset({Discovery}),
)
