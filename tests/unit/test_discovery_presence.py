"""Sightings and departures must lead, from whatever was there, to what is there; and faults are told once."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from drivers.discovery.presence import (
    ACCESS_PATIENCE,
    ACCESS_RETRY,
    ACCESS_RETRY_LATER,
    PORT_LIMIT,
    Event,
    Port,
    Presence,
    accessible,
)
from hal.errors import ConfigError, DeviceBusy
from hal.types import Departure, DiscoveryFault, Sighting


def port(place: str, identity: object = 0, node: str = "/dev/null") -> Port:
    return Port(Sighting(place, node), hash(identity))


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2), max_size=4), max_size=12))
def test_events_lead_to_what_is_there_and_never_sight_a_place_twice(looks: list[dict[str, int]]) -> None:
    presence = Presence(may_open=lambda node: True)
    told: dict[str, Sighting] = {}
    before: dict[str, int] = {}
    for look in looks:
        ports = [Port(Sighting(place, f"/dev/{place}{number}"), number) for place, number in look.items()]
        for event in presence.settle(ports):
            if isinstance(event, Departure):
                del told[event.place]  # KeyError: a departure of what was never sighted
            else:
                assert isinstance(event, Sighting)
                assert event.place not in told
                told[event.place] = event
                assert before.get(event.place) != look[event.place], "told again though nothing changed"
        assert {place: sighting.port for place, sighting in told.items()} == {
            place: f"/dev/{place}{number}" for place, number in look.items()
        }
        before = look


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_port_is_told_when_it_may_be_opened_and_not_before() -> None:
    allowed: set[str] = set()
    presence = Presence(may_open=allowed.__contains__, clock=Clock())
    assert presence.retry_after() is None
    assert list(presence.settle([port("a")])) == []
    assert presence.retry_after() == ACCESS_RETRY
    allowed.add("/dev/null")
    assert list(presence.settle([port("a")])) == [Sighting("a", "/dev/null")]
    assert presence.retry_after() is None


def test_a_port_that_stays_inaccessible_is_told_once_with_node_and_group_and_still_waited_for() -> None:
    allowed: set[str] = set()
    clock = Clock()
    presence = Presence(may_open=allowed.__contains__, clock=clock)
    told: list[Event] = []
    for clock.now in (0.0, 1.0, ACCESS_PATIENCE, ACCESS_PATIENCE + 1, ACCESS_PATIENCE + 100):
        told += presence.settle([port("a")])
    (fault,) = told
    assert isinstance(fault, DiscoveryFault)
    assert isinstance(fault.error, DeviceBusy)
    assert "/dev/null" in str(fault.error)
    assert "group root" in str(fault.error)
    assert "0666" in str(fault.error)
    assert "group root" in fault.error.hint
    assert presence.retry_after() == ACCESS_RETRY_LATER
    allowed.add("/dev/null")
    assert list(presence.settle([port("a")])) == [Sighting("a", "/dev/null")]


def test_another_device_at_the_place_gets_a_patience_of_its_own() -> None:
    clock = Clock()
    presence = Presence(may_open=lambda node: False, clock=clock)
    assert list(presence.settle([port("a", 1)])) == []
    clock.now = ACCESS_PATIENCE - 0.1
    assert list(presence.settle([port("a", 2)])) == []
    clock.now = ACCESS_PATIENCE + 0.1
    assert list(presence.settle([port("a", 2)])) == []
    assert list(presence.settle([])) == []
    assert presence.retry_after() is None, "a port that left is no longer waited for"


def test_a_node_that_vanished_meanwhile_is_told_as_such() -> None:
    clock = Clock()
    presence = Presence(may_open=lambda node: False, clock=clock)
    gone = port("a", node="/dev/there-is-no-such-node")
    assert list(presence.settle([gone])) == []
    clock.now = ACCESS_PATIENCE
    (fault,) = presence.settle([gone])
    assert isinstance(fault, DiscoveryFault)
    assert "No such file" in str(fault.error)


def test_ports_beyond_the_limit_are_told_of_once_and_left_out() -> None:
    presence = Presence(may_open=lambda node: True)
    crowd = [port(str(number)) for number in range(PORT_LIMIT + 3)]
    events = list(presence.settle(crowd))
    assert sum(isinstance(event, Sighting) for event in events) == PORT_LIMIT
    assert [str(event.error) for event in events if isinstance(event, DiscoveryFault)] == [
        f"3 more ports than the {PORT_LIMIT} that are followed"
    ]
    assert list(presence.settle(crowd)) == []
    assert list(presence.settle(crowd[:PORT_LIMIT])) == []


def test_a_fault_is_told_once_until_it_changes_or_is_over() -> None:
    presence = Presence()
    first, second = ConfigError("first"), ConfigError("second")

    def tell(error: ConfigError | None) -> list[str]:
        return [str(fault.error) for fault in presence.fault("topic", error)]

    assert [tell(error) for error in (None, first, first, second, None, None, second)] == [
        [],
        ["first"],
        [],
        ["second"],
        [],
        [],
        ["second"],
    ]


def test_access_is_that_of_the_effective_user(tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.touch(mode=0o600)
    assert accessible(str(node))
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            assert not accessible(str(node))
        finally:
            os.seteuid(0)
    else:
        node.chmod(0o400)
        assert not accessible(str(node))
    assert not accessible(str(tmp_path / "nothing"))
