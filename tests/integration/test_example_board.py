"""A board is added by another package and one line in station.toml: docs/examples/hallmark-acme-board, installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs/examples/hallmark-acme-board"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip has installed the package into, from a copy, without any network."""
    source = tmp_path_factory.mktemp("source") / EXAMPLE.name
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    target = tmp_path_factory.mktemp("installed")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(target), str(source)], check=True)
    return target


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=installed,
        env=os.environ | {"PYTHONPATH": f"{installed}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_registry_loads_the_packages_driver_and_only_when_it_is_named(installed: Path) -> None:
    code = (
        "import sys; from hal.registry import installed, load\n"
        "assert 'acme-line' in installed()\n"
        "load(['serial']); assert 'acme_board' not in sys.modules\n"
        "registry = load(['acme-line']); assert not registry.broken, registry.broken\n"
        "print(registry.get('acme-line').summary)"
    )
    ended = run(installed, "-c", code)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "ACME boards by their line protocol: identity, settings, TPM"
    assert not (installed / "test_acme_board.py").exists(), "tests aren't shipped"


def test_a_recipe_can_use_it(installed: Path, tmp_path: Path) -> None:
    """What docs/add-a-board.md shows is what the checker takes."""
    page = (ROOT / "docs/add-a-board.md").read_text()
    station, recipe = (block.partition("```")[0] for block in page.split("```toml\n")[1:3])
    folder = tmp_path / "etc/hallmark"
    (folder / "recipes").mkdir(parents=True)
    (folder / "station.toml").write_text(station)
    (folder / "recipes/iq7.toml").write_text(recipe)
    code = (
        "import sys; from pathlib import Path\n"
        "from station.config import load_configuration\n"
        "from station.paths import Paths\n"
        "from station.recipe_file import load_recipe\n"
        "recipe = load_recipe(load_configuration(Paths(Path(sys.argv[1]))), 'iq7.toml')\n"
        "print(*(f'{plan.role}={plan.driver}' for plan in recipe.drivers))"
    )
    ended = run(installed, "-c", code, str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.split()) == ["channel=serial", "link=acme-line", "tpm=tcti-tunnel"]


def test_its_own_tests_pass_contracts_included(installed: Path) -> None:
    ended = run(
        installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull,
        "--import-mode=importlib", "--rootdir", str(EXAMPLE), str(EXAMPLE / "test_acme_board.py"),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "passed" in ended.stdout
