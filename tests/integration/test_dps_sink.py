"""The Azure DPS sink against a service that misbehaves: whose fault it is, and no item decides over its neighbours."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivers.azure_dps import http, sas
from drivers.emulated.dps.server import Cloud
from drivers.emulated.dps.weather import LOSE_ANSWER, Fault
from hal.call import Call, Cancel
from hal.errors import (
    Aborted,
    ConfigError,
    Conflict,
    HallmarkError,
    SinkError,
    Throttled,
    Unauthorized,
    Unreachable,
)
from hal.interfaces import EnrollmentSink
from hal.secret import Secret
from hal.types import Enrollment, Receipt, TpmAttestation
from tests.fixtures_dps import Keys, running_cloud, sink_for, unit

BAD_EK = TpmAttestation(b"\x00\x02xx")


def lasting(seconds: float = 30) -> Call:
    return Call.lasting(seconds)


def kinds(items: tuple[Receipt | HallmarkError, ...]) -> list[str]:
    return [type(item).__name__ for item in items]


def methods(cloud: Cloud) -> list[str]:
    return [entry["method"] for entry in cloud.weather.noted()]


# --- one item's fault ---


def test_one_bad_item_does_not_poison_its_batch(cloud: Cloud, sink: EnrollmentSink) -> None:
    batch = [unit(f"gw-{number}") for number in range(9)]
    batch.insert(4, Enrollment("gw-bad", "gw-bad", BAD_EK))
    items = sink.upload(lasting(), batch).items
    assert kinds(items) == ["Receipt"] * 4 + ["Rejected"] + ["Receipt"] * 5
    assert "endorsementKey" in str(items[4])
    assert cloud.store.count("enrollment") == 9
    assert methods(cloud) == ["POST"] + ["PUT"] * 10


def test_items_that_fail_alone_are_told_alone(cloud: Cloud, sink: EnrollmentSink) -> None:
    cloud.weather.fail_bulk = ("gw-1*", 400_004)
    items = sink.upload(lasting(), [unit("gw-0"), unit("gw-1"), unit("gw-2"), unit("gw-10")]).items
    assert kinds(items) == ["Receipt", "Rejected", "Receipt", "Rejected"]
    cloud.weather.fail_bulk = ("gw-1*", 429_001)
    items = sink.upload(lasting(), [unit("gw-1"), unit("gw-5")]).items
    assert kinds(items) == ["Throttled", "Receipt"]


def test_the_same_again_is_a_receipt_and_other_content_a_conflict(sink: EnrollmentSink) -> None:
    sink.upload(lasting(), [unit("gw-0", 0, sku="a"), unit("gw-1"), unit("gw-2")])
    items = sink.upload(lasting(), [unit("gw-0", 0, sku="b"), unit("gw-1"), unit("gw-2", 1)]).items
    assert kinds(items) == ["Conflict", "Receipt", "Conflict"]
    assert "sku" in str(items[0])
    assert "endorsementKey" in str(items[2])
    assert isinstance(items[1], Receipt)
    assert items[1].existed


def test_an_enrollment_that_the_cloud_disabled_is_a_conflict(cloud: Cloud, sink: EnrollmentSink) -> None:
    """A device that somebody has shut out must not come back by rework unseen."""
    sink.upload(lasting(), [unit("gw-0")])
    record = cloud.store.get("enrollment", "gw-0")
    assert record is not None
    cloud.store.put("enrollment", "gw-0", {**record, "provisioningStatus": "disabled"})
    (item,) = sink.upload(lasting(), [unit("gw-0")]).items
    assert isinstance(item, Conflict)
    assert "disabled" in str(item)


def test_one_id_twice_in_a_batch_is_settled_by_content(cloud: Cloud, sink: EnrollmentSink) -> None:
    items = sink.upload(lasting(), [unit("gw-0"), unit("gw-1"), unit("gw-0", 1), unit("gw-0")]).items
    assert kinds(items) == ["Receipt", "Receipt", "Conflict", "Receipt"]
    for entry in cloud.weather.noted():
        if entry["method"] == "POST":
            names = [item["registrationId"] for item in entry["body"]["enrollments"]]
            assert len(set(names)) == len(names)


def test_requests_stay_within_the_services_limits(cloud: Cloud, sink: EnrollmentSink) -> None:
    heavy = {f"t{number}": "x" * 4000 for number in range(5)}
    batch = [unit(f"gw-{number}", 0, **(heavy if number < 8 else {})) for number in range(23)]
    assert kinds(sink.upload(lasting(60), batch).items) == ["Receipt"] * 23
    sent = [entry["body"] for entry in cloud.weather.noted() if entry["method"] == "POST"]
    assert max(len(body["enrollments"]) for body in sent) == 10
    assert max(len(json.dumps(body, separators=(",", ":"))) for body in sent) <= 96 * 1024


# --- nobody's fault ---


def test_throttling_says_how_long(cloud: Cloud, sink: EnrollmentSink) -> None:
    for status in (429, 503):
        cloud.weather.order(1, Fault(status, "17"))
        with pytest.raises(Throttled) as caught:
            sink.upload(lasting(), [unit("gw-0"), unit("gw-1")])
        assert caught.value.retry_after == 17


def test_a_rate_limit_is_felt_and_said(cloud: Cloud, sink: EnrollmentSink) -> None:
    cloud.weather.rate_limit = 2
    assert kinds(sink.upload(lasting(), [unit("gw-0")]).items) == ["Receipt"]
    assert kinds(sink.upload(lasting(), [unit("gw-1")]).items) == ["Receipt"]
    with pytest.raises(Throttled) as caught:
        sink.upload(lasting(), [unit("gw-2")])
    assert 55 <= (caught.value.retry_after or 0) <= 60


def test_what_was_taken_before_the_throttling_stays_taken(cloud: Cloud, sink: EnrollmentSink) -> None:
    """Else a batch whose second half is always throttled would never end."""
    sink.upload(lasting(), [unit(f"gw-{number}") for number in range(3)])
    cloud.weather.rate_limit = 1 + 1  # the bulk request, and one look at what is there
    items = sink.upload(lasting(), [unit(f"gw-{number}") for number in range(5)]).items
    # The service did not say that the new ones are stored, so they have to be looked up like the others: later.
    assert kinds(items) == ["Receipt", "Throttled", "Throttled", "Throttled", "Throttled"]
    cloud.weather.clear()
    assert (
        kinds(sink.upload(lasting(), [unit(f"gw-{number}") for number in range(5)]).items) == ["Receipt"] * 5
    )


def test_a_service_that_is_away_is_unreachable_and_comes_back(cloud: Cloud, sink: EnrollmentSink) -> None:
    sink.upload(lasting(), [unit("gw-0")])
    cloud.close()
    with pytest.raises(Unreachable, match="Connection refused"):
        sink.upload(lasting(), [unit("gw-1")])
    cloud.open()
    assert kinds(sink.upload(lasting(), [unit("gw-1")]).items) == ["Receipt"]


def test_an_answer_that_is_lost_ends_in_a_receipt(cloud: Cloud, sink: EnrollmentSink) -> None:
    batch = [unit("gw-0"), unit("gw-1")]
    cloud.weather.order(1, Fault(LOSE_ANSWER))
    with pytest.raises(Unreachable):
        sink.upload(lasting(), batch)
    items = sink.upload(lasting(), batch).items
    assert [item.existed for item in items if isinstance(item, Receipt)] == [True, True]
    assert cloud.store.count("enrollment") == 2


def test_a_failing_service_blames_no_item(cloud: Cloud, sink: EnrollmentSink) -> None:
    cloud.weather.order(10, Fault(500))
    with pytest.raises(Unreachable):
        sink.upload(lasting(), [unit(f"gw-{number}") for number in range(5)])
    assert len(methods(cloud)) == 3, "the bulk request and two items, then it is the service"


def test_an_item_that_makes_the_service_fail_does_not_hold_up_the_rest(
    cloud: Cloud, sink: EnrollmentSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = itertools.cycle([None])
    original = cloud.weather.next_fault
    seen: list[int] = []

    def fail_poison() -> Fault | None:
        next(poison)
        seen.append(1)
        # Requests: bulk (fails), gw-0, gw-1 (fails), gw-2.
        return Fault(500) if len(seen) in (1, 3) else original()

    monkeypatch.setattr(cloud.weather, "next_fault", fail_poison)
    items = sink.upload(lasting(), [unit("gw-0"), unit("gw-1"), unit("gw-2")]).items
    assert kinds(items) == ["Receipt", "Unreachable", "Receipt"]


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (404, "<html>no such page</html>"),
        (400, ""),
        (400, '{"errorCode": 500001}'),
        (302, ""),
        (200, "<html>please log in</html>"),
        (200, '{"isSuccessful": "yes"}'),
        (200, '{"isSuccessful": true, "isSuccessful": true}'),
        (200, "[" * 100_000),
        (204, ""),
        (502, "bad gateway"),
    ],
)
def test_what_is_not_the_service_speaking_blames_no_item(
    cloud: Cloud, sink: EnrollmentSink, status: int, raw: str
) -> None:
    """A captive portal, a proxy, a wrong host: nothing may be parked for it, nothing taken for done."""
    cloud.weather.order(20, Fault(status, raw=raw))
    with pytest.raises(Unreachable):
        sink.upload(lasting(), [unit("gw-0"), unit("gw-1")])


def test_an_endless_answer_is_cut(
    cloud: Cloud, sink: EnrollmentSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "ANSWER_LIMIT", 1000)
    cloud.weather.order(1, Fault(400, raw=json.dumps({"errorCode": 400_000, "message": "x" * 5000})))
    with pytest.raises(Unreachable, match="longer than 1000"):
        sink.upload(lasting(), [unit("gw-0")])


# --- our own fault ---


def test_a_wrong_key_is_not_the_items_fault(cloud: Cloud) -> None:
    keys = Keys({"dps-key": "d3Jvbmcga2V5IHdyb25nIGtleQ=="})
    with sink_for(cloud.endpoint, keys) as sink:
        with pytest.raises(Unauthorized, match="401"):
            sink.upload(lasting(), [unit("gw-0")])
        keys.values["dps-key"] = Keys().values["dps-key"]
        assert kinds(sink.upload(lasting(), [unit("gw-0")]).items) == ["Receipt"], "asked anew for each try"
        del keys.values["dps-key"]
        with pytest.raises(ConfigError):
            sink.upload(lasting(), [unit("gw-0")])


def test_a_clock_that_is_off_is_named_as_the_cause(cloud: Cloud, sink: EnrollmentSink) -> None:
    cloud.weather.clock_offset = 7200
    with pytest.raises(Unauthorized) as caught:
        sink.upload(lasting(), [unit("gw-0")])
    assert "clock is 7" in caught.value.hint
    assert "behind" in caught.value.hint
    cloud.weather.clock_offset = 600
    result = sink.upload(lasting(), [unit("gw-0")])
    assert result.clock_skew == pytest.approx(600, abs=2)


def test_each_try_has_a_token_of_its_own(
    cloud: Cloud, sink: EnrollmentSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counting(host: str, policy: str, key: Secret, now: float) -> str:
        made.append(host)
        return sas.token(host, policy, key, now)

    monkeypatch.setattr(http, "token", counting)
    sink.upload(lasting(), [unit("gw-0")])
    sink.upload(lasting(), [unit("gw-0")])
    assert len(made) == len(methods(cloud)) == 3


# --- stopping ---


def test_a_cancel_is_heard_while_the_service_is_silent(cloud: Cloud, sink: EnrollmentSink) -> None:
    import threading

    cloud.weather.latency = 20
    cancel = Cancel()
    threading.Timer(0.2, cancel.set, [Aborted("shutting down")]).start()
    began = time.monotonic()
    with pytest.raises(Aborted, match="shutting down"):
        sink.upload(Call(cancel=cancel), [unit("gw-0")])
    assert time.monotonic() - began < 3


def test_a_deadline_is_kept_and_the_service_called_unreachable(cloud: Cloud, sink: EnrollmentSink) -> None:
    cloud.weather.latency = 20
    began = time.monotonic()
    with pytest.raises(Unreachable, match="in time"):
        sink.upload(lasting(0.3), [unit("gw-0")])
    assert time.monotonic() - began < 3


def test_abandoned_requests_leave_no_descriptors_behind(cloud: Cloud, sink: EnrollmentSink) -> None:
    def descriptors() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    sink.upload(lasting(), [unit("gw-0")])
    before = descriptors()
    cloud.weather.latency = 0.2
    for _ in range(5):
        with pytest.raises(Unreachable, match="in time"):
            sink.upload(lasting(0.02), [unit("gw-0")])
    cloud.weather.latency = 0
    deadline = time.monotonic() + 10
    while descriptors() > before + 4:  # the pool keeps one connection, and so does the emulator
        assert time.monotonic() < deadline, f"{descriptors()} descriptors, {before} before"
        time.sleep(0.02)


# --- anything at all ---

weird_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**6) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["isSuccessful", "errors", "registrationId", "errorCode", "etag", "attestation", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "registrationId": st.sampled_from(["gw-0", "GW-1", "gw-9"]),
        "errorCode": st.sampled_from([200, 400004, 409201, 429001, 500000]),
    }
)
bulk_like = st.fixed_dictionaries(
    {"isSuccessful": st.booleans(), "errors": st.none() | st.lists(entries, max_size=3)}
)
error_like = st.sampled_from([400, 401, 404, 409, 412, 429, 500]).map(lambda s: {"errorCode": s * 1000 + 4})
faults = st.builds(
    Fault,
    st.sampled_from([200, 201, 204, 301, 400, 401, 404, 409, 412, 429, 500, 503]),
    st.none() | st.sampled_from(["3", "x", "-1"]),
    st.one_of(weird_json, bulk_like, error_like).map(json.dumps) | st.text(max_size=20),
)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Cloud, EnrollmentSink]]:
    with running_cloud() as cloud, sink_for(cloud.endpoint) as sink:
        yield cloud, sink


@given(spoiled=st.lists(faults, min_size=1, max_size=6))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_answers_end_in_one_verdict_for_each_item_or_one_retryable_error(
    shared: tuple[Cloud, EnrollmentSink], spoiled: list[Fault]
) -> None:
    cloud, sink = shared
    cloud.weather.clear()
    for fault in spoiled:
        cloud.weather.order(1, fault)
    batch = [unit("gw-0"), unit("gw-1"), Enrollment("gw-bad", "gw-bad", BAD_EK)]
    items: tuple[Receipt | HallmarkError, ...] = ()
    failed: SinkError | None = None
    try:
        items = sink.upload(lasting(), batch).items
    except SinkError as error:
        failed = error
    assert len(items) == 3 if failed is None else failed.retryable
    assert all(isinstance(item, Receipt | SinkError) for item in items)
    # And when the service has come to its senses, each unit has what is true.
    cloud.weather.clear()
    items = sink.upload(lasting(), batch).items
    assert kinds(items) == ["Receipt", "Receipt", "Rejected"]
