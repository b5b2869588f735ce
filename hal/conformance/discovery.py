"""What every Discovery promises, checked by plugging and unplugging things: `check(bench)`.

The bench is the caller's: real hot-plug, a relay, or a stand-in at the driver's border. No test framework comes in.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Final, Protocol, Self

from hal.call import Call, Cancel
from hal.interfaces import Discovery
from hal.types import Departure, DiscoveryFault, Sighting

PATIENCE: Final = 10.0
"""Seconds for a change to be told. Hot-plug takes about one."""
QUIET: Final = 0.3
"""Seconds without any event that count as "nothing more is told"."""
PROMPT: Final = 1.0
"""Seconds in which a watch ends after its cancel is set."""
TEXT_LIMIT: Final = 128

Event = Sighting | Departure | DiscoveryFault


class Bench(Protocol):
    """Places 0 and 1 that things can be plugged into; empty before and after each check."""

    def open(self) -> AbstractContextManager[Discovery]:
        """The discovery under test, as its driver opens it."""

    def plug(self, number: int) -> None:
        """Plugs a device in at place `number`: another device (or another plug-in) each time."""

    def unplug(self, number: int) -> None: ...

    def swap(self, number: int) -> None:
        """Unplugs and plugs another in, as fast as the bench can, so that the removal may go unseen."""


class Watching:
    """A watch in a thread of its own, and what it has told. Leaving cancels it."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._call = Call(cancel=Cancel())
        self._events: queue.Queue[Event | BaseException] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="discovery-watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        begun = time.monotonic()
        self._call.cancel.set()
        self._thread.join(PATIENCE)
        ended, took = not self._thread.is_alive(), time.monotonic() - begun
        if ended:
            self._call.cancel.close()
        if error is None:
            assert ended, "the watch goes on after its cancel"
            assert took < PROMPT, f"the watch ended {took:.1f} s after its cancel"
            self._assert_no_error()

    def event(self) -> Event:
        """The next one; AssertionError when none comes."""
        try:
            found = self._events.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError("nothing was told") from None
        return self._no_error(found)

    def sighting(self) -> Sighting:
        found = self.event()
        assert isinstance(found, Sighting), f"expected a Sighting, got {found}"
        return found

    def departure(self, place: str) -> None:
        found = self.event()
        assert found == Departure(place), f"expected the departure from {place}, got {found}"

    def quiet(self) -> None:
        """Nothing more is told for a while."""
        try:
            found = self._events.get(timeout=QUIET)
        except queue.Empty:
            return
        raise AssertionError(f"nothing happened, but it told {found}")

    def _run(self) -> None:
        try:
            for event in self._discovery.watch(self._call):
                self._events.put(event)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that checks
            self._events.put(error)

    def _assert_no_error(self) -> None:
        while not self._events.empty():
            self._no_error(self._events.get_nowait())

    @staticmethod
    def _no_error(found: Event | BaseException) -> Event:
        if isinstance(found, BaseException):
            raise found  # with its own traceback: the contract is that no error leaves a watch
        return found


def check(bench: Bench) -> None:
    """All of the below, one after the other."""
    tells_what_is_there_first(bench)
    tells_changes_in_order(bench)
    tells_a_swap_as_departure_and_sighting(bench)
    keeps_its_places(bench)
    bounds_what_descriptors_claim(bench)
    opens_nothing(bench)
    ends_by_cancel_at_once(bench)


def tells_what_is_there_first(bench: Bench) -> None:
    with _plugged(bench, 0, 1), bench.open() as discovery:
        for _ in range(2):  # a second watch starts anew
            with Watching(discovery) as watching:
                first, second = watching.sighting(), watching.sighting()
                assert first.place != second.place, "two devices at one place"
                assert first.port != second.port, "two devices with one port"
                watching.quiet()


def tells_changes_in_order(bench: Bench) -> None:
    with bench.open() as discovery, Watching(discovery) as watching:
        watching.quiet()
        with _plugged(bench, 0):
            place = watching.sighting().place
            with _plugged(bench, 1):
                other = watching.sighting().place
            watching.departure(other)
        watching.departure(place)
        with _plugged(bench, 0):
            assert watching.sighting().place == place, "the same place has another name"
        watching.departure(place)
        watching.quiet()


def tells_a_swap_as_departure_and_sighting(bench: Bench) -> None:
    with bench.open() as discovery, _plugged(bench, 0), Watching(discovery) as watching:
        place = watching.sighting().place
        bench.swap(0)
        watching.departure(place)
        assert watching.sighting().place == place
        watching.quiet()


def keeps_its_places(bench: Bench) -> None:
    """A place's name doesn't depend on what was plugged in before, or elsewhere."""
    names: list[tuple[str, str]] = []
    with bench.open() as discovery:
        for order in ((0, 1), (1, 0)):
            with Watching(discovery) as watching, _plugged(bench, order[0]):
                first = watching.sighting().place
                with _plugged(bench, order[1]):
                    second = watching.sighting().place
                    names.append((first, second))
    assert names[0] == names[1][::-1], "names follow the order of plugging in"


def bounds_what_descriptors_claim(bench: Bench) -> None:
    with _plugged(bench, 0), bench.open() as discovery, Watching(discovery) as watching:
        found = watching.sighting()
    assert found.place
    assert found.port.startswith("/"), "a port is an absolute path"
    for text in (found.serial_number, found.description):
        assert text is None or (0 < len(text) <= TEXT_LIMIT), "empty or unbounded text"
        assert text is None or all(" " <= letter <= "~" for letter in text), "unprintable text"
    for number in (found.vendor_id, found.product_id):
        assert number is None or 0 <= number <= 0xFFFF


def opens_nothing(bench: Bench) -> None:
    """Opening a port moves DTR and RTS, which resets boards; only the nest may do so."""
    with (
        bench.open() as discovery,
        _opened_files() as opened,
        Watching(discovery) as watching,
        _plugged(bench, 0),
    ):
        port = watching.sighting().port
        watching.quiet()
    assert port not in opened, f"{port} was opened"


def ends_by_cancel_at_once(bench: Bench) -> None:
    with bench.open() as discovery:
        with Watching(discovery) as watching:
            watching.quiet()
        call = Call()
        call.cancel.set()
        begun = time.monotonic()
        list(discovery.watch(call))
        assert time.monotonic() - begun < PROMPT, "a watch that is cancelled before it starts goes on"
        call.cancel.close()


@contextmanager
def _plugged(bench: Bench, *numbers: int) -> Iterator[None]:
    for number in numbers:
        bench.plug(number)
    try:
        yield
    finally:
        for number in numbers:
            bench.unplug(number)


_recorders: list[set[str]] = []
_hooked = threading.Event()


@contextmanager
def _opened_files() -> Iterator[set[str]]:
    """The paths that this process opens meanwhile, as Python's audit events tell (hooks can't be taken out again)."""
    if not _hooked.is_set():
        _hooked.set()
        sys.addaudithook(_on_audit)
    opened: set[str] = set()
    _recorders.append(opened)
    try:
        yield opened
    finally:
        _recorders.remove(opened)


def _on_audit(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _recorders:
        for recorder in _recorders:
            recorder.add(str(arguments[0]))
