"""A work order stands only in its strict form, signed by a key that may, for what it names, when it says."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import OrderRefused
from station.cli import main
from station.signed import load_signers
from station.work_order import (
    SIZE_LIMIT,
    check_images,
    check_order,
    order_signers,
    parse_order,
    read_order,
    verify_order,
)
from tests.fixtures_config import write_key
from tests.order_parts import NOW, RECIPE, Planner, order_data, plain


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    return Planner(tmp_path / "office")


def test_a_signed_order_stands_and_plain_openssl_agrees(planner: Planner) -> None:
    path = planner.write()
    found = verify_order(*read_order(path), order_signers(planner.public))
    assert (found.file.id, found.file.quantity, found.file.most_signatures) == ("WO-17", 3, 3)
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(planner.public)]
    subprocess.run(
        [*command, "-sigfile", f"{path}.sig", "-in", str(path)], check=True, capture_output=True, timeout=30
    )


def test_the_command_signs_what_a_station_takes(planner: Planner, tmp_path: Path) -> None:
    path = tmp_path / "WO-18.json"
    path.write_bytes(order_data(id="WO-18"))
    assert main(["orders", "sign", str(path), "--key", str(planner.office / "planner.key")]) == 0
    assert verify_order(*read_order(path), order_signers(planner.public)).file.id == "WO-18"
    path.write_bytes(order_data(quantity=0))
    assert main(["orders", "sign", str(path), "--key", str(planner.office / "planner.key")]) == 1


@pytest.mark.parametrize("change", [lambda data: data + b" ", lambda data: data.replace(b"3", b"4", 1)])
def test_other_octets_than_were_signed_are_no_order(planner: Planner, change: Any) -> None:
    data, signature = planner.order()
    with pytest.raises(OrderRefused, match="not signed by a key that may"):
        verify_order(change(data), signature, order_signers(planner.public))


def test_another_keys_order_is_none_and_neither_is_any_without_keys(planner: Planner, tmp_path: Path) -> None:
    stranger = write_key(tmp_path / "elsewhere/x.key")
    for signers in (load_signers(stranger), order_signers(tmp_path / "nowhere")):
        with pytest.raises(OrderRefused, match="not signed"):
            verify_order(*planner.order(), signers)


@pytest.mark.parametrize(
    "wrong",
    [
        plain(format="hallmark-work-order-2"),
        plain(extra=1),
        plain(id="../WO"),
        plain(id="WO\n"),
        plain(quantity=0),
        plain(quantity="3"),
        plain(quantity=3.0),
        plain(rework_allowance=-1),
        plain(stations=[]),
        plain(recipes=[]),
        plain(recipes=["01"]),
        plain(images=["0" * 63]),
        plain(until="2026-12-31T00:00:00"),
        plain(until="2025-12-31T00:00:00Z"),
        {name: value for name, value in plain().items() if name != "until"},
        [],
    ],
    ids=str,
)
def test_an_order_of_another_form_is_refused(wrong: object) -> None:
    with pytest.raises(OrderRefused):
        parse_order(json.dumps(wrong).encode())


@given(st.binary(max_size=400))
def test_no_octets_make_an_order_fail_in_another_way(data: bytes) -> None:
    with pytest.raises(OrderRefused):
        parse_order(data)


def test_an_order_that_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(OrderRefused, match="more than"):
        parse_order(b" " * SIZE_LIMIT + order_data())


Given = dict[str, Any]


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"sku": "gw-300"}, "is for gw-200, not for 'gw-300'"),
        ({"station": "line-2"}, "not for station 'line-2'"),
        ({"recipe": b"\2" * 32}, "not for this recipe"),
        ({"now": dt.datetime(2025, 12, 31, 23, 59, tzinfo=dt.UTC)}, "begins on 2026-01-01 00:00 UTC"),
        ({"now": dt.datetime(2026, 12, 31, 0, 1, tzinfo=dt.UTC)}, "ended on 2026-12-31 00:00 UTC"),
    ],
)
def test_each_refusal_says_what_does_not_fit(given_: Given, said: str) -> None:
    order = parse_order(order_data())
    fits: Given = {"sku": "gw-200", "station": "line-1", "recipe": RECIPE, "now": NOW}
    check_order(order, **fits)
    with pytest.raises(OrderRefused, match=said) as caught:
        check_order(order, **(fits | given_))
    assert caught.value.hint


def test_only_firmware_that_the_order_names_is_permitted() -> None:
    order = parse_order(order_data(images=["aa" * 32]))
    check_images(order, [("gw.bin", "aa" * 32)])
    with pytest.raises(OrderRefused, match=r"firmware image 'gw\.bin'"):
        check_images(order, [("gw.bin", "bb" * 32)])


@given(
    st.integers(1, 10**6),
    st.integers(0, 10**6),
    st.lists(st.sampled_from(["line-1", "a", "b-2"]), min_size=1, unique=True),
    st.datetimes(dt.datetime(2020, 1, 1), dt.datetime(2030, 1, 1)),
    st.timedeltas(dt.timedelta(seconds=1), dt.timedelta(days=1000)),
)
def test_what_an_order_says_is_what_is_read(
    quantity: int, allowance: int, stations: list[str], begin: dt.datetime, lasts: dt.timedelta
) -> None:
    begin = begin.replace(microsecond=0, tzinfo=dt.UTC)
    found = parse_order(
        order_data(
            quantity=quantity,
            rework_allowance=allowance,
            stations=stations,
            **{"from": begin.isoformat(), "until": (begin + lasts).isoformat()},
        )
    )
    assert (found.quantity, found.most_signatures) == (quantity, quantity + allowance)
    assert (found.stations, found.from_, found.until) == (stations, begin, begin + lasts)
