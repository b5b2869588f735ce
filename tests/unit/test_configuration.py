"""station.toml is refused as a whole, with file, line and key, unless its names, drivers and settings fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import ConfigError
from hal.registry import Registry
from station.config import (
    MAX_NESTS,
    Configuration,
    NestSection,
    StationFile,
    StationSection,
    as_toml_values,
    load_configuration,
)
from station.paths import Paths
from station.toml_source import TomlSource

HEAD = """\
[station]
name = "line-1"
mode = "bench"
drivers = ["port-polling", "pkcs11"]
"""


def load(tmp_path: Path, text: str, *, drivers: bool = True) -> Configuration:
    paths = Paths(tmp_path)
    paths.configuration.parent.mkdir(parents=True, exist_ok=True)
    paths.configuration.write_text(text)
    return load_configuration(paths, drivers=drivers, signed=False)


def refusal(tmp_path: Path, text: str, *, drivers: bool = False) -> list[tuple[int | None, str | None, str]]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, drivers=drivers)
    assert caught.value.file == str(Paths(tmp_path).configuration)
    return [(error.line, error.key, error.problem) for error in (caught.value, *caught.value.others)]


def test_the_smallest_station_is_a_production_station_with_defaults(tmp_path: Path) -> None:
    found = load(tmp_path, '[station]\nname = "s"\ndrivers = ["pkcs11"]\n', drivers=False)
    assert not found.bench
    assert found.file.signer.ca_key == "issuing-ca"
    assert found.file.nest == []
    assert found.folder == tmp_path / "etc/hallmark"
    assert found.path("trust/ek") == tmp_path / "etc/hallmark/trust/ek"
    assert found.registry == Registry(), "without drivers nothing is imported"


@pytest.mark.parametrize(
    ("text", "line", "key", "said"),
    [
        (HEAD + '[[nest]]\nname = "A"\nplace = "p"\nrecipe = "../x.toml"\n', 8, "nest[0].recipe", "a name of letters"),
        (HEAD + "[nests]\n", 5, "nests", "unknown key"),
        (HEAD + "minimum_free_mib = 0\n", 5, "station.minimum_free_mib", "at least 1"),
        (HEAD + '[trust]\nek = "../ek"\n', 6, "trust.ek", "leads elsewhere"),
        (HEAD + '[trust]\nfirmware = "/etc/x"\n', 6, "trust.firmware", "leads elsewhere"),
        (HEAD + '[signer]\nprofiles = "a/../../b"\n', 6, "signer.profiles", "leads elsewhere"),
        (HEAD + '[escrow]\nofficers = ["a.pem",\n"/b.pem"]\n', 7, "escrow.officers[1]", "leads elsewhere"),
        (HEAD + '[[discovery]]\ndriver = "udev"\n', 6, "discovery[0].driver", "not in station.drivers"),
        (HEAD + '[[sink]]\nname = "d"\ndriver = "dps"\n', 7, "sink[0].driver", "not in station.drivers"),
        (HEAD.replace("bench", "lab"), 3, "station.mode", "one of 'production', 'bench'"),
        (HEAD + '[[work_order]]\nid = "W"\nsku = "s"\nquantity = 0\n', 8, "work_order[0].quantity", "at least 1"),
        (HEAD + '[status]\noperators = "a b"\n', 6, "status.operators", "a name of letters"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_where_it_stands(
    tmp_path: Path, text: str, line: int, key: str, said: str
) -> None:
    ((found_line, found_key, problem),) = refusal(tmp_path, text)
    assert (found_line, found_key) == (line, key)
    assert said in problem


def nest(name: str, place: str) -> str:
    return f'[[nest]]\nname = "{name}"\nplace = "{place}"\nrecipe = "r.toml"\n'


def test_names_and_places_that_are_taken_twice_are_refused_at_the_second(tmp_path: Path) -> None:
    text = HEAD + nest("A", "usb:1-1") + nest("B", "usb:1-1") + nest("A", "usb:1-2")
    assert [found[:2] for found in refusal(tmp_path, text)] == [(14, "nest[2].name"), (11, "nest[1].place")]
    order = '[[work_order]]\nid = "W"\nsku = "s"\nquantity = 1\n'
    assert refusal(tmp_path, HEAD + order + order)[0][:2] == (10, "work_order[1].id")


def test_more_nests_than_a_station_can_have_are_refused(tmp_path: Path) -> None:
    text = HEAD + "".join(nest(f"N{number}", f"usb:1-{number}") for number in range(MAX_NESTS + 1))
    ((line, key, problem),) = refusal(tmp_path, text)
    assert (line, key) == (5, "nest")
    assert str(MAX_NESTS) in problem


def test_drivers_settings_are_checked_by_the_drivers_own_types(tmp_path: Path) -> None:
    text = HEAD + '[[discovery]]\ndriver = "port-polling"\nsettings = { path = ["/x"], interval = "1" }\n'
    found = refusal(tmp_path, text, drivers=True)
    ours = [one[:2] for one in found if one[1] and one[1].startswith("discovery")]
    assert ours == [(7, "discovery[0].settings.path"), (7, "discovery[0].settings.interval")]


def test_a_driver_that_is_not_installed_is_refused_by_name_and_line(tmp_path: Path) -> None:
    found = refusal(tmp_path, HEAD.replace('["port', '["acme-probe", "port'), drivers=True)
    assert (4, "station.drivers[0]") in [one[:2] for one in found]


def test_a_bench_driver_is_refused_in_production(tmp_path: Path) -> None:
    text = HEAD.replace('["port', '["swtpm", "port').replace("bench", "production")
    problems = [
        problem for _, key, problem in refusal(tmp_path, text, drivers=True) if key == "station.drivers[0]"
    ]
    assert problems == ["driver 'swtpm' is for bench mode only"]


# --- which nest claims a place ---


def configuration(*places: str) -> Configuration:
    nests = [
        NestSection(name=f"N{index}", place=place, recipe="r.toml") for index, place in enumerate(places)
    ]
    file = StationFile(station=StationSection(name="s"), nest=nests)
    return Configuration(Paths(), file, TomlSource("f", {}, {}), Registry())


@pytest.mark.parametrize(
    ("places", "seen", "claimed"),
    [
        (("usb:1-*", "usb:1-1.4"), "usb:1-1.4", 1),  # an exact name before a glob
        (("usb:1-*", "usb:1-1.*"), "usb:1-1.4", 0),  # the first glob
        (("usb:1-1.4",), "usb:1-1.4:1.2", None),
        (("usb:1-1.4*",), "usb:1-1.4:1.2", 0),
        (("/tmp/[x]/b",), "/tmp/[x]/b", 0),  # exact, though it looks like a glob
        (("USB:1-1",), "usb:1-1", None),  # case matters
        ((), "usb:1-1", None),
    ],
)
def test_a_place_is_claimed_by_its_exact_nest_before_a_glob(
    places: tuple[str, ...], seen: str, claimed: int | None
) -> None:
    found = configuration(*places).nest_for(seen)
    assert (found.name if found else None) == (None if claimed is None else f"N{claimed}")


@given(
    st.lists(st.text(alphabet="ab*?[]!-:.", max_size=6), unique=True), st.text(alphabet="ab:.-", max_size=6)
)
def test_an_exact_place_is_always_claimed_by_its_own_nest(places: list[str], seen: str) -> None:
    found = (
        configuration(*places, seen).nest_for(seen)
        if seen not in places
        else configuration(*places).nest_for(seen)
    )
    assert found is not None
    assert found.place == seen


def test_settings_go_to_a_worker_as_plain_values() -> None:
    from drivers.discovery.polling import Settings

    assert as_toml_values(Settings(paths=("/x",))) == {
        "paths": ("/x",),
        "serial_ports": False,
        "interval": 0.2,
    }
    assert as_toml_values(object()) == {}
