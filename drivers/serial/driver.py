"""Driver "serial": the Channel over the port of the sighting. Opening and closing; the port itself is in `port`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from drivers.serial.port import SerialPort
from hal.driver import Bindings, Driver
from hal.errors import DeviceGone
from hal.interfaces import Channel
from hal.types import Sighting


@dataclass(frozen=True, slots=True)
class Settings:
    """`baud`: a standard rate. `rtscts`: hardware flow control. `low_latency`: ask the USB bridge for short delays."""

    baud: int = 115200
    rtscts: bool = False
    low_latency: bool = True


@contextmanager
def _open(settings: Settings, needs: Bindings) -> Iterator[Mapping[type, object]]:
    sighting = needs.get(Sighting)
    port = SerialPort(sighting.port, settings.baud, rtscts=settings.rtscts, low_latency=settings.low_latency)
    try:
        yield {Channel: port}
    except BaseException:
        # Closing waits for output that the board doesn't take, on some ports half a minute. A port that is
        # gone has none.
        with suppress(DeviceGone):
            port.drop_output()
        raise
    finally:
        port.close()


DRIVER = Driver(
    name="serial",
    summary="A serial port (UART, USB CDC, USB bridge, pseudo-terminal), 8N1, for this station alone",
    settings=Settings,
    open=_open,
    offers=frozenset({Channel}),
    needs=frozenset({Sighting}),
)
