"""Serial numbers and ends of certificates: unique with a broken random source too, never past a CA above."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import ProfileViolation, StationError
from station.signer import issuing, ledger
from station.signer.authority import Authority
from station.signer.issuing import serial_number
from station.signer.profiles import load_profiles
from tests.ca_parts import NOW, PROFILES, Ca
from tests.unit.test_signer_generations import Station

SHIPPED = load_profiles(PROFILES)
ROOT, ISSUING = Ca("root"), Ca("issuing")


@given(st.binary(min_size=32, max_size=32))
def test_a_serial_number_is_positive_and_fits_twenty_octets(digest: bytes) -> None:
    made = serial_number(digest)
    assert 0 < made < 1 << 159
    assert len(x509.random_serial_number().to_bytes(20)) == len(made.to_bytes(20))


def test_half_of_a_serial_number_is_drawn_anew_each_time() -> None:
    drawn = {serial_number(bytes(32)) for _ in range(1000)}
    assert len(drawn) == 1000
    assert max(drawn).bit_length() > 72


def test_stations_and_starts_whose_random_sources_repeat_each_other_give_different_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: b"\x11" * count)
    serials: list[int] = []
    for name in ("a", "b"):
        with ledger.opened(tmp_path / name) as book:
            station = Station(tmp_path / name, book)
            station.install(station.certify(station.request().csr))
            for number in range(4):
                station.open()
                serials.append(station.issue(f"{name}{number}").serial_number)
    assert len(set(serials)) == len(serials) == 8


def test_a_number_that_was_used_is_drawn_again_and_a_source_that_only_repeats_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter([7, 7, 7, 8, *[8] * 10])
    monkeypatch.setattr(issuing, "serial_number", lambda digest: next(numbers))
    with ledger.opened(tmp_path) as book:
        station = Station(tmp_path, book)
        station.install(station.certify(station.request().csr))
        assert station.issue("s1").serial_number == 7
        station.open()  # the ledger knows it after a restart
        assert station.issue("s2").serial_number == 8
        with pytest.raises(StationError, match="random numbers repeat"):
            station.issue("s3")
        assert book.counts() == (2, 0)
    assert os.urandom(4) != os.urandom(4)


@given(
    profile=st.sampled_from(sorted(SHIPPED)),
    root_days=st.integers(1, 20_000),
    issuing_days=st.integers(1, 20_000),
    age=st.integers(0, 4000),
)
def test_no_window_leaves_that_of_the_cas_above_or_is_shorter_than_its_profile_wants(
    profile: str, root_days: int, issuing_days: int, age: int
) -> None:
    start, day = NOW - dt.timedelta(days=age), dt.timedelta(days=1)
    authority = Authority(
        (ROOT.signs(ISSUING, start=start, end=start + day * issuing_days),),
        ROOT.signs(ROOT, start=start, end=start + day * root_days),
    )
    chosen = SHIPPED[profile]
    try:
        begin, end = chosen.window(NOW, authority)
    except ProfileViolation:
        left = (authority.not_after - NOW) // day
        assert chosen.file.validity.no_expiry or left < chosen.least_days
        return
    assert authority.not_before <= begin <= NOW
    assert end <= authority.not_after
    assert end >= (NOW + day * chosen.least_days).replace(microsecond=0)
    assert chosen.allowed_until(authority) >= NOW
