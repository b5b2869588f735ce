"""Driver "port-polling" on real pseudo-terminals: the contract of Discovery, and what is its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from serial.tools import list_ports

from drivers.discovery import polling, ports
from drivers.discovery.polling import DRIVER, FAILURES_TOLERATED, Settings
from hal.call import Call
from hal.conformance import discovery as conformance
from hal.driver import opened
from hal.errors import ConfigError
from hal.interfaces import Discovery
from hal.types import Departure, DiscoveryFault, Sighting

INTERVAL = 0.02


class PtyBench:
    """Emulated boards as `drivers/emulated` makes them: a link in a folder that leads to a pseudo-terminal."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.ends: dict[int, tuple[int, int]] = {}

    def open(self) -> AbstractContextManager[Discovery]:
        return opened_discovery(self.settings)

    def plug(self, number: int) -> None:
        self.ends[number] = os.openpty()
        draft = self.folder / f"draft-{number}"
        draft.symlink_to(os.ttyname(self.ends[number][1]))
        draft.replace(self.folder / f"board-{number}")

    def unplug(self, number: int) -> None:
        (self.folder / f"board-{number}").unlink()
        self._close(number)

    def swap(self, number: int) -> None:
        """No moment without a link, and the new pseudo-terminal has the number of the old one."""
        old = (self.folder / f"board-{number}").readlink()
        self._close(number)
        self.plug(number)
        assert (self.folder / f"board-{number}").readlink() == old

    def _close(self, number: int) -> None:
        for fd in self.ends.pop(number):
            os.close(fd)


@contextmanager
def opened_discovery(settings: Settings) -> Iterator[Discovery]:
    with opened([("discovery", DRIVER, settings)], {}) as bindings:
        yield bindings.get(Discovery)


@pytest.fixture
def bench(tmp_path: Path) -> PtyBench:
    return PtyBench(tmp_path, Settings(paths=(str(tmp_path / "board-*"),), interval=INTERVAL))


def test_port_polling_keeps_the_contract_of_discovery(bench: PtyBench) -> None:
    conformance.check(bench)


def test_a_plain_path_keeps_the_contract_of_discovery_too(tmp_path: Path) -> None:
    paths = tuple(str(tmp_path / f"board-{number}") for number in (0, 1))
    bench = PtyBench(tmp_path, Settings(paths=paths, interval=INTERVAL))
    conformance.tells_changes_in_order(bench)
    conformance.tells_a_swap_as_departure_and_sighting(bench)


def test_a_sighting_has_the_path_for_place_and_the_terminal_behind_it_for_port(bench: PtyBench) -> None:
    bench.plug(0)
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        assert watching.sighting() == Sighting(
            place=str(bench.folder / "board-0"), port=os.ttyname(bench.ends[0][1])
        )
    bench.unplug(0)


def test_use_of_a_port_is_no_departure(bench: PtyBench) -> None:
    bench.plug(0)
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        node = watching.sighting().port
        for _ in range(3):
            fd = os.open(node, os.O_RDWR | os.O_NOCTTY)
            os.write(fd, b"to the board\n")
            os.write(bench.ends[0][0], b"from the board\n")
            os.read(fd, 64)
            os.close(fd)
        watching.quiet()
    bench.unplug(0)


def test_an_unplug_is_told_within_one_interval(bench: PtyBench) -> None:
    bench.settings = Settings(paths=bench.settings.paths, interval=0.2)
    bench.plug(0)
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        place = watching.sighting().place
        bench.unplug(0)
        begun = time.monotonic()
        watching.departure(place)
        assert time.monotonic() - begun < 0.2 + 0.15


def test_what_is_no_character_device_is_no_port(bench: PtyBench) -> None:
    (bench.folder / "board-file").write_text("")
    (bench.folder / "board-folder").mkdir()
    (bench.folder / "board-dangling").symlink_to(bench.folder / "nothing")
    (bench.folder / "board-loop").symlink_to(bench.folder / "board-loop")
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        fault = watching.event()
        assert isinstance(fault, DiscoveryFault)
        assert "board-loop" in str(fault.error)
        bench.plug(0)
        assert watching.sighting().place.endswith("board-0")
        watching.quiet()
        bench.unplug(0)
        watching.departure(str(bench.folder / "board-0"))


def test_two_patterns_that_lead_to_one_port_give_one_place(tmp_path: Path) -> None:
    paths = (str(tmp_path / "board-0"), str(tmp_path / "board-*"))
    bench = PtyBench(tmp_path, Settings(paths=paths, interval=INTERVAL))
    bench.plug(0)
    (tmp_path / "board-alias").symlink_to(os.ttyname(bench.ends[0][1]))
    with bench.open() as discovery, conformance.Watching(discovery) as watching:
        assert watching.sighting().place == str(tmp_path / "board-0")
        watching.quiet()
    (tmp_path / "board-alias").unlink()
    bench.unplug(0)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (Settings(), "paths"),
        (Settings(paths=("boards/*",)), "paths"),
        (Settings(paths=("/tmp/x",), interval=0.0), "interval"),
        (Settings(paths=("/tmp/x",), interval=float("nan")), "interval"),
        (Settings(paths=("/tmp/x",), interval=3600.0), "interval"),
    ],
)
def test_settings_that_lead_nowhere_are_refused_with_their_key(settings: Settings, key: str) -> None:
    with pytest.raises(ConfigError) as caught, opened_discovery(settings):
        pass
    assert caught.value.key == key


# --- pyserial's list ---


class ListedPort:
    def __init__(self, device: str) -> None:
        self.device = device


@pytest.fixture
def comports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Callable[[], list[ListedPort]]]:
    """What pyserial answers, look by look; the last answer stays. And a sysfs of our own."""
    answers: list[Callable[[], list[ListedPort]]] = []
    monkeypatch.setattr(ports, "SYSFS_TTY", tmp_path / "class/tty")
    monkeypatch.setattr(
        list_ports, "comports", lambda: (answers.pop(0) if len(answers) > 1 else answers[0])()
    )
    return answers


def listed_events(count: int) -> list[Sighting | Departure | DiscoveryFault]:
    discovery = polling.PollingDiscovery(Settings(serial_ports=True, interval=INTERVAL))
    watch = discovery.watch(Call.lasting(5))
    return [next(watch) for _ in range(count)]


def test_the_real_list_of_serial_ports_can_be_looked_at() -> None:
    with (
        opened_discovery(Settings(serial_ports=True, interval=INTERVAL)) as discovery,
        conformance.Watching(discovery),
    ):
        pass
    assert ports.listed().problem is None


def test_a_listed_port_off_the_usb_is_named_by_its_node(
    comports: list[Callable[[], list[ListedPort]]], tmp_path: Path
) -> None:
    master, slave = os.openpty()
    node = os.ttyname(slave)
    comports.append(lambda: [ListedPort(node)])
    assert listed_events(1) == [Sighting(place=f"tty:{node}", port=node)]
    os.close(master)
    os.close(slave)


def test_a_port_without_hardware_behind_it_is_left_out(
    comports: list[Callable[[], list[ListedPort]]], tmp_path: Path
) -> None:
    ghost, real = os.openpty(), os.openpty()
    for ends, kind in ((ghost, "0"), (real, "4")):
        folder = tmp_path / "class/tty" / Path(os.ttyname(ends[1])).name
        folder.mkdir(parents=True)
        (folder / "type").write_text(f"{kind}\n")
    comports.append(lambda: [ListedPort(os.ttyname(ends[1])) for ends in (ghost, real)])
    found = ports.listed().ports
    assert found is not None
    assert [port.sighting.port for port in found] == [os.ttyname(real[1])]
    for fd in (*ghost, *real):
        os.close(fd)


def test_a_list_that_breaks_by_a_removal_is_read_again_and_told_only_when_it_lasts(
    comports: list[Callable[[], list[ListedPort]]],
) -> None:
    ends = os.openpty()
    node = os.ttyname(ends[1])

    def broken() -> list[ListedPort]:
        raise TypeError("int() can't convert non-string with explicit base")  # as pyserial 3.5 does

    comports += [lambda: [ListedPort(node)], broken, broken, lambda: [ListedPort(node)], list]
    assert listed_events(2) == [Sighting(f"tty:{node}", node), Departure(f"tty:{node}")]
    comports[:] = [broken] * FAILURES_TOLERATED
    (fault,) = listed_events(1)
    assert isinstance(fault, DiscoveryFault)
    for fd in ends:
        os.close(fd)
