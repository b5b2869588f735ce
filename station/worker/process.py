"""A worker's life: give up every right that a visit doesn't need, import drivers, wait for a visit, serve it, end."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hal.call import Call, Cancel
from hal.driver import Bindings, Driver, opened
from hal.errors import ConfigError, HallmarkError, StationError, quote
from hal.interfaces import Credentials
from hal.registry import Registry, load
from hal.secret import Secret
from hal.types import Sighting
from station import logs, messages
from station.action import Circumstances, Trip
from station.recipe import rebuild_steps
from station.runner import Runner
from station.strict import Problems, convert
from station.toml_source import TomlSource
from station.wire import Link
from station.worker.desk import StationDesk, sighting

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38
DUMPABLE_NO: Final = 0


def main(arguments: list[str]) -> int:
    """`arguments`: the socket's descriptor, then the names of the drivers that a visit may need."""
    descriptor, drivers = int(arguments[0]), arguments[1:]
    confine(keep=descriptor)
    registry = load(drivers)
    gc.freeze()  # modules stay until the end: the collector need not look through them again and again
    gc.enable()
    link: Link[messages.StationSays] = Link(socket.socket(fileno=descriptor), messages.StationSays)
    link.send(messages.Ready(os.getpid()))
    visit = link.receive()
    if not isinstance(visit, messages.Visit):
        return os.EX_PROTOCOL
    return serve(link, visit, registry)


def confine(keep: int) -> None:
    """One device and one socket: no other descriptor, no environment, no core dump, no tracing, dies with
    its station.
    """
    os.closerange(3, keep)
    os.closerange(keep + 1, max(keep + 2, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    os.environ.clear()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in (
        (PR_SET_PDEATHSIG, signal.SIGKILL),
        (PR_SET_DUMPABLE, DUMPABLE_NO),
        (PR_SET_NO_NEW_PRIVS, 1),
    ):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise StationError(f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}")
    # A terminal's Ctrl-C reaches the whole process group: the station decides what its workers do then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def serve(link: Link[messages.StationSays], visit: messages.Visit, registry: Registry) -> int:
    """The visit, to its end; 0 when the station has recorded how it ended."""
    cancel = Cancel()
    desk = StationDesk(link, cancel)
    logs.configure("worker", forward=lambda level, event, fields: desk.log(level, event, **fields))
    trip = Trip(
        about=Circumstances(
            visit.station,
            visit.bench,
            visit.sku,
            tuple(visit.issuers),
            visit.long_lived_days,
        ),
        board=Bindings(),
        desk=desk,
        call=Call(cancel=cancel),
        inherits=frozenset(visit.inherits),
    )
    with BoardPlace(desk, visit, registry) as place:
        runner = Runner(trip, desk, place, desk)
        try:
            runner.run(rebuild_steps(visit.steps))
        except HallmarkError as error:
            _tell(desk, runner, error)
        except Exception as error:  # noqa: BLE001 - a bug or a broken driver: it ends this visit as ERROR, with its place
            desk.log("error", "bug", traceback=_where(error))
            _tell(desk, runner, StationError(f"a fault in Hallmark or a driver: {_where(error)}"))
    desk.close()
    link.close()
    return 0


def _tell(desk: StationDesk, runner: Runner, error: HallmarkError) -> None:
    """Reports the end. A station that is gone finds the open visit in its journal when it is back."""
    with contextlib.suppress(HallmarkError):
        desk.failed(runner.step, runner.action, error)


def _where(error: BaseException) -> str:
    """Type and places, without values: a traceback's values might be secrets."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}"


class GivenCredentials:
    """`hal.interfaces.Credentials`: those that came with the visit, which are those that its recipe names."""

    def __init__(self, given: Mapping[str, bytes]) -> None:
        self._given = {name: Secret(value) for name, value in given.items()}

    def secret(self, name: str) -> Secret:
        if name not in self._given:
            raise ConfigError(f"credential {quote(name)} did not come with the visit")
        return self._given[name]


class BoardPlace:
    """The board's drivers, opened in the order of their needs, and opened anew when the board comes back."""

    def __init__(self, desk: StationDesk, visit: messages.Visit, registry: Registry) -> None:
        self._desk, self._visit, self._registry = desk, visit, registry
        self._open: contextlib.ExitStack = contextlib.ExitStack()
        self._sighting = sighting(visit.sighting)
        self._credentials = GivenCredentials(visit.credentials)

    def __enter__(self) -> BoardPlace:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def enter(self, trip: Trip) -> None:
        self._close()
        stack = contextlib.ExitStack()
        known: dict[type, object] = {Sighting: self._sighting, Credentials: self._credentials}
        trip.board = stack.enter_context(opened(self._plan(), known))
        self._open = stack

    def absent(self, within: float) -> None:
        self._desk.absent(within)

    def return_to(self, trip: Trip) -> None:
        self._close()
        self._sighting = self._desk.present()
        self.enter(trip)

    def _plan(self) -> list[tuple[str, Driver, object]]:
        plan: list[tuple[str, Driver, object]] = []
        for item in self._visit.drivers:
            driver = self._registry.get(item.driver)
            problems = Problems()
            source = TomlSource(f"settings of {item.driver}", item.settings, {})
            settings = convert(source, driver.settings, problems)
            problems.raise_first()
            plan.append((item.role, driver, settings))
        return plan

    def _close(self) -> None:
        """A device that is gone can't be closed in good order: that is logged, not raised."""
        stack, self._open = self._open, contextlib.ExitStack()
        try:
            stack.close()
        except HallmarkError as error:
            with contextlib.suppress(HallmarkError):
                self._desk.log("info", "closing the board failed", code=error.code, reason=str(error))
