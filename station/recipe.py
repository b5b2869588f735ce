"""A recipe that was checked: its steps, its drivers, what they ask of the station. recipe_file.py reads its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hal.errors import HallmarkError
from hal.interfaces import KeyAttestation
from hal.types import KeyProtection
from station.action import Action, Step
from station.messages import DriverPlan, StepPlan
from station.steps import STEPS
from station.trust.policy import EkPolicy


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


def rebuild_steps(plans: list[StepPlan]) -> tuple[PlannedStep, ...]:
    """The worker's side: steps and options again from a Visit message."""
    try:
        return tuple(
            PlannedStep(STEPS[plan.use], msgspec.convert(plan.options, STEPS[plan.use].options))
            for plan in plans
        )
    except (KeyError, msgspec.ValidationError) as error:
        raise HallmarkError(f"the station sent a step that this worker does not know: {error}") from error
