"""What a recipe's steps and drivers have to keep together: each mistake is noted with file and line, none is raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from hal.driver import Driver
from hal.interfaces import EndorsementIdentity
from hal.types import KeyProtection
from station.config import Configuration
from station.protection import recipe_problem
from station.recipe import PlannedStep, Recipe
from station.strict import Problems
from station.toml_source import TomlSource

OF_EACH_PASS: Final = frozenset(
    {"unit", "registration_id", "ek_public", "ek_name", "ak_public", "identity_spki"}
)
"""Facts that each visit has to see for itself: which unit this is."""


def check_needs(
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


def check_facts(
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


def check_known(
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


def check_copies(
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


def check_subject(source: TomlSource, steps: list[tuple[int, PlannedStep]], problems: Problems) -> None:
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


def check_trust(
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


def check_protection(
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
