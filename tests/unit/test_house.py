"""The rules of the house, held by reading the code: who may import whom, what is data, what is shipped.

Nothing is imported to find this out, save the drivers that pyproject.toml promises. Each failure names the file, the
line and the rule. Rules about names inside a room, or about style, are ruff's and mypy's, and don't belong here.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from hal.driver import Driver

ROOT: Final = Path(__file__).resolve().parents[2]
PYPROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUP: Final = "hallmark.drivers"
ENTRY_POINTS: Final[dict[str, str]] = PYPROJECT["project"]["entry-points"][GROUP]
LOCKS: Final = ("build", "run", "dev")

CODE: Final = ("hal", "station", "drivers")
DATA: Final = ("config", "systemd")
OPENER: Final = "driver"
"""The module of a driver's folder that opens devices. The rest, codecs and processes, may be shared with emulations."""

HAL_RULE: Final = "rule 1: hal imports the standard library, and cryptography for type checking only"
DRIVERS_RULE: Final = "rule 2: a driver imports hal, libraries and its own folder"
EMULATED_RULE: Final = f"rule 2: drivers/emulated imports rooms of other drivers, but not their {OPENER}.py"
NOT_EMULATED_RULE: Final = "rule 2: nothing imports drivers/emulated"
STATION_RULE: Final = "rule 3: station imports hal, never drivers; entry points join them"
DATA_RULE: Final = "rule 4: config and systemd are data, without Python modules"
TESTS_RULE: Final = "what is shipped never imports tests"

DYNAMIC_IMPORTS: Final = frozenset(
    {"__import__", "import_module", "find_spec", "resolve_name", "run_module", "load_module", "import_string"}
)


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name, dotted and absolute; `typing_only` when it stands under `if TYPE_CHECKING`."""

    line: int
    name: str
    typing_only: bool


@dataclass(frozen=True, slots=True)
class Violation:
    path: str
    line: int
    rule: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.found}: {self.rule}"


class _Reader(ast.NodeVisitor):
    """Collects imports at every depth: in functions, under conditions, and through importlib with a literal name."""

    def __init__(self, package: tuple[str, ...]) -> None:
        self.package = package
        self.found: list[Import] = []
        self._typing_only = False

    def _add(self, line: int, name: str) -> None:
        self.found.append(Import(line, name, self._typing_only))

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            before, self._typing_only = self._typing_only, True
            for child in node.body:
                self.visit(child)
            self._typing_only = before
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node.lineno, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module.split(".") if node.module else []
        if node.level:
            base = [*self.package[: len(self.package) - node.level + 1], *base]
        for alias in node.names:
            self._add(node.lineno, ".".join([*base, alias.name]))

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in DYNAMIC_IMPORTS and (start := _literal_start(node)):
            if start.startswith("."):
                start = ".".join(self.package) + start
            self._add(node.lineno, start.replace(":", "."))
        self.generic_visit(node)


def _literal_start(call: ast.Call) -> str:
    """The literal text that a call's first argument begins with: of a string, an f-string or a sum of strings."""
    first: ast.expr | None = call.args[0] if call.args else None
    if first is None:
        first = next((word.value for word in call.keywords if word.arg in ("name", "mod_name")), None)
    while isinstance(first, ast.BinOp):
        first = first.left
    if isinstance(first, ast.JoinedStr) and first.values:
        first = first.values[0]
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def imports_of(path: Path, root: Path) -> list[Import]:
    reader = _Reader(path.relative_to(root).parent.parts)
    reader.visit(ast.parse(path.read_text(), str(path)))
    return reader.found


def broken_rule(parts: tuple[str, ...], found: Import) -> str | None:
    """The rule that a module at `parts` (its path without suffix) breaks by this import, or None."""
    target = tuple(found.name.split("."))
    top = target[0]
    if top == "tests":
        return TESTS_RULE
    if top in DATA and (len(target) == 1 or top == "config"):
        return DATA_RULE
    if target[:2] == ("drivers", "emulated") and parts[:2] != ("drivers", "emulated"):
        return NOT_EMULATED_RULE
    if parts[0] == "hal":
        return None if _fits_hal(parts, top, typing_only=found.typing_only) else HAL_RULE
    if parts[0] == "station":
        return STATION_RULE if top == "drivers" else None
    if top == "station":
        return DRIVERS_RULE
    if top == "drivers" and (len(target) == 1 or len(parts) < 2 or target[1] != parts[1]):
        if parts[:2] != ("drivers", "emulated"):
            return DRIVERS_RULE
        return EMULATED_RULE if len(target) == 1 or target[2:3] == (OPENER,) else None
    return None


def _fits_hal(parts: tuple[str, ...], top: str, *, typing_only: bool) -> bool:
    if top == "cryptography":
        # The contract tests that drivers run must check the signatures that drivers make.
        return typing_only or parts[:2] == ("hal", "conformance")
    return top == "hal" or top in sys.stdlib_module_names


def violations(root: Path) -> Iterator[Violation]:
    for folder in CODE:
        for path in sorted((root / folder).rglob("*.py")):
            relative = path.relative_to(root)
            for found in imports_of(path, root):
                if rule := broken_rule(relative.with_suffix("").parts, found):
                    yield Violation(str(relative), found.line, rule, f"imports {found.name}")
    for folder in DATA:
        for path in sorted((root / folder).rglob("*.py")):
            yield Violation(str(path.relative_to(root)), 1, DATA_RULE, "is a Python module")


def tracked_files() -> list[Path]:
    """What git would hand to others; without git, everything outside of hidden and generated folders."""
    command = [
        "git",
        "-c",
        f"safe.directory={ROOT}",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        candidates = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        hidden = (".venv", ".cache", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis")
        candidates = [path for path in ROOT.rglob("*") if path.relative_to(ROOT).parts[0] not in hidden]
    return [path for path in candidates if path.is_file() and not path.is_symlink()]


# --- the tree as it is ---


def test_every_room_imports_only_what_its_rule_allows() -> None:
    found = [str(violation) for violation in violations(ROOT)]
    assert not found, "\n" + "\n".join(found)


def test_the_rules_are_read_from_code_that_is_there() -> None:
    """An empty tree keeps every rule: a wrong root must not pass."""
    assert any((ROOT / "hal").rglob("*.py"))
    assert any((ROOT / "station").rglob("*.py"))
    assert any((ROOT / "drivers").rglob("*.py"))


# --- the checker can fail ---

MADE_UP: Final = {
    "hal takes a library": ("hal/a.py", "import msgspec", HAL_RULE),
    "hal takes a library in a function": ("hal/a.py", "def f():\n    import serial", HAL_RULE),
    "hal takes cryptography at run time": ("hal/a.py", "from cryptography import x509", HAL_RULE),
    "hal takes the station": ("hal/sub/a.py", "from station.store import Store", HAL_RULE),
    "hal takes a driver": ("hal/a.py", "import drivers.smp", HAL_RULE),
    "hal takes a neighbour relatively": ("hal/a.py", "from ..station import x", HAL_RULE),
    "else of TYPE_CHECKING runs": (
        "hal/a.py",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import cryptography",
        HAL_RULE,
    ),
    "a driver takes the station": ("drivers/smp/a.py", "import station.cli as c", DRIVERS_RULE),
    "a driver takes another": ("drivers/smp/a.py", "from drivers.tpm.esapi import Tpm", DRIVERS_RULE),
    "a driver takes another by package": ("drivers/smp/a.py", "from drivers import tpm", DRIVERS_RULE),
    "a driver takes another relatively": ("drivers/smp/a.py", "from ..tpm import esapi", DRIVERS_RULE),
    "a driver takes all of them": ("drivers/smp/a.py", "import drivers", DRIVERS_RULE),
    "a module outside of rooms takes one": ("drivers/a.py", "import drivers.tpm.esapi", DRIVERS_RULE),
    "a driver takes another's codec": ("drivers/smp/a.py", "import drivers.tpm.codec", DRIVERS_RULE),
    "a driver takes the emulation": ("drivers/smp/a.py", "import drivers.emulated.dps", NOT_EMULATED_RULE),
    "the emulation takes what opens a device": (
        "drivers/emulated/a.py",
        "from drivers.smp.driver import DRIVER",
        EMULATED_RULE,
    ),
    "the emulation takes it by package": (
        "drivers/emulated/board/a.py",
        "from drivers.smp import driver",
        EMULATED_RULE,
    ),
    "the emulation takes all drivers": ("drivers/emulated/a.py", "import drivers", EMULATED_RULE),
    "the emulation takes the station": ("drivers/emulated/a.py", "import station", DRIVERS_RULE),
    "the station takes a driver": ("station/a.py", "from drivers.tpm import driver", STATION_RULE),
    "the station takes one for typing": (
        "station/a.py",
        "if TYPE_CHECKING:\n    import drivers.tpm",
        STATION_RULE,
    ),
    "the station takes one by name": (
        "station/a.py",
        "import importlib\nimportlib.import_module('drivers.tpm.driver')",
        STATION_RULE,
    ),
    "the station takes one by a built name": (
        "station/a.py",
        "def f(n):\n    return import_module(f'drivers.{n}.driver')",
        STATION_RULE,
    ),
    "the station takes one by a summed name": ("station/a.py", "__import__('drivers.' + name)", STATION_RULE),
    "the station takes the emulation": (
        "station/a.py",
        "import drivers.emulated.demo",
        NOT_EMULATED_RULE,
    ),
    "shipped code takes tests": ("station/a.py", "from tests.bench import run", TESTS_RULE),
    "code takes data for a package": ("station/a.py", "import config.recipes", DATA_RULE),
    "data becomes a package": ("config/recipes/__init__.py", "", DATA_RULE),
    "data holds a module": ("systemd/helper.py", "", DATA_RULE),
}


@pytest.mark.parametrize(("path", "source", "rule"), MADE_UP.values(), ids=MADE_UP)
def test_a_violation_is_found_with_file_line_and_rule(
    tmp_path: Path, path: str, source: str, rule: str
) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    found = list(violations(tmp_path))
    assert [(violation.path, violation.rule) for violation in found] == [(path, rule)]
    assert found[0].line == max(1, source.count("\n") + 1)
    assert str(found[0]).startswith(f"{path}:{found[0].line}: ")
    assert str(found[0]).endswith(rule)


def test_what_the_rules_allow_is_not_found(tmp_path: Path) -> None:
    allowed = {
        "hal/a.py": "import os.path\nfrom hal.errors import HallmarkError\nfrom . import types",
        "hal/b.py": "if TYPE_CHECKING:\n    from cryptography import x509",
        "hal/conformance/a.py": "from cryptography.hazmat.primitives import hashes",
        "station/a.py": "import apsw, msgspec\nfrom hal.call import Call\nfrom station.a import x\nfrom .b import y",
        "drivers/smp/a.py": "import serial\nfrom hal import errors\nfrom drivers.smp.b import f\nfrom .codec import g",
        "drivers/emulated/a.py": "from drivers.smp.vendor import f\nfrom drivers.swtpm import process\nfrom . import b",
    }
    for path, source in allowed.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source)
    assert not [str(violation) for violation in violations(tmp_path)]


# --- what is shipped ---


@pytest.mark.parametrize("folder", DATA)
def test_data_folders_are_no_packages(folder: str) -> None:
    assert not list((ROOT / folder).rglob("*.py"))
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"][folder] == (
        f"share/hallmark/{folder}"
    )


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_loads_the_driver_of_its_name(name: str) -> None:
    module, _, attribute = ENTRY_POINTS[name].partition(":")
    if not (ROOT / module.replace(".", "/")).with_suffix(".py").exists():
        pytest.skip(f"{module} is not written yet")
    driver = importlib.metadata.EntryPoint(name, f"{module}:{attribute}", GROUP).load()
    assert isinstance(driver, Driver)
    assert driver.name == name


def test_the_installed_entry_points_are_those_of_pyproject() -> None:
    ours = importlib.metadata.distribution("hallmark-station").entry_points.select(group=GROUP)
    assert {entry.name: entry.value for entry in ours} == ENTRY_POINTS


# --- the locks, and what must not leave a build machine ---

PIN: Final = re.compile(
    r"^([a-z0-9][a-z0-9._-]*)==(\S+)(?: ;.*?)? \\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", re.MULTILINE
)
NAME: Final = re.compile(r"^[A-Za-z0-9._-]+")


def pins(lock: str) -> dict[str, str]:
    return {
        name: version for name, version, _ in PIN.findall((ROOT / f"requirements/{lock}.txt").read_text())
    }


def wanted(lock: str) -> set[str]:
    lines = (ROOT / f"requirements/{lock}.in").read_text().splitlines()
    return {match[0] for line in lines if (match := NAME.match(line)) and not line.startswith("-")}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_all_that_was_asked_with_hashes(lock: str) -> None:
    text = (ROOT / f"requirements/{lock}.txt").read_text()
    assert wanted(lock) <= set(pins(lock))
    assert len(pins(lock)) == len(re.findall(r"^[^\s#-]", text, re.MULTILINE)), "a line without pin and hash"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_place_to_fetch_from(lock: str) -> None:
    text = (ROOT / f"requirements/{lock}.txt").read_text()
    assert not re.findall(r"\w+://\S*|^--(?:extra-)?index-url.*|^--find-links.*| @ .*", text, re.MULTILINE)


def test_the_locks_agree_where_they_overlap() -> None:
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, version in pins(lock).items():
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_the_run_lock_is_made_from_what_the_distribution_asks_for() -> None:
    declared = {match[0] for line in PYPROJECT["project"]["dependencies"] if (match := NAME.match(line))}
    assert declared == wanted("run")


# Put together here, so that this file doesn't name what it forbids.
REGISTRY_HOSTS: Final = (
    "pypi" + ".org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "crates" + ".io",
    "pkg" + ".dev",
    "proxy.golang" + ".org",
    "deb." + "debian.org",
    "snapshot." + "debian.org",
)
BUILD_PATHS: Final = re.compile(r"(?<![\w.~*}-])/" + r"(?:root|work|home|Users)" + r"/[\w.-]+")


def private_places(text: str) -> list[str]:
    found = [host for host in REGISTRY_HOSTS if host in text]
    found += [path for path in (str(ROOT), str(Path.home())) if path.count("/") > 1 and path in text]
    return found + BUILD_PATHS.findall(text)


def test_no_file_names_a_registry_or_a_build_machine() -> None:
    files = tracked_files()
    assert ROOT / "pyproject.toml" in files
    found = [
        f"{path.relative_to(ROOT)}:{number}: {place}"
        for path in files
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1)
        for place in private_places(line)
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "line",
    ["--index-url https://" + REGISTRY_HOSTS[0] + "/simple", "see /ro" + "ot/notes", str(ROOT / "hal")],
)
def test_a_private_place_is_found(line: str) -> None:
    if line.startswith(str(ROOT)) and str(ROOT).count("/") < 2:
        pytest.skip("the checkout lies directly under the root folder")
    assert private_places(line)
