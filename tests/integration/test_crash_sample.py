"""A few points of `./dev crash`, one of each kind, chosen by what is done there. The campaign itself takes all."""

from __future__ import annotations

import pytest

from tests.crash.campaign import BATCH, RECIPES, START, Campaign, Point


@pytest.fixture(scope="module")
def trip(campaign: Campaign) -> list[Point]:
    return list(campaign.points(RECIPES[1]))


def find(points: list[Point], process: str, site: str) -> Point:
    """The last point of that process whose site has those words."""
    return [point for point in points if point.process == process and site in point.site][-1]


def check(campaign: Campaign, point: Point) -> None:
    result = campaign.run(point)
    assert result.problem is None
    assert result.died_at == point.site


def test_worker_killed_once_the_lockout_auth_is_set(campaign: Campaign, trip: list[Point]) -> None:
    check(campaign, find(trip, "worker", "after TPM command 0x129"))


def test_board_without_power_in_the_middle_of_its_key_becoming_persistent(
    campaign: Campaign, trip: list[Point]
) -> None:
    check(campaign, find(trip, "board", "0x120"))


def test_station_killed_before_a_write_in_the_middle_of_a_trip(campaign: Campaign, trip: list[Point]) -> None:
    writes = [point for point in trip if point.process == "run" and "before sync" in point.site]
    check(campaign, writes[len(writes) // 2])


@pytest.mark.parametrize("number", [0, 1])
def test_signer_killed_once_the_token_has_signed(campaign: Campaign, trip: list[Point], number: int) -> None:
    """A certificate, or a checkpoint of the audit trail: a trip has both. Later ones come when time has passed."""
    signed = [point for point in trip if point.process == "signer" and point.site == "after CaToken.sign"]
    check(campaign, signed[number])


def test_signer_killed_between_the_mark_of_a_pin_attempt_and_the_login(campaign: Campaign) -> None:
    points = list(campaign.points(START, ["signer"]))
    marked = find(points, "signer", "after os.replace")
    check(campaign, points[marked.deed + 1])


def test_uploader_killed_in_the_middle_of_a_batch(campaign: Campaign) -> None:
    check(campaign, Point("uploader", 6, "after HTTP PUT", 1, BATCH))
