"""Vendors' lists of EKs: whole or not at all, by their signer only, never an older one, found in one look-up."""

from __future__ import annotations

import base64
import datetime as dt
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.errors import Aborted, ConfigError
from station.signed import load_private_key, load_signers, write_signed
from station.store import Store
from station.trust import ek_list, exporting, intake
from station.trust.preflight import preflight
from station.trust.reading import read_certificate
from station.trust.trust_set import Origin, assemble
from tests.store_parts import ek_name as board_name
from tests.store_parts import join, plug
from tests.trust_parts import KINDS, NOW, Maker, ek_name, ek_public, key_pair, rsa_key

Line = dict[str, Any]


class Vendor:
    """Signs lists; `take` imports them."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store = folder, store
        self.key = key_pair(folder, "vendor", folder / "signers")
        self.signers = load_signers(folder / "signers")

    def write(self, lines: list[Line], name: str = "list.jsonl", **changed: Any) -> Path:
        path = self.folder / name
        write_signed(path, text(lines, **changed), load_private_key(self.key))
        return path

    def take(self, lines: list[Line], **changed: Any) -> intake.Taken:
        return intake.take_in(self.store, self.write(lines, **changed), self.signers)


def text(lines: list[Line], **changed: Any) -> bytes:
    header = {
        "format": ek_list.FORMAT,
        "lot": "L1",
        "vendor": "Maker",
        "created": NOW.isoformat(),
        "count": len(lines),
        **changed,
    }
    return b"".join(msgspec.json.encode(item) + b"\n" for item in (header, *lines))


def named(*numbers: int) -> list[Line]:
    return [{"ek_name": board_name(number).hex()} for number in numbers]


@pytest.fixture
def vendor(tmp_path: Path, store: Store) -> Vendor:
    return Vendor(tmp_path, store)


# --- import ---------------------------------------------------------------------------------------------------------


def test_a_listed_ek_is_found_by_its_name_and_no_other(vendor: Vendor) -> None:
    public = ek_public(rsa_key())
    lines = [*named(1, 2), {"ek_public": base64.b64encode(public).decode()}]
    assert vendor.take(lines) == intake.Taken("L1", 3, new=True)
    for name in (board_name(1), board_name(2), ek_name(public)):
        found = vendor.store.ek_listed(name)
        assert found is not None
        assert found.lot == "L1"
    assert vendor.store.ek_listed(board_name(3)) is None
    (listed,) = vendor.store.ek_lists()
    assert (listed.vendor, listed.entries, listed.signer) == ("Maker", 3, "vendor.pem")


def test_the_same_list_again_changes_nothing_and_an_older_one_is_refused(vendor: Vendor) -> None:
    vendor.take(named(1, 2))
    assert not vendor.take(named(1, 2)).new
    with pytest.raises(ConfigError, match="as new or newer"):
        vendor.take(named(3))
    with pytest.raises(ConfigError, match="as new or newer"):
        vendor.take(named(3), created=(NOW - dt.timedelta(days=1)).isoformat())
    vendor.take(named(2, 3), created=(NOW + dt.timedelta(days=1)).isoformat())
    intake.sweep(vendor.store)
    known = [number for number in (1, 2, 3) if vendor.store.ek_listed(board_name(number))]
    assert known == [2, 3], "a newer list replaces its lot's"


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "octets"),
    "no header": (b"{}\n", "no header"),
    "another format": (text([], format="x"), "the form"),
    "a lot that is a path": (text([], lot="../x"), "no header"),
    "too few": (text(named(1), count=2), "number of entries"),
    "too many": (text(named(1, 2), count=1), "number of entries"),
    "twice": (text(named(1, 1)), "twice"),
    "nothing in it": (text([{}]), "neither"),
    "no name": (text([{"ek_name": "000b"}]), "no entry"),
    "a name in capitals": (text([{"ek_name": board_name(1).hex().upper()}]), "no entry"),
    "no EK": (text([{"ek_public": "AAAA"}]), "no entry"),
    "another's name": (
        text([{"ek_public": base64.b64encode(ek_public(rsa_key())).decode(), **named(1)[0]}]),
        "another key's",
    ),
    "an unknown key": (text([{**named(1)[0], "x": 1}]), "no entry"),
    "cut": (text(named(1))[:-1], "doesn't end"),
    "a line without end": (text([]) + b" " * 100_000, "doesn't end"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_list_that_does_not_hold_counts_for_nothing(vendor: Vendor, case: str) -> None:
    data, says = BAD[case]
    path = vendor.folder / "list.jsonl"
    write_signed(path, data, load_private_key(vendor.key))
    with pytest.raises(ConfigError, match=says) as found:
        intake.take_in(vendor.store, path, vendor.signers)
    assert found.value.hint
    assert vendor.store.ek_lists() == []
    assert vendor.store.ek_listed(board_name(1)) is None


def test_a_list_that_is_not_signed_by_a_signer_is_refused(vendor: Vendor, tmp_path: Path) -> None:
    path = vendor.write(named(1))
    path.write_bytes(path.read_bytes().replace(b"Maker", b"Faker"))
    with pytest.raises(ConfigError, match="is not signed by vendor"):
        intake.take_in(vendor.store, path, vendor.signers)
    other = key_pair(tmp_path, "other", tmp_path / "others")
    write_signed(path, text(named(1)), load_private_key(other))
    with pytest.raises(ConfigError, match="is not signed by vendor"):
        intake.take_in(vendor.store, path, vendor.signers)


def test_an_import_that_breaks_off_leaves_nothing_that_counts(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "PAGE", 10)
    stops = iter([False, False, True])
    path = vendor.write(named(*range(100)))
    with pytest.raises(Aborted):
        intake.take_in(vendor.store, path, vendor.signers, lambda: next(stops))
    assert vendor.store.ek_listed(board_name(1)) is None
    intake.sweep(vendor.store)
    assert intake.take_in(vendor.store, path, vendor.signers).new
    assert all(vendor.store.ek_listed(board_name(number)) for number in range(100))


def test_the_running_station_takes_in_what_lies_there_and_says_so(vendor: Vendor) -> None:
    good = intake.put(vendor.folder / "trust", vendor.write(named(1, 2)))
    bad = intake.put(vendor.folder / "trust", vendor.write(named(5, 5), "bad.jsonl", lot="L2"))
    station = intake.Intake(vendor.folder / "trust", vendor.store, lambda: vendor.signers)
    station.look()
    since = 0
    seen: dict[str, dict[str, object]] = {}
    while len(seen) < 2:
        assert vendor.store.wait_event(since, 10)
        for event in vendor.store.events(since, 100):
            since = event.seq
            if event.kind in ("ek-list-taken", "ek-list-refused"):
                seen[str(event.detail["file"])] = {"kind": event.kind, **event.detail}
    station.stop()
    assert seen[good.name]["kind"] == "ek-list-taken"
    assert seen[bad.name]["code"] == "ConfigError"
    assert list((vendor.folder / "trust/incoming").iterdir()) == []
    assert vendor.store.ek_listed(board_name(2)) is not None


@settings(max_examples=60)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["ek_public", "ek_name", "certificate", "format", "lot"]),
            st.none() | st.integers() | st.text(max_size=20) | st.just(board_name(1).hex()),
            max_size=3,
        ),
        max_size=4,
    ),
    st.binary(max_size=30),
)
def test_no_octets_bring_out_anything_but_our_error(
    tmp_path_factory: pytest.TempPathFactory, lines: list[Line], tail: bytes
) -> None:
    path = tmp_path_factory.mktemp("list") / "x.jsonl"
    path.write_bytes(text(lines) + tail)
    try:
        with ek_list.opened(path) as found:
            entries = list(found.entries())
    except ConfigError:
        return
    assert all(entry.name == board_name(1) for entry in entries)


# --- reconciling, giving --------------------------------------------------------------------------------------------


def test_what_was_seen_and_what_is_in_no_list(vendor: Vendor) -> None:
    vendor.take(named(1, 2))
    units = {number: join(vendor.store, plug(vendor.store, str(number)), number, []) for number in (2, 3)}
    entries = {item.ek_name: item.unit for item in vendor.store.ek_list_entries("L1", b"", 100)}
    assert entries == {board_name(1): None, board_name(2): units[2].unit}
    assert [item.unit for item in vendor.store.unlisted_eks("", 100)] == [units[3].unit]


def test_pages_join_without_gap_or_overlap(vendor: Vendor) -> None:
    vendor.take(named(*range(25)))
    after, found = b"", []
    while page := vendor.store.ek_list_entries("L1", after, 7):
        found += [item.ek_name for item in page]
        after = page[-1].ek_name
    assert found == sorted(board_name(number) for number in range(25))


def test_what_is_exported_is_what_import_takes(vendor: Vendor, tmp_path: Path) -> None:
    from station.store.ek_lists import MadeKey

    keys = [
        MadeKey(number, f"u{number}", f"r{number}", "gw", None, 0.0, None, ek_public(rsa_key(number)), None)
        for number in range(3)
    ]
    out = tmp_path / "out.jsonl"
    count = exporting.export(
        out, keys, lot="2026-W47", vendor="us", created=NOW, key=load_private_key(vendor.key)
    )
    assert count == 3
    assert intake.take_in(vendor.store, out, vendor.signers) == intake.Taken("2026-W47", 3, new=True)
    assert all(vendor.store.ek_listed(ek_name(item.ek_public)) for item in keys)
    with pytest.raises(ConfigError, match="may be named"):
        exporting.export(out, [], lot="a/b", vendor="us", created=NOW, key=load_private_key(vendor.key))


# --- preflight ------------------------------------------------------------------------------------------------------


def test_a_preflight_counts_what_the_trust_can_verify_and_says_why_not(vendor: Vendor) -> None:
    root, stranger = Maker("maker root"), Maker("a stranger")
    public = [ek_public(rsa_key(number)) for number in range(3)]
    certificates = [
        *((public[0], root.ek(rsa_key(0), kind)) for kind in KINDS),
        (public[1], stranger.ek(rsa_key(1))),
        (public[1], stranger.ek(rsa_key(1), "oaep")),
        (public[1], root.ek(rsa_key(2))),
        (public[1], root.ek(rsa_key(1), start=NOW - dt.timedelta(9), end=NOW - dt.timedelta(1))),
    ]
    lines: list[Line] = [
        {"ek_public": base64.b64encode(area).decode(), "certificate": base64.b64encode(der).decode()}
        for area, der in certificates
    ]
    path = vendor.write([*lines, *named(1, 2)])
    trust = assemble(Origin("bundle"), [read_certificate(root.ca(root))], [])
    with ek_list.opened(path) as listed:
        share = preflight(trust, listed, NOW)
    assert (share.total, share.verified, share.failed, share.bare) == (len(KINDS) + 6, len(KINDS), 4, 2)
    assert share.by_hand == len(KINDS) - 2
    reasons = dict(share.reasons)
    assert sorted(reasons.values()) == [1, 1, 2], reasons
    assert any("a stranger" in reason for reason in reasons)
    assert any("another key" in reason for reason in reasons)
    assert share.crls == {"missing": len(KINDS)}
    assert any("verify" in line and "by the fallback" in line for line in share.lines())
    assert share.described()["share"] == len(KINDS) / (len(KINDS) + 4)
