"""systemd is told what is so: ready when ready, and alive only while every loop comes round."""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from station import notify
from station.notify import Watchdog


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_messages_arrive_at_the_socket_that_systemd_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        assert notify.ready("4 nests\nforged=1")
        assert systemd.recv(1000) == b"READY=1\nSTATUS=4 nests forged=1"
        assert notify.stopping()
        assert systemd.recv(1000) == b"STOPPING=1"


def test_an_abstract_socket_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("")  # the kernel chooses an abstract name
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + systemd.getsockname()[1:].decode())
        assert notify.status("well")
        assert systemd.recv(1000) == b"STATUS=well"


def test_outside_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"):
        monkeypatch.delenv(name, raising=False)
    assert not notify.ready()
    assert notify.watchdog_interval() is None
    assert notify.listen_fds() == {}


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("30000000", "", 30.0),
        ("30000000", "mine", 30.0),
        ("30000000", "1", None),
        ("", "", None),
        ("x", "", None),
        ("0", "", None),
    ],
)
def test_the_interval_counts_for_the_named_process_only(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, expected: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "mine" else pid)
    assert notify.watchdog_interval() == expected


def test_sockets_for_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "3")
    assert notify.listen_fds() == {}


def test_one_silent_loop_starves_the_watchdog_however_lively_the_others_are() -> None:
    sent: list[str] = []
    clock = Clock()
    watchdog = Watchdog(["nests", "store"], allowed=30, send=sent.append, clock=clock)
    for _ in range(100):
        clock.now += 1
        watchdog.beat("nests")
    assert sent == []
    assert watchdog.late() == ["store"]
    watchdog.beat("store")
    assert sent == ["WATCHDOG=1"]


def test_a_loop_that_ended_on_purpose_is_not_waited_for() -> None:
    sent: list[str] = []
    clock = Clock()
    watchdog = Watchdog(["nests"], allowed=30, send=sent.append, clock=clock)
    watchdog.register("nest-A")
    clock.now = 20
    watchdog.beat("nests")
    assert sent == []
    watchdog.unregister("nest-A")
    watchdog.beat("nests")
    assert sent == ["WATCHDOG=1"]


def test_a_misspelt_loop_is_an_error() -> None:
    with pytest.raises(KeyError):
        Watchdog(["nests"], allowed=30).beat("nest")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 9)), max_size=60))
def test_signs_of_life_come_in_time_exactly_while_all_loops_do(rounds: list[tuple[str, float]]) -> None:
    """Between two signs every loop has beaten at least once; and loops that are in time keep systemd content."""
    clock, signs = Clock(), [0.0]
    beats: dict[str, list[float]] = {"a": [], "b": []}
    watchdog = Watchdog(["a", "b"], allowed=30, send=lambda _: signs.append(clock.now), clock=clock)
    for name, pause in rounds:
        clock.now += pause
        beats[name].append(clock.now)
        watchdog.beat(name)
    for before, after in itertools.pairwise(signs):
        assert all(any(before <= at <= after for at in times) for times in beats.values())
    for name in ("a", "b"):
        times = [0.0, *beats[name], clock.now]
        if any(later - earlier > watchdog.interval for earlier, later in itertools.pairwise(times)):
            return
    assert all(later - earlier <= 30 for earlier, later in zip(signs, [*signs[1:], clock.now], strict=True))
