"""A trust bundle counts when its signature and all of its contents hold, and never after a newer one."""

from __future__ import annotations

import base64
import datetime as dt
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.errors import ConfigError, EkUntrusted, HallmarkError
from hal.registry import Registry
from station.config import Configuration, StationFile, StationSection
from station.paths import Paths
from station.signed import load_private_key, load_signers, read_bounded, write_signed
from station.store import Store
from station.toml_source import TomlSource
from station.trust import bundle as bundles
from station.trust import health, installed
from station.trust.making import make
from station.trust.source import TrustSource, load
from tests.trust_parts import DAY, NOW, Maker, bundle, key_pair

ROOT, MIDDLE, STRANGER = Maker("maker root"), Maker("maker intermediate"), Maker("a stranger")
ROOT_DER, MIDDLE_DER = ROOT.ca(ROOT), ROOT.ca(MIDDLE)
KEYS = (
    "format",
    "serial",
    "created",
    "vendors",
    "note",
    "name",
    "roots",
    "intermediates",
    "crls",
    "sha256",
    "der",
)
GOOD = bundle(1, [ROOT_DER], [MIDDLE_DER], [MIDDLE.crl(7)])


@dataclass
class Place:
    """A station's configuration and state, and the engineer's key."""

    configuration: Configuration
    key: Path
    folder: Path

    def signed(self, made: bundles.Bundle, name: str = "bundle.json") -> Path:
        path = self.folder / name
        write_signed(path, bundles.encode(made), load_private_key(self.key))
        return path

    def install(self, made: bundles.Bundle) -> bool:
        path = self.signed(made)
        signers = load_signers(self.configuration.path("trust/bundle-signers"))
        signed, found = bundles.read_bundle(path, signers)
        bundles.trust_set(signed, found, path)
        signature = read_bounded(path.with_name("bundle.json.sig"), 4096, ConfigError)
        return installed.install(self.configuration.paths.trust, signed, signature, found)


def placed(root: Path, mode: Any = "bench") -> Place:
    file = StationFile(StationSection("s", mode))
    paths = Paths(root / "root")
    configuration = Configuration(paths, file, TomlSource("station.toml", {}, {}), Registry())
    (configuration.folder / "trust/ek").mkdir(parents=True)
    key = key_pair(root, "trust-officer", configuration.path("trust/bundle-signers"))
    return Place(configuration, key, root)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return placed(tmp_path)


# --- signature and contents -----------------------------------------------------------------------------------------


def test_a_bundle_comes_back_as_it_was_made(place: Place) -> None:
    assert place.install(GOOD)
    trust = load(place.configuration)
    assert (trust.origin.kind, trust.origin.serial, trust.origin.signer) == ("bundle", 1, "trust-officer.pem")
    assert [item.subject for item in trust.roots] == ["CN=maker root"]
    assert [item.vendor for item in trust.intermediates] == ["Maker"]
    assert [item.revoked for item in trust.crls] == [{7}]


def test_plain_openssl_checks_a_bundles_signature(place: Place) -> None:
    import subprocess

    path = place.signed(GOOD)
    public = place.configuration.path("trust/bundle-signers") / "trust-officer.pem"
    done = subprocess.run(
        [
            *("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(public), "-rawin"),
            *("-in", str(path), "-sigfile", str(path) + ".sig"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_changed_or_foreign_bundle_is_refused(place: Place, tmp_path: Path) -> None:
    signers = load_signers(place.configuration.path("trust/bundle-signers"))
    path = place.signed(GOOD)
    path.write_bytes(path.read_bytes().replace(b"Maker", b"Faker"))
    with pytest.raises(ConfigError, match="is not signed by trust-officer"):
        bundles.read_bundle(path, signers)
    other = key_pair(tmp_path, "other", tmp_path / "others")
    write_signed(path, bundles.encode(GOOD), load_private_key(other))
    with pytest.raises(ConfigError, match="is not signed by"):
        bundles.read_bundle(path, signers)


def entry(octets: bytes, **changed: str) -> bundles.CertificateEntry:
    return msgspec.structs.replace(bundles.entry(octets), **changed)


def vendor(**parts: Any) -> bundles.Bundle:
    return bundles.Bundle(bundles.FORMAT, 1, NOW, [bundles.Vendor("Maker", **{"roots": [], **parts})])


BAD: dict[str, tuple[bundles.Bundle, str]] = {
    "a root that another signed": (bundle(1, [MIDDLE_DER]), "not signed by itself"),
    "a root among the intermediates": (bundle(1, [ROOT_DER], [STRANGER.ca(STRANGER)]), "is a root"),
    "a root that is no CA": (bundle(1, [ROOT.ca(ROOT, is_ca=False)]), "is no CA"),
    "an intermediate that is no CA": (bundle(1, [ROOT_DER], [ROOT.ca(MIDDLE, is_ca=False)]), "is no CA"),
    "a list of a stranger": (bundle(1, [ROOT_DER], [], [STRANGER.crl()]), "signed by no CA"),
    "another digest": (vendor(roots=[entry(ROOT_DER, sha256="0" * 64)]), "digest"),
    "no base64": (vendor(roots=[entry(ROOT_DER, der="!")]), "base64"),
    "no certificate": (vendor(roots=[bundles.entry(b"\x30\x00")]), "can't be read"),
    "other dates than the list's": (
        vendor(
            roots=[bundles.entry(ROOT_DER)],
            crls=[msgspec.structs.replace(GOOD.vendors[0].crls[0], next_update=NOW + 999 * DAY)],
        ),
        "other dates",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_contents_that_do_not_hold_are_refused_with_the_vendors_name(place: Place, case: str) -> None:
    made, says = BAD[case]
    with pytest.raises(ConfigError, match=says) as found:
        place.install(made)
    assert "Maker" in str(found.value)
    assert installed.installed_bundle(place.configuration.paths.trust) is None


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=10),
            lambda item: (
                st.lists(item, max_size=4) | st.dictionaries(st.sampled_from(KEYS), item, max_size=6)
            ),
            max_leaves=30,
        ).map(msgspec.json.encode),
    )
)
def test_no_octets_are_taken_for_a_bundle(raw: bytes) -> None:
    with pytest.raises(ConfigError):
        bundles.parse(raw)


ENCODED = bundles.encode(GOOD)


@settings(max_examples=200)
@given(st.integers(0, len(ENCODED) - 1), st.integers(0, 255))
def test_a_damaged_manifest_is_refused_or_still_holds_whole(at: int, value: int) -> None:
    damaged = ENCODED[:at] + bytes([value]) + ENCODED[at + 1 :]
    try:
        parts = bundles.contents(bundles.parse(damaged))
    except ConfigError:
        return
    assert [item.der for item in parts[0].roots] == [ROOT_DER]
    assert [item.der for item in parts[0].intermediates] == [MIDDLE_DER]


# --- installed, replaced, rolled back -------------------------------------------------------------------------------


def test_an_older_bundle_never_replaces_a_newer_one(place: Place) -> None:
    assert place.install(bundle(5, [ROOT_DER]))
    assert not place.install(bundle(5, [ROOT_DER])), "the same again changes nothing"
    for serial in (4, 5):
        with pytest.raises(ConfigError, match="not newer than bundle 5"):
            place.install(bundle(serial, [ROOT_DER], [MIDDLE_DER]))
    assert load(place.configuration).origin.serial == 5
    assert place.install(bundle(6, [ROOT_DER]))
    assert load(place.configuration).origin.serial == 6


def test_the_store_remembers_bundles_whose_files_were_removed(place: Place, store: Store) -> None:
    place.install(bundle(5, [ROOT_DER]))
    TrustSource(place.configuration, store.take_bundle).refresh()
    assert "trust-bundle-taken" in {event.kind for event in store.events(0, 100)}
    (place.configuration.paths.trust / "current").unlink()
    assert place.install(bundle(4, [ROOT_DER], [MIDDLE_DER]))
    source = TrustSource(place.configuration, store.take_bundle)
    with pytest.raises(EkUntrusted, match="older than bundle 5"):
        source.current()
    assert source.trouble is not None
    assert "trust import" in source.trouble.hint


def test_a_new_bundle_counts_at_once_and_a_broken_one_never(place: Place, store: Store) -> None:
    source = TrustSource(place.configuration, store.take_bundle)
    place.install(bundle(1, [ROOT_DER]))
    assert source.current().origin.serial == 1
    place.install(bundle(2, [ROOT_DER], [MIDDLE_DER]))
    second = source.current()
    assert len(second.intermediates) == 1
    assert source.current() is second, "nothing is read again while nothing changes"
    file = installed.installed_bundle(place.configuration.paths.trust)
    assert file is not None
    file.write_bytes(file.read_bytes() + b" ")
    assert source.current() is second, "what holds stays"
    assert source.trouble is not None
    place.install(bundle(3, [ROOT_DER]))
    assert source.current().origin.serial == 3
    assert source.trouble is None


@pytest.mark.parametrize("stop", range(4))
def test_an_import_that_breaks_off_leaves_the_bundle_before_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    place.install(bundle(1, [ROOT_DER]))
    calls = 0

    def broken(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > stop:
                raise OSError(28, "No space left on device")
            return real(*given, **named)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken(os.fsync))
        with pytest.raises((HallmarkError, OSError)):
            place.install(bundle(2, [ROOT_DER], [MIDDLE_DER]))
    assert load(place.configuration).origin.serial in (1, 2)
    place.install(bundle(2, [ROOT_DER], [MIDDLE_DER]))
    assert load(place.configuration).origin.serial == 2


def test_production_does_not_believe_a_loose_folder(tmp_path: Path, store: Store) -> None:
    production = placed(tmp_path, "production")
    (production.configuration.path("trust/ek") / "root.der").write_bytes(ROOT_DER)
    source = TrustSource(production.configuration, store.take_bundle)
    with pytest.raises(EkUntrusted, match="no trust bundle is installed") as found:
        source.current()
    assert "trust import" in found.value.hint
    production.install(GOOD)
    assert source.current().origin.kind == "bundle"


def test_a_bench_believes_a_folder_until_there_is_a_bundle(place: Place, store: Store) -> None:
    source = TrustSource(place.configuration, store.take_bundle)
    folder = place.configuration.path("trust/ek")
    (folder / "root.der").write_bytes(ROOT_DER)
    assert source.current().origin.kind == "folder"
    (folder / "more.pem").write_bytes(
        b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(MIDDLE_DER) + b"-----END CERTIFICATE-----\n"
    )
    (folder / "list.crl").write_bytes(MIDDLE.crl(9))
    now = source.current()
    assert (len(now.intermediates), len(now.crls)) == (1, 1)
    place.install(GOOD)
    assert source.current().origin.kind == "bundle"


# --- made, and looked at --------------------------------------------------------------------------------------------


def test_a_bundle_is_made_from_a_folder_for_each_vendor(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "vendors"
    for name, content in {
        "Alpha/root.cer": ROOT_DER,
        "Alpha/again.der": ROOT_DER,
        "Alpha/ca.der": MIDDLE_DER,
        "Alpha/ca.crl": MIDDLE.crl(1),
        "Beta/root.der": STRANGER.ca(STRANGER),
        "Beta/note.txt": b"from their site, digest read to us by telephone",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    made = make(folder, 3, "spring", NOW)
    found = [(item.name, len(item.roots), len(item.intermediates), len(item.crls)) for item in made.vendors]
    assert found == [("Alpha", 1, 1, 1), ("Beta", 1, 0, 0)]
    assert "telephone" in made.vendors[1].note
    assert place.install(made)
    (folder / "Beta/list.crl").write_bytes(b"no list")
    with pytest.raises(ConfigError, match=r"list\.crl"):
        make(folder, 3, "", NOW)
    (folder / "loose.der").write_bytes(ROOT_DER)
    with pytest.raises(ConfigError, match="one folder for each vendor"):
        make(folder, 3, "", NOW)


def test_what_ended_what_ends_soon_and_what_is_stale_is_told(place: Place) -> None:
    late = Maker("late")
    place.install(
        bundle(
            1,
            [
                ROOT_DER,
                STRANGER.ca(STRANGER, end=NOW - DAY, start=NOW - 9 * DAY),
                late.ca(late, end=NOW + 9 * DAY),
            ],
            [MIDDLE_DER],
            [ROOT.crl(end=NOW + 2 * DAY), MIDDLE.crl(start=NOW - 9 * DAY, end=NOW - DAY)],
        )
    )
    found = [(item.state, item.what) for item in health.examine(load(place.configuration), NOW)]
    wrong = [what for state, what in found if state == health.WRONG]
    assert len(wrong) == 2
    assert any("root 'CN=a stranger' ended" in what for what in wrong)
    assert any("revocation list of 'CN=maker intermediate' ended" in what for what in wrong)
    soon = [what for state, what in found if state == health.WARNING]
    assert any("'CN=late' ends" in what for what in soon)
    assert any("'CN=maker root' ends" in what for what in soon)
    years = health.examine(load(place.configuration), NOW + dt.timedelta(days=9999))
    assert all(item.state != health.WARNING for item in years)
