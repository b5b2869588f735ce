"""Drivers come in by name only: built-in names can't be taken, a broken one is left out, nothing else is imported.

With real distributions: folders with a `.dist-info`, found through `sys.path` as pip's are.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hal import registry
from hal.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

DRIVER = """\
import pathlib
pathlib.Path(__file__).with_suffix(".imported").touch()
from contextlib import nullcontext
from dataclasses import dataclass
from hal.driver import Driver
@dataclass(frozen=True)
class Settings:
    pass
DRIVER = Driver({name!r}, "made up", Settings, lambda settings, needs: nullcontext({{}}), frozenset())
"""

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes a distribution with one entry point and one module, whose import leaves a file `MODULE.imported`."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def make(
        name: str, source: str | None = None, attribute: str = "DRIVER", dist: str | None = None
    ) -> Path:
        module = f"made_up_{len(made)}"
        made.append(module)
        (tmp_path / f"{module}.py").write_text(DRIVER.format(name=name) if source is None else source)
        info = tmp_path / f"{dist or module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist or module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {module}:{attribute}\n")
        importlib.invalidate_caches()
        return tmp_path / f"{module}.imported"

    yield make
    for module in made:
        sys.modules.pop(module, None)


def test_a_driver_of_another_package_is_loaded_by_its_name(install: Install) -> None:
    imported = install("acme")
    found = registry.load(["acme"])
    assert found.broken == {}
    assert found.get("acme").name == "acme"
    assert imported.exists()


def test_what_is_not_named_is_not_imported(install: Install) -> None:
    named, other = install("acme"), install("other")
    assert {"acme", "other"} <= registry.installed().keys()
    registry.shadowing()
    assert not named.exists(), "looking at what is installed imports nothing"
    registry.load(["acme"])
    assert named.exists()
    assert not other.exists()


def test_only_the_named_drivers_modules_come_into_a_process() -> None:
    code = (
        "import sys; from hal.registry import load; load(['port-polling'])\n"
        "print(sorted({name.split('.')[1] for name in sys.modules if name.startswith('drivers.')}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "['discovery']"


def test_a_built_in_name_cannot_be_taken(install: Install) -> None:
    imported = install("port-polling", dist="evil")
    found = registry.load(["port-polling"]).get("port-polling")
    assert found.open.__module__ == "drivers.discovery.polling"
    assert not imported.exists()
    assert registry.shadowing() == ["port-polling: evil can't take a built-in name"]


def test_two_packages_with_one_name_are_both_refused(install: Install) -> None:
    first, second = install("acme"), install("acme")
    found = registry.load(["acme"])
    assert found.drivers == {}
    assert "made_up_0" in found.broken["acme"]
    assert "made_up_1" in found.broken["acme"]
    assert not first.exists()
    assert not second.exists()


@pytest.mark.parametrize(
    ("source", "attribute", "said"),
    [
        ("raise RuntimeError('no licence')", "DRIVER", "RuntimeError: no licence"),
        ("import a_library_that_is_not_there", "DRIVER", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "DRIVER", "SystemExit"),
        ("DRIVER = (", "DRIVER", "SyntaxError"),
        ("", "DRIVER", "AttributeError"),
        ("DRIVER = 'driver'", "DRIVER", "is no hal.driver.Driver named 'acme'"),
        (DRIVER.format(name="another"), "DRIVER", "is no hal.driver.Driver named 'acme'"),
    ],
)
def test_a_broken_driver_is_reported_and_left_out(
    install: Install, source: str, attribute: str, said: str
) -> None:
    install("acme", source, attribute)
    found = registry.load(["acme", "port-polling"])
    assert said in found.broken["acme"]
    assert list(found.drivers) == ["port-polling"]
    with pytest.raises(ConfigError, match="can't be used"):
        found.get("acme")


def test_what_a_broken_driver_says_is_bounded(install: Install) -> None:
    install("acme", "raise RuntimeError('x' * 100_000)")
    assert len(registry.load(["acme"]).broken["acme"]) <= 300


def test_a_driver_that_nobody_offers_is_reported() -> None:
    found = registry.load(["acme"])
    assert "no installed package offers it" in found.broken["acme"]
    with pytest.raises(ConfigError, match="not among the drivers"):
        found.get("port-polling")
