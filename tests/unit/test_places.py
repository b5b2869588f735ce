"""Which board is in which nest."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from hal.types import Departure, Sighting
from station.places import Places


class Nest:
    def __init__(self, name: str, pattern: str) -> None:
        self.name, self.pattern = name, pattern
        self.told: list[str | None] = []

    def sighted(self, sighting: Sighting) -> None:
        self.told.append(sighting.place)

    def departed(self) -> None:
        self.told.append(None)


def line(*nests: Nest) -> Places:
    return Places(
        lambda place: next((nest for nest in nests if fnmatch.fnmatchcase(place, nest.pattern)), None)
    )


def seen(place: str) -> Sighting:
    return Sighting(place, f"/dev/{place}")


def test_a_nest_hears_of_its_board_coming_and_going() -> None:
    nest = Nest("A", "usb:1")
    places = line(nest)
    places.changed("udev", seen("usb:1"))
    places.changed("udev", Departure("usb:1"))
    assert nest.told == ["usb:1", None]


def test_a_second_board_of_a_nest_waits_until_the_first_has_left() -> None:
    nest = Nest("A", "usb:*")
    places = line(nest)
    places.changed("udev", seen("usb:1"))
    places.changed("udev", seen("usb:2"))
    assert nest.told == ["usb:1"]
    assert places.unclaimed() == ["a second device for nest A is at usb:2"]
    places.changed("udev", Departure("usb:1"))
    assert nest.told == ["usb:1", None, "usb:2"]
    assert places.unclaimed() == []


def test_a_board_that_no_nest_claims_is_told() -> None:
    places = line()
    places.changed("udev", seen("usb:9"))
    assert places.unclaimed() == ["a device at usb:9 is in no nest"]
    places.changed("udev", Departure("usb:9"))
    assert places.unclaimed() == []


def test_what_one_driver_saw_is_forgotten_without_the_others() -> None:
    one, two = Nest("A", "usb:1"), Nest("B", "tty:1")
    places = line(one, two)
    places.changed("udev", seen("usb:1"))
    places.changed("polling", seen("tty:1"))
    places.forget("udev")
    assert one.told == ["usb:1", None]
    assert two.told == ["tty:1"]


def test_a_board_that_comes_back_under_a_new_node_is_told_again() -> None:
    nest = Nest("A", "usb:1")
    places = line(nest)
    places.changed("udev", seen("usb:1"))
    places.changed("udev", Sighting("usb:1", "/dev/other"))
    assert nest.told == ["usb:1", "usb:1"]


EVENTS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["usb:1", "usb:2", "usb:3", "tty:1"])), max_size=30
)


@given(EVENTS)
def test_a_nest_has_a_board_exactly_while_one_of_its_places_has(events: Sequence[tuple[bool, str]]) -> None:
    nest = Nest("A", "usb:*")
    places = line(nest)
    present: set[str] = set()
    for came, place in events:
        places.changed("d", seen(place) if came else Departure(place))
        (present.add if came else present.discard)(place)
        holds = bool(nest.told) and nest.told[-1] is not None
        assert holds == any(place.startswith("usb") for place in present)
        if holds:
            assert nest.told[-1] in present
