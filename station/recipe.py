"""A recipe file and its checker: every mistake that can be seen without a board is found here, with file and line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from hal.driver import Driver, in_order
from hal.errors import ConfigError, HallmarkError, RecipeError
from hal.interfaces import Channel, Credentials, EndorsementIdentity, KeyAttestation
from hal.registry import Registry
from hal.types import KeyProtection, Sighting
from station.action import Action, Step
from station.config import Configuration, Word, as_toml_values
from station.messages import DriverPlan, StepPlan
from station.protection import recipe_problem
from station.steps import STEPS
from station.strict import Problems, convert
from station.toml_source import Key, TomlSource, read
from station.trust.policy import EkPolicy

CHANNEL_ROLE: Final = "channel"
CHANNEL_DRIVER: Final = "serial"
MAX_STEPS: Final = 64
OF_EACH_PASS: Final = frozenset(
    {"unit", "registration_id", "ek_public", "ek_name", "ak_public", "identity_spki"}
)
"""Facts that each visit has to see for itself: which unit this is."""


class RecipeFile(Struct, frozen=True):
    """What stands in a recipe, but for the options of its steps, which each step checks itself."""

    sku: Word
    step: list[dict[str, Any]]
    pass_: Annotated[str, Meta(min_length=1, max_length=64)] = msgspec.field(name="pass", default="final")
    after: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    drivers: dict[Word, Word] = {}
    settings: dict[Word, dict[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class RecipeWarning:
    """Something that a recipe may do, and somebody will be sorry for. `line` from 1, None where the key isn't there."""

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        return f"{where}: {self.key}: warning: {self.message}"


@dataclass(frozen=True, slots=True)
class PlannedStep:
    step: Step
    options: Any

    @property
    def actions(self) -> tuple[Action, ...]:
        return self.step.actions(self.options)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe that holds together: ready to be sent to a worker."""

    name: str
    sku: str
    recipe_pass: str
    digest: str
    """SHA-256 of the file, hex: recorded with each visit."""
    drivers: tuple[DriverPlan, ...]
    steps: tuple[PlannedStep, ...]
    protections: Mapping[str, KeyProtection] = field(default_factory=dict)
    """What each role's driver declares of the keys that it keeps, where it keeps any."""
    credentials: tuple[str, ...] = ()
    """Names of what drivers' settings want handed to them with each visit."""
    warnings: tuple[RecipeWarning, ...] = ()
    after: str | None = None
    """The pass that a unit has to have passed before this one."""
    earlier: tuple[Recipe, ...] = ()
    """The recipes of the passes before this one, the latest first."""

    @property
    def inherits(self) -> tuple[str, ...]:
        """Steps of the earlier passes: what they gave is on the unit's record."""
        return tuple(sorted({item.step.use for recipe in self.earlier for item in recipe.steps}))

    def step_plans(self) -> list[StepPlan]:
        return [StepPlan(item.step.use, msgspec.to_builtins(item.options)) for item in self.steps]

    def images(self) -> list[str]:
        return [item.options.image for item in self.steps if item.step.use == "flash"]

    def issues(self) -> bool:
        """Whether a certificate or a key is made here, so that the token has to be ready."""
        options = self.certificate()
        issued = options is not None and (options.source == "issue" or options.key_from != "device")
        return issued or any(item.step.use == "symmetric-key" for item in self.steps)

    def symmetric_key(self) -> Any:
        """The options of its symmetric-key step, None without one."""
        return next((item.options for item in self.steps if item.step.use == "symmetric-key"), None)

    def escrow_copies(self) -> int:
        """How many durable copies of an escrow record there have to be before an auth is set."""
        return max((getattr(item.options, "escrow_copies", 1) for item in self.steps), default=1)

    def certificate(self) -> Any:
        """The certificate step's options, None where the recipe has no such step."""
        return next((item.options for item in self.steps if item.step.use == "certificate"), None)

    def lot(self) -> str:
        """The lot of the pool that it draws from, empty where it draws from none."""
        options = self.certificate()
        return str(options.lot) if options is not None and options.source == "pool" else ""

    def ek_policy(self) -> EkPolicy | None:
        """What has to vouch for an EK; None where the recipe doesn't identify by one."""
        return next(
            (
                item.options.policy
                for item in self.steps
                if item.step.use == "tpm-identity" and not item.options.known
            ),
            None,
        )

    def knows_ek(self) -> bool:
        """Whether an earlier pass has judged the EK, and this one only has it proven."""
        return any(item.step.use == "tpm-identity" and item.options.known for item in self.steps)

    def attested_profiles(self) -> list[str]:
        """Profiles of certificates for keys that their place can show to be in it."""
        return [
            item.options.profile
            for item in self.steps
            if item.step.use == "certificate"
            and any(interface is KeyAttestation for interface, _ in item.step.needs(item.options))
        ]

    def profiles(self) -> list[str]:
        options = self.certificate()
        return [options.profile] if options is not None and options.profile else []


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
    _check_needs(source, steps, dict(drivers), problems)
    _check_facts(source, steps, earlier, problems)
    _check_known(source, steps, earlier, problems)
    _check_copies(source, steps, len(configuration.file.escrow.media), problems)
    _check_subject(source, steps, problems)
    _check_trust(source, steps, earlier, dict(drivers), problems)
    problems.raise_first()
    settings = _settings(source, file, drivers, problems, bench=configuration.bench)
    problems.raise_first()
    protections = {
        role: kept for role, driver in drivers if (kept := driver.protects(settings[role])) is not None
    }
    _check_protection(source, steps, protections, configuration, problems)
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


def _check_needs(
    source: TomlSource,
    steps: list[tuple[int, PlannedStep]],
    drivers: Mapping[str, Driver],
    problems: Problems,
) -> None:
    for index, item in steps:
        for interface, role in item.step.needs(item.options):
            able = [name for name, driver in drivers.items() if interface in driver.offers]
            found = ", ".join(able) or "none"
            if role is not None and role not in able:
                problems.add(
                    source,
                    ("step", index),
                    f"{item.step.use} needs {interface.__name__} by role {role!r}; offered by: {found}",
                )
            elif role is None and len(able) != 1:
                problems.add(
                    source,
                    ("step", index),
                    f"{item.step.use} needs one driver with {interface.__name__}; offered by: {found}",
                )


def _check_copies(
    source: TomlSource, steps: list[tuple[int, PlannedStep]], media: int, problems: Problems
) -> None:
    """As many places for the escrow record as the recipe wants copies: else its boards would wait for ever."""
    for index, item in steps:
        wanted = getattr(item.options, "escrow_copies", 1)
        if wanted > 1 + media:
            message = (
                f"{wanted} copies, but station.toml names {media} escrow media; expected {wanted - 1} or more"
            )
            problems.add(source, ("step", index, "escrow_copies"), message)


def _warnings(source: TomlSource, steps: list[tuple[int, PlannedStep]]) -> Iterator[RecipeWarning]:
    for index, item in steps:
        for option, message in item.step.warnings(item.options):
            at = source.error(("step", index, option), message, RecipeError)
            yield RecipeWarning(at.file or source.file, at.line, at.key or option, message)


def _check_known(
    source: TomlSource, steps: list[tuple[int, PlannedStep]], earlier: Sequence[Recipe], problems: Problems
) -> None:
    """An EK is known from a pass that has judged it."""
    judged = any(recipe.ek_policy() is not None for recipe in earlier)
    for index, item in steps:
        if item.step.use == "tpm-identity" and item.options.known and not judged:
            problems.add(
                source,
                ("step", index, "known"),
                "no earlier pass has judged the EK; expected `after` to name a pass with tpm-identity",
            )


def _check_facts(
    source: TomlSource, steps: list[tuple[int, PlannedStep]], earlier: Sequence[Recipe], problems: Problems
) -> None:
    """Each step's facts come from an earlier one, of this pass or of one before it; nothing lasting happens before the
    unit is known; enroll is last.
    """
    inherited = {
        name for recipe in earlier for item in recipe.steps for name in item.step.gives(item.options)
    }
    given: set[str] = inherited - OF_EACH_PASS
    for position, (index, item) in enumerate(steps):
        missing = item.step.requires(item.options) - given
        if missing:
            problems.add(
                source,
                ("step", index),
                f"{item.step.use} needs {', '.join(sorted(missing))} from an earlier step"
                + ("" if earlier else ", or from an earlier pass that `after` names"),
            )
        given |= item.step.gives(item.options)
        if item.step.use == "enroll" and position != len(steps) - 1:
            problems.add(source, ("step", index), "enroll has to be the last step: the unit passes with it")
        if any(item.step.use == other.step.use for _i, other in steps[:position]):
            problems.add(source, ("step", index), f"{item.step.use} stands twice; expected each step once")
    if steps and "unit" not in given:
        problems.add(
            source, ("step",), "no step says which unit this is; expected tpm-identity or key-identity"
        )


def _check_trust(
    source: TomlSource,
    steps: list[tuple[int, PlannedStep]],
    earlier: Sequence[Recipe],
    drivers: Mapping[str, Driver],
    problems: Problems,
) -> None:
    """Where a TPM may get through that nothing vouches for, each step that gives it something has to say so."""
    identity = next((item for _i, item in steps if item.step.use == "tpm-identity"), None)
    if identity is None:
        return
    policy = identity.options.policy
    if identity.options.known:
        policy = next((found for recipe in earlier if (found := recipe.ek_policy()) is not None), policy)
    if not policy.may_end_untrusted:
        return
    for index, item in steps:
        use = item.step.use
        in_tpm = use == "certificate" and _is_tpm(drivers, item.options.place)
        if (use == "tpm-ownership" or in_tpm) and item.options.untrusted_ek != "accept":
            problems.add(
                source,
                ("step", index, "untrusted_ek"),
                f'{use}: nothing has to vouch for the TPM\'s EK in this recipe (tpm-identity, ek_trust = "none" or'
                ' ek_certificate = "if-present"); expected untrusted_ek = "accept" here, as explicit consent, or'
                ' ek_trust = "certificate", "certificate-or-list" or "list" there',
            )


def _is_tpm(drivers: Mapping[str, Driver], role: str) -> bool:
    return role in drivers and EndorsementIdentity in drivers[role].offers


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


def _check_subject(source: TomlSource, steps: list[tuple[int, PlannedStep]], problems: Problems) -> None:
    """An X.509 enrollment's registration ID is its certificate's common name (DPS takes no other)."""
    options = next((item.options for _, item in steps if item.step.use == "certificate"), None)
    for index, item in steps:
        by_name = item.step.use == "enroll" and item.options.attestation.startswith("x509")
        if by_name and options is not None and options.subject == "any":
            problems.add(
                source,
                ("step", index, "attestation"),
                "enrolls the certificate by its common name; expected no certificate with subject 'any'",
            )


def _credentials(settings: Iterable[object]) -> tuple[str, ...]:
    return tuple(sorted({name for one in settings for name in getattr(one, "credentials", ())}))


def _check_protection(
    source: TomlSource,
    steps: list[tuple[int, PlannedStep]],
    protections: Mapping[str, KeyProtection],
    configuration: Configuration,
    problems: Problems,
) -> None:
    """A long-lived leaf's key isn't kept where software can copy it, unless the recipe says why it may be."""
    for index, item in steps:
        if item.step.use != "certificate":
            continue
        if item.options.source != "issue":
            continue  # how long such a certificate lives, it says itself when it comes
        problem = recipe_problem(
            configuration.path(configuration.file.signer.profiles),
            item.options.profile,
            protections.get(item.options.place, KeyProtection.PLAIN),
            configuration.file.policy.long_lived_days,
            item.options.override,
        )
        if problem is not None:
            problems.add(source, ("step", index, "place"), problem)


def rebuild_steps(plans: list[StepPlan]) -> tuple[PlannedStep, ...]:
    """The worker's side: steps and options again from a Visit message."""
    try:
        return tuple(
            PlannedStep(STEPS[plan.use], msgspec.convert(plan.options, STEPS[plan.use].options))
            for plan in plans
        )
    except (KeyError, msgspec.ValidationError) as error:
        raise HallmarkError(f"the station sent a step that this worker does not know: {error}") from error
