"""A few points of `./dev crash`, one of each kind, chosen by what is done there. The campaign itself takes all."""

from __future__ import annotations

import pytest

from tests.crash.campaign import BATCH, ORDER, RECIPES, START, Campaign, Point

CA_KEY, AUDIT_KEY = "issuing-ca", "audit"
"""Labels in the token, as [signer] has them when it says nothing."""


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


def test_signer_killed_once_the_token_has_signed(campaign: Campaign, trip: list[Point]) -> None:
    check(campaign, find(trip, "signer", f"after CaToken.sign {CA_KEY}"))


def test_signer_killed_once_the_token_has_signed_an_audit_checkpoint(
    campaign: Campaign, trip: list[Point]
) -> None:
    """The one before the PASS: later ones are signed when there is time."""
    site = f"after CaToken.sign {AUDIT_KEY}"
    check(campaign, next(point for point in trip if (point.process, point.site) == ("signer", site)))


def test_signer_killed_once_the_token_has_destroyed_a_work_orders_key(campaign: Campaign) -> None:
    check(campaign, find(list(campaign.points(ORDER)), "signer", "after SecretWrap.destroy"))


def test_signer_killed_between_the_mark_of_a_pin_attempt_and_the_login(campaign: Campaign) -> None:
    points = list(campaign.points(START, ["signer"]))
    marked = find(points, "signer", "after os.replace")
    check(campaign, points[marked.deed + 1])


def test_uploader_killed_in_the_middle_of_a_batch(campaign: Campaign) -> None:
    check(campaign, Point("uploader", 6, "after HTTP PUT", 1, BATCH))
