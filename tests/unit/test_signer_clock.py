"""Trusted time: a clock that went back, precedes the CA or jumped ahead stops issuing until it is right or accepted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.call import Call
from hal.errors import ClockUntrusted
from station import messages
from station.signer import ledger
from station.signer.clock import RELEASED, TOLERANCE, TrustedClock
from station.signer.generations import Generations
from tests.ca_parts import LIMITS, NOW, Clocks
from tests.unit.test_signer_generations import Station

HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
SECOND = dt.timedelta(seconds=1)


class Signer:
    """A clock over a ledger of its own, restarted at will."""

    def __init__(self, book: ledger.Ledger) -> None:
        self.book, self.clocks = book, Clocks(NOW)
        self.start()

    def start(self) -> None:
        generations = Generations(self.book, bench=True)
        self.clock = TrustedClock(self.book, generations, LIMITS, self.clocks.machine)
        self.clock.look()

    def believed(self) -> bool:
        return self.clock.problem() is None


@pytest.fixture
def signer(tmp_path: Path) -> Iterator[Signer]:
    with ledger.opened(tmp_path) as book:
        yield Signer(book)


def test_a_clock_that_went_back_stops_issuing_and_both_times_are_said(signer: Signer) -> None:
    signer.clocks.passes(2 * HOUR)
    assert signer.believed()
    signer.clocks.now -= TOLERANCE
    assert signer.believed()
    signer.clocks.now -= SECOND
    with pytest.raises(
        ClockUntrusted, match=r"shows 2027-03-01 13:54 UTC; expected was about 2027-03-01 14:00"
    ):
        signer.clock.now()
    signer.clocks.now += SECOND
    assert signer.believed()


@pytest.mark.parametrize("reboot", [False, True])
def test_a_clock_that_went_back_while_the_signer_was_down_is_found(signer: Signer, reboot: bool) -> None:
    signer.clocks.passes(2 * HOUR)
    signer.clock.look()
    if reboot:
        signer.clocks.reboots()
    signer.clocks.now -= HOUR
    signer.start()
    assert not signer.believed()


def test_the_time_that_a_running_machine_counts_tells_a_jump_ahead_from_time_that_passed(
    signer: Signer,
) -> None:
    signer.clocks.passes(40 * DAY)
    assert signer.believed()
    signer.clocks.now += LIMITS.jump
    assert signer.believed()
    signer.clocks.now += SECOND * 2
    with pytest.raises(ClockUntrusted, match="jumped ahead") as caught:
        signer.clock.now()
    assert "accept-clock" in caught.value.hint
    signer.start()
    assert not signer.believed()


def test_many_small_steps_ahead_are_no_way_around(signer: Signer) -> None:
    for _ in range(10):
        signer.clocks.passes(HOUR)
        signer.clocks.now += HOUR
        signer.clock.look()
    assert not signer.believed()


def test_an_untrusted_clock_does_not_take_the_mark_along(signer: Signer) -> None:
    signer.clocks.now += 5 * HOUR
    for _ in range(3):
        signer.clock.look()
        signer.start()
    assert not signer.believed()
    signer.clocks.now -= 5 * HOUR
    assert signer.believed()


def test_a_station_that_was_off_over_the_holidays_needs_nobody(signer: Signer) -> None:
    signer.clocks.reboots(after=LIMITS.off)
    signer.start()
    assert signer.believed()
    signer.clocks.reboots(after=LIMITS.off + SECOND)
    signer.start()
    with pytest.raises(ClockUntrusted, match="far ahead of when this station was last on"):
        signer.clock.now()


def test_a_machine_without_a_battery_learns_the_time_once_after_its_start(signer: Signer) -> None:
    signer.clocks.reboots()  # the wall clock begins where it ended, three days ago
    signer.start()
    signer.clocks.passes(dt.timedelta(minutes=10))
    signer.clock.look()
    signer.clocks.now += 3 * DAY  # time synchronisation has found a server
    assert signer.believed()
    signer.clocks.passes(HOUR)
    signer.clocks.now += DAY
    assert not signer.believed()
    signer.start()
    assert not signer.believed()


def test_a_machine_whose_clock_is_reset_at_its_start_goes_on_by_itself_once_it_is_set(signer: Signer) -> None:
    right = NOW + 3 * DAY
    signer.clocks.reboots()
    signer.clocks.now = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    signer.start()
    assert not signer.believed()
    signer.clocks.now = right
    assert signer.believed()


def test_a_permitted_person_accepts_what_the_clock_shows_with_a_reason_on_record(signer: Signer) -> None:
    for moved in (5 * HOUR, -2 * DAY):
        signer.clocks.now += moved
        assert not signer.believed()
        with pytest.raises(ClockUntrusted, match="was accepted"):
            signer.clock.accept(signer.clocks.now - 2 * HOUR, "anna", "radio clock")
        signer.clock.accept(signer.clocks.now, "anna", "radio clock")
        assert signer.believed()
        signer.start()
        assert signer.believed()
    with signer.book.using() as db:
        rows = list(db.execute("SELECT by, what, detail FROM acts"))
    assert [what for _, what, _ in rows] == ["accept-clock"] * 2
    assert rows[0][:1] == ("'anna'",)
    assert "radio clock" in str(rows[0][2])
    signer.clocks.now = RELEASED - SECOND
    with pytest.raises(ClockUntrusted, match="before this program was written"):
        signer.clock.accept(signer.clocks.now, "anna", "radio clock")


def test_nothing_new_is_signed_with_an_untrusted_clock_and_what_was_issued_is_given_again(
    tmp_path: Path,
) -> None:
    with ledger.opened(tmp_path) as book:
        station = Station(tmp_path, book)
        station.install(station.certify(station.request().csr))
        before = station.issue("u1")
        for wrong, why in (
            (station.clocks.now - HOUR, "went back"),
            (station.clocks.now + 5 * HOUR, "jumped ahead"),
            (NOW - dt.timedelta(days=366), "before the issuing CA's certificate begins"),
        ):
            right, station.clocks.now = station.clocks.now, wrong
            with pytest.raises(ClockUntrusted, match=why):
                station.issue("u2")
            assert station.issue("u1") == before
            station.clocks.now = right
        assert book.counts() == (1, 0)
        station.clocks.now += 5 * HOUR
        asked = messages.AcceptClock(int(station.clocks.now.timestamp()), "compared with the time signal")
        assert isinstance(station.administration.answer(Call(), asked, "anna"), messages.ClockAccepted)
        assert station.issue("u2").not_valid_before_utc == station.clocks.now - HOUR


def test_a_ledger_without_a_mark_goes_by_its_last_certificate(tmp_path: Path) -> None:
    with ledger.opened(tmp_path) as book:
        station = Station(tmp_path, book)
        station.install(station.certify(station.request().csr))
        station.issue("u1")
        with book.using() as db:
            db.execute("DELETE FROM clock")
        station.clocks.now -= HOUR
        station.open()
        with pytest.raises(ClockUntrusted, match="went back"):
            station.issue("u2")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["pass", "step", "reboot", "restart"]), st.integers(-90, 90)), max_size=12
    )
)
def test_believed_times_never_go_back_by_more_than_the_tolerance(moves: list[tuple[str, int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, ledger.opened(Path(folder)) as book:
        signer = Signer(book)
        latest = NOW
        for move, hours in moves:
            if move == "pass":
                signer.clocks.passes(abs(hours) * HOUR)
            elif move == "step":
                signer.clocks.now += hours * HOUR / 10
            else:
                if move == "reboot":
                    signer.clocks.reboots(abs(hours) * HOUR)
                signer.clock.look()
                signer.start()
            if signer.believed():
                assert signer.clock.now() >= latest - TOLERANCE
                latest = max(latest, signer.clock.now())
