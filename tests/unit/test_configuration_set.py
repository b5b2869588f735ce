"""A production station runs with exactly the files that the release key signed, or not at all."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import ConfigError, ConfigurationUntrusted
from station.cli import main
from station.config import load_configuration
from station.configuration_set import (
    OUTSIDE,
    Release,
    SetEntry,
    SetFile,
    parse_set,
    read_set,
    refuse_older,
    sign_set,
)
from station.signed import PrivateKey, load_private_key
from station.store import Store
from tests.fixtures_config import Releaser, write_key

NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)


def load(released: Releaser) -> None:
    load_configuration(released.paths, drivers=False)


def test_a_signed_set_is_what_the_station_runs_with(released: Releaser) -> None:
    found = load_configuration(released.paths, drivers=False)
    assert found.released is not None
    assert sorted(found.released.files) == ["profiles/p.toml", "recipes/gw.toml", "station.toml"]
    assert (
        found.digest
        == subprocess.run(
            ["sha256sum", released.folder / "set.json"], capture_output=True, text=True, check=True
        ).stdout[:64]
    )
    assert (found.path("recipes/gw.toml")).read_text() == 'sku = "gw"\n'
    assert found.path("trust/ek").is_dir(), "an empty folder is there, and empty"
    assert found.path("images") == released.folder / "images", "images have a manifest of their own"
    assert found.shown(found.path("recipes/gw.toml")) == str(released.folder / "recipes/gw.toml")


@pytest.mark.parametrize(
    "make",
    [None, lambda: ec.generate_private_key(ec.SECP384R1()), lambda: rsa.generate_private_key(65537, 2048)],
    ids=["ed25519", "p384", "rsa"],
)
def test_plain_openssl_checks_a_set(released: Releaser, make: Callable[[], PrivateKey] | None) -> None:
    public = write_key(released.key, make() if make else None)
    shutil.copy(public, released.paths.release_key)
    released.release()
    load(released)
    plain = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(public), "-sigfile"]
    digest = ["openssl", "dgst", "-sha256", "-verify", str(public), "-signature"]
    files = [
        str(released.folder / "set.json.sig"),
        *([] if make else ["-in"]),
        str(released.folder / "set.json"),
    ]
    subprocess.run([*(digest if make else plain), *files], check=True, capture_output=True)


def _swap_signature(released: Releaser) -> None:
    first = (released.folder / "set.json.sig").read_bytes()
    (released.folder / "recipes/gw.toml").write_text('sku = "other"\n')
    released.release()
    (released.folder / "set.json.sig").write_bytes(first)


def _foreign_signature(released: Releaser) -> None:
    other = released.root / "elsewhere/release.key"
    write_key(other)
    sign_set(released.folder, load_private_key(other), None, NOW)


def _fifo(released: Releaser) -> None:
    (released.folder / "recipes/gw.toml").unlink()
    os.mkfifo(released.folder / "recipes/gw.toml")


def _link(released: Releaser) -> None:
    path = released.folder / "recipes/gw.toml"
    path.rename(released.root / "gw.toml")
    path.symlink_to(released.root / "gw.toml")


def _folder_link(released: Releaser) -> None:
    (released.folder / "profiles").rename(released.root / "profiles")
    (released.folder / "profiles").symlink_to(released.root / "profiles")


DAMAGE: dict[str, tuple[Callable[[Releaser], object], str]] = {
    "no set at all": (lambda it: (it.folder / "set.json").unlink(), "can't be read"),
    "no signature": (lambda it: (it.folder / "set.json.sig").unlink(), "can't be read"),
    "no release key": (lambda it: it.paths.release_key.unlink(), "release key's public part"),
    "a release key that others may change": (lambda it: it.paths.release_key.chmod(0o666), "changed by others"),
    "a changed file": (lambda it: (it.folder / "recipes/gw.toml").write_text('sku = "gX"\n'), "other octets"),
    "a longer file": (lambda it: (it.folder / "recipes/gw.toml").write_text('sku = "gw"\n\n'), "other octets"),
    "a missing file": (lambda it: (it.folder / "profiles/p.toml").unlink(), "is missing"),
    "an extra recipe": (lambda it: (it.folder / "recipes/x.toml").write_text(""), "not in the signed set"),
    "an extra hidden file": (lambda it: (it.folder / "trust/.x").write_text(""), "not in the signed set"),
    "an extra file at the top": (lambda it: (it.folder / "x").write_text(""), "not in the signed set"),
    "a changed list": (
        lambda it: (it.folder / "set.json").write_text((it.folder / "set.json").read_text() + " "),
        "not signed by",
    ),
    "the last set's signature": (_swap_signature, "not signed by"),
    "somebody else's signature": (_foreign_signature, "not signed by"),
    "a file that is a link": (_link, "symbolic link"),
    "a folder that is a link": (_folder_link, "symbolic link"),
    "a named pipe": (_fifo, "neither a file nor a folder"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_set_stops_the_station_and_says_what_to_do(
    released: Releaser, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    act, said = DAMAGE[damage]
    load(released)
    act(released)
    with pytest.raises(ConfigurationUntrusted, match=said) as caught:
        load(released)
    assert caught.value.hint
    capsys.readouterr()
    root = ["--root", str(released.root)]
    assert main([*root, "config", "verify", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["valid"] is False
    assert said in told["problem"]
    for process in ("run", "signer", "uploader"):
        assert main([*root, process]) == 2, f"{process} verifies for itself"
    assert main([*root, "check", "--offline"]) == 2


def test_what_changes_after_the_start_is_not_used(released: Releaser) -> None:
    found = load_configuration(released.paths, drivers=False)
    for path in ("recipes/gw.toml", "profiles/p.toml", "station.toml"):
        (released.folder / path).write_text("changed = true\n")
    (released.folder / "recipes/new.toml").write_text("")
    assert found.path("recipes/gw.toml").read_text() == 'sku = "gw"\n'
    assert found.path("profiles/p.toml").read_text() == "# a profile\n"
    assert found.file.station.name == "line-1"
    assert not found.path("recipes/new.toml").exists()


def test_what_is_local_to_a_machine_is_no_part_of_the_set(released: Releaser) -> None:
    for name in ("images", "credentials", "local"):
        (released.folder / name).mkdir()
        (released.folder / name / "anything").symlink_to("/etc/hostname")
    load(released)


def test_a_bench_needs_no_set(tmp_path: Path) -> None:
    found = Releaser(tmp_path)
    found.folder.mkdir(parents=True)
    found.paths.configuration.write_text('[station]\nname = "b"\nmode = "bench"\ndrivers = ["pkcs11"]\n')
    loaded = load_configuration(found.paths, drivers=False)
    assert (loaded.bench, loaded.digest, loaded.released) == (True, "", None)


# --- what a machine may say for itself ---

NEST = '[[nest]]\nname = "A"\nplace = "usb:1-1"\nrecipe = "gw.toml"\n'


def test_a_machine_names_itself_and_its_nests_without_the_release_key(released: Releaser) -> None:
    released.paths.configuration.write_text('[station]\ndrivers = ["udev", "pkcs11"]\nminimum_free_mib = 8\n')
    released.release()
    local = released.folder / "local.toml"
    local.write_text('[station]\nname = "line-7"\n' + NEST + '[[discovery]]\ndriver = "udev"\n')
    found = load_configuration(released.paths, drivers=False)
    assert (found.file.station.name, found.file.station.minimum_free_mib) == ("line-7", 8)
    assert [nest.name for nest in found.file.nest] == ["A"]
    assert found.file.discovery[0].driver == "udev"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[station]\nmode = "bench"\n', "station.mode"),
        ('[station]\ndrivers = ["swtpm"]\n', "station.drivers"),
        ('[[sink]]\nname = "d"\ndriver = "d"\n', "sink"),
        ('[escrow]\nofficers = ["x.pem"]\n', "escrow"),
        ('[trust]\nek = "x"\n', "trust"),
        ("[orders]\nrequired = false\n", "orders"),
        ('[[work_order]]\nid = "W"\nsku = "s"\nquantity = 1\n', "work_order"),
        ('[signer]\nca_key = "x"\n', "signer"),
        (NEST.replace("gw.toml", "../gw.toml"), "nest[0].recipe"),
        ('[[discovery]]\ndriver = "udev"\n', "discovery[0].driver"),
    ],
)
def test_a_machine_can_say_nothing_that_would_make_it_less_safe(
    released: Releaser, text: str, key: str
) -> None:
    local = released.folder / "local.toml"
    local.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(released)
    assert (caught.value.file, caught.value.key) == (str(local), key)
    assert caught.value.line


def test_a_recipe_of_a_machines_nest_is_one_of_the_set(released: Releaser) -> None:
    (released.folder / "local.toml").write_text(NEST)
    found = load_configuration(released.paths, drivers=False)
    assert found.path("recipes/gw.toml").exists()
    assert released.folder not in found.path("recipes/gw.toml").parents


# --- numbers ---


def test_serial_numbers_only_grow(released: Releaser) -> None:
    numbers = []
    for words in ((), ("--serial", "9"), ()):
        released.release(*words)
        numbers.append(json.loads((released.folder / "set.json").read_text())["serial"])
    assert numbers == [2, 9, 10]
    with pytest.raises(ConfigError, match="not over the last"):
        sign_set(released.folder, load_private_key(released.key), 10, NOW)


def test_an_older_set_is_refused_for_good(
    released: Releaser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    shutil.copytree(released.folder, old)
    released.release()
    newer = load_configuration(released.paths, drivers=False).released
    assert newer is not None
    released.paths.database.parent.mkdir(parents=True)
    with Store.open(released.paths.database, ballast=0) as store:
        store.accept_release(newer.serial, newer.digest)
        store.accept_release(newer.serial, newer.digest)  # each start
        with pytest.raises(ConfigurationUntrusted, match="older than 2"):
            store.accept_release(1, b"\1" * 32)
        with pytest.raises(ConfigurationUntrusted, match="two different"):
            store.accept_release(2, b"\1" * 32)
        assert [event.kind for event in store.events(0, 100)] == ["configuration-taken"]
    shutil.rmtree(released.folder)
    shutil.copytree(old, released.folder)
    capsys.readouterr()
    assert main(["--root", str(released.root), "config", "verify"]) == 1
    assert "older than 2" in capsys.readouterr().out
    assert main(["--root", str(released.root), "run"]) == 2


@given(st.lists(st.integers(1, 50), max_size=20))
def test_whatever_comes_the_newest_number_taken_never_falls(serials: list[int]) -> None:
    last: Release | None = None
    for serial in serials:
        try:
            refuse_older(last, serial, bytes([serial]) * 32)
        except ConfigurationUntrusted:
            assert last is not None
            assert serial < last.serial
        else:
            assert last is None or serial >= last.serial
            last = Release(serial, bytes([serial]) * 32)


# --- the list itself ---

ENTRY = {"path": "station.toml", "sha256": "0" * 64, "size": 1}
GOOD = {
    "format": "hallmark-configuration-set-1",
    "serial": 1,
    "created": "2026-01-01T00:00:00Z",
    "files": [ENTRY],
}


@pytest.mark.parametrize(
    "wrong",
    [
        GOOD | {"format": "hallmark-configuration-set-2"},
        GOOD | {"serial": 0},
        GOOD | {"serial": "1"},
        GOOD | {"created": "2026-01-01T00:00:00"},
        GOOD | {"files": []},
        GOOD | {"extra": 1},
        GOOD | {"files": [ENTRY, ENTRY]},
        GOOD | {"files": [ENTRY, ENTRY | {"path": "a"}]},
        GOOD | {"files": [ENTRY | {"size": 1 << 30}]},
        GOOD | {"files": [ENTRY | {"sha256": "0" * 63 + "\n"}]},
        *(
            GOOD | {"files": [ENTRY | {"path": path}]}
            for path in (
                "/a",
                "../a",
                "a/../b",
                "a//b",
                "a/",
                ".a",
                "a\n",
                "a\0",
                "",
                "images/x",
                "local.toml",
            )
        ),
    ],
    ids=str,
)
def test_a_list_of_another_form_is_refused(wrong: dict[str, object]) -> None:
    parse_set(json.dumps(GOOD).encode(), "set.json")
    with pytest.raises(ConfigurationUntrusted):
        parse_set(json.dumps(wrong).encode(), "set.json")


_values = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(st.binary(max_size=300) | _values.map(lambda value: json.dumps(value).encode()))
def test_no_octets_make_the_list_fail_in_another_way(data: bytes) -> None:
    with pytest.raises(ConfigurationUntrusted):
        parse_set(data, "set.json")


_part = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,9}", fullmatch=True)


@given(
    st.dictionaries(
        st.lists(_part, min_size=1, max_size=4).map("/".join), st.binary(max_size=40), min_size=1, max_size=8
    )
)
def test_what_is_signed_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("set")
    key = folder.parent / f"{folder.name}-key/release.key"
    public = write_key(key)
    public.chmod(0o644)
    written: dict[str, bytes] = {"station.toml": b"[station]\n"}
    (folder / "station.toml").write_bytes(written["station.toml"])
    for path, data in files.items():
        try:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        except OSError:
            continue  # one path is a folder of another
        written[path] = data
    sign_set(folder, load_private_key(key), None, NOW)
    found = read_set(folder, public)
    assert found.files == {path: data for path, data in written.items() if path.split("/")[0] not in OUTSIDE}


def test_the_structures_are_what_the_page_says() -> None:
    assert SetFile.__struct_fields__ == ("format", "serial", "created", "files")
    assert SetEntry.__struct_fields__ == ("path", "sha256", "size")
