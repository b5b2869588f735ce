"""A recipe's file, read and checked: every mistake that can be seen without a board is found, with file and line.

What its steps and drivers have to keep together is in recipe_checks.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from hal.driver import Driver, in_order
from hal.errors import ConfigError, RecipeError
from hal.interfaces import Channel, Credentials
from hal.registry import Registry
from hal.types import Sighting
from station import recipe_checks
from station.config import Configuration, Word, as_toml_values
from station.messages import DriverPlan
from station.recipe import PlannedStep, Recipe, RecipeWarning
from station.steps import STEPS
from station.strict import Problems, convert
from station.toml_source import Key, TomlSource, read

CHANNEL_ROLE: Final = "channel"
CHANNEL_DRIVER: Final = "serial"
MAX_STEPS: Final = 64


class RecipeFile(Struct, frozen=True):
    """What stands in a recipe, but for the options of its steps, which each step checks itself."""

    sku: Word
    step: list[dict[str, Any]]
    pass_: Annotated[str, Meta(min_length=1, max_length=64)] = msgspec.field(name="pass", default="final")
    after: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    drivers: dict[Word, Word] = {}
    settings: dict[Word, dict[str, Any]] = {}


def load_recipe(configuration: Configuration, name: str) -> Recipe:
    """The recipe file `name` below the recipes folder, checked. Raises RecipeError; its `others` has further
    problems.
    """
    return _load(configuration, name, frozenset())


def _load(configuration: Configuration, name: str, later: frozenset[str]) -> Recipe:
    """`later`: the passes that come after it, for whose sake it is looked at."""
    path = configuration.folder / "recipes" / name
    source = read(path, RecipeError, configuration.shown(path))
    problems = Problems(RecipeError)
    file = convert(source, RecipeFile, problems)
    problems.raise_first()
    if file is None:
        raise RecipeError("could not be read", file=source.file)
    steps = _steps(source, file, problems)
    earlier = _earlier(source, file, configuration, problems, later | {file.pass_})
    problems.raise_first()
    drivers = _drivers(source, file, configuration, problems)
    problems.raise_first()
    recipe_checks.check_needs(source, steps, dict(drivers), problems)
    recipe_checks.check_facts(source, steps, earlier, problems)
    recipe_checks.check_known(source, steps, earlier, problems)
    recipe_checks.check_copies(source, steps, len(configuration.file.escrow.media), problems)
    recipe_checks.check_subject(source, steps, problems)
    recipe_checks.check_trust(source, steps, earlier, dict(drivers), problems)
    problems.raise_first()
    settings = _settings(source, file, drivers, problems, bench=configuration.bench)
    problems.raise_first()
    protections = {
        role: kept for role, driver in drivers if (kept := driver.protects(settings[role])) is not None
    }
    recipe_checks.check_protection(source, steps, protections, configuration, problems)
    problems.raise_first()
    return Recipe(
        name=name,
        sku=file.sku,
        recipe_pass=file.pass_,
        digest=_digest(path),
        drivers=tuple(
            DriverPlan(role, driver.name, as_toml_values(settings[role])) for role, driver in drivers
        ),
        steps=tuple(item for _index, item in steps),
        protections=protections,
        credentials=_credentials(settings.values()),
        warnings=tuple(_warnings(source, steps)),
        after=file.after,
        earlier=earlier,
    )


def _earlier(
    source: TomlSource,
    file: RecipeFile,
    configuration: Configuration,
    problems: Problems,
    later: frozenset[str],
) -> tuple[Recipe, ...]:
    """The recipes of the passes before this one, the latest first; each names the one before it by its `after`."""
    if file.after is None:
        return ()
    named = _named(configuration, file.sku, file.after)
    if file.after in later or len(named) != 1:
        said = "comes after this one" if file.after in later else f"is in {', '.join(named) or 'no recipe'}"
        problems.add(
            source,
            ("after",),
            f"pass {file.after!r} of {file.sku} {said}; expected an earlier pass, which exactly one recipe has",
        )
        return ()
    before = _load(configuration, named[0], later | {file.after})
    return (before, *before.earlier)


def _named(configuration: Configuration, sku: str, wanted: str) -> list[str]:
    """Names of the recipe files for that SKU and pass."""
    found = []
    for path in sorted((configuration.folder / "recipes").glob("*.toml")):
        data = read(path, RecipeError, configuration.shown(path)).data
        if data.get("sku") == sku and data.get("pass", "final") == wanted:
            found.append(path.name)
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _steps(source: TomlSource, file: RecipeFile, problems: Problems) -> list[tuple[int, PlannedStep]]:
    if not file.step or len(file.step) > MAX_STEPS:
        problems.add(source, ("step",), f"{len(file.step)} steps; expected 1 to {MAX_STEPS}")
    attestation = next((item.get("attestation") for item in file.step if item.get("use") == "enroll"), "tpm")
    planned: list[tuple[int, PlannedStep]] = []
    for index, table in enumerate(file.step):
        key: Key = ("step", index)
        use = table.get("use")
        step = STEPS.get(use) if isinstance(use, str) else None
        if step is None:
            problems.add(
                source, (*key, "use"), f"no step {use!r}; expected one of: {', '.join(sorted(STEPS))}"
            )
            continue
        given = {name: value for name, value in table.items() if name != "use"}
        if use == "tpm-ownership":
            if "attestation" in given:
                problems.add(
                    source, (*key, "attestation"), "belongs to the enroll step; expected it only there"
                )
                continue
            given["attestation"] = attestation if isinstance(attestation, str) else "tpm"
        options = convert(source, step.options, problems, key, given)
        if options is not None:
            planned.append((index, PlannedStep(step, options)))
    return planned


def _drivers(
    source: TomlSource, file: RecipeFile, configuration: Configuration, problems: Problems
) -> list[tuple[str, Driver]]:
    """(role, driver) in the order in which they open, each after what it needs."""
    named: dict[str, Driver] = {}
    registry = configuration.registry
    for role, name in file.drivers.items():
        driver = _driver(source, registry, ("drivers", role), name, problems)
        if driver is not None:
            named[role] = driver
    for role in file.settings:
        if role not in file.drivers and role != CHANNEL_ROLE:
            problems.add(source, ("settings", role), "no driver has this role; expected a role of [drivers]")
    if problems.found:
        return []
    wanted = {need for driver in named.values() for need in driver.needs}
    offered = {offer for driver in named.values() for offer in driver.offers}
    if Channel in wanted - offered:
        driver = _driver(source, registry, ("drivers",), CHANNEL_DRIVER, problems)
        if driver is not None:
            named = {CHANNEL_ROLE: driver, **named}
    for role, driver in named.items():
        if driver.bench_only and not configuration.bench:
            problems.add(source, ("drivers", role), f"driver {driver.name!r} is for bench mode only")
    try:
        return in_order(named, frozenset({Sighting, Credentials}))
    except RecipeError as error:
        problems.add(source, ("drivers",), error.problem)
        return []


def _driver(source: TomlSource, registry: Registry, key: Key, name: str, problems: Problems) -> Driver | None:
    try:
        return registry.get(name)
    except ConfigError as error:
        problems.add(
            source, key, f"{error.problem}; expected a driver that station.drivers in station.toml lists"
        )
        return None


def _settings(
    source: TomlSource,
    file: RecipeFile,
    drivers: list[tuple[str, Driver]],
    problems: Problems,
    *,
    bench: bool,
) -> dict[str, Any]:
    """Each role's settings, as its driver's dataclass."""
    found: dict[str, Any] = {}
    for role, driver in drivers:
        settings = convert(source, driver.settings, problems, ("settings", role), file.settings.get(role, {}))
        if settings is not None and getattr(settings, "bench_only", False) and not bench:
            problems.add(
                source, ("settings", role), f"this setting of driver {driver.name!r} is for bench mode only"
            )
        found[role] = settings
    return found


def _credentials(settings: Iterable[object]) -> tuple[str, ...]:
    return tuple(sorted({name for one in settings for name in getattr(one, "credentials", ())}))


def _warnings(source: TomlSource, steps: list[tuple[int, PlannedStep]]) -> Iterator[RecipeWarning]:
    for index, item in steps:
        for option, message in item.step.warnings(item.options):
            at = source.error(("step", index, option), message, RecipeError)
            yield RecipeWarning(at.file or source.file, at.line, at.key or option, message)
