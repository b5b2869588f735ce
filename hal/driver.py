"""What a driver package exports: its name, its settings, what it offers and needs, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from hal.errors import RecipeError
from hal.interfaces import KeyPlace
from hal.types import KeyProtection

T = TypeVar("T")


class Bindings:
    """What has been opened, by interface and by the role that the recipe gives each driver (`link`, `tpm`, ...)."""

    def __init__(self) -> None:
        self._found: dict[type, dict[str, object]] = {}

    def add(self, role: str, interface: type, implementation: object) -> None:
        self._found.setdefault(interface, {})[role] = implementation

    def has(self, interface: type, role: str | None = None) -> bool:
        by_role = self._found.get(interface, {})
        return bool(by_role) if role is None else role in by_role

    def get(self, interface: type[T], role: str | None = None) -> T:
        """The implementation; with several and no `role`, or with none, a RecipeError that says so."""
        by_role = self._found.get(interface, {})
        if role is not None and role in by_role:
            return cast("T", by_role[role])
        if role is None and len(by_role) == 1:
            return cast("T", next(iter(by_role.values())))
        wanted = interface.__name__ + (f" by {role!r}" if role else "")
        there = ", ".join(sorted(by_role)) or "no driver"
        message = f"one driver has to offer {wanted}, but {there} does"
        raise RecipeError(message)


@dataclass(frozen=True, slots=True)
class Driver:
    """The object that an entry point of group `hallmark.drivers` names.

    `settings` is a frozen dataclass: its fields' names, types and defaults are what station.toml and recipes may say.
    A settings class that names credentials says which by a property `credentials`: they come with the visit.
    `offers` and `needs` are interfaces of `hal.interfaces`; there without a driver are `hal.types.Sighting`, the
    board's place now, and `Credentials`, which has those that the recipe's settings name.
    `open` takes the settings and what the driver needs, and gives a context manager over {interface: implementation}.
    Leaving it closes the device. Opening raises errors of `hal.errors`.
    """

    name: str
    summary: str
    settings: type[Any]
    open: Callable[[Any, Bindings], AbstractContextManager[Mapping[type, object]]]
    offers: frozenset[type]
    needs: frozenset[type] = field(default_factory=frozenset)
    bench_only: bool = False
    """Refused outside bench mode. A settings class may say the same of its values by a property of this name."""
    protection: KeyProtection | None = None
    """How its KeyPlace keeps keys, for the recipe checker, which has no device to ask. A settings class may say it of
    its values by a property of this name. A KeyPlace of which nothing is said counts as PLAIN."""

    def protects(self, settings: object) -> KeyProtection | None:
        """What its KeyPlace is with these settings; None when it offers none."""
        if KeyPlace not in self.offers:
            return None
        said = getattr(settings, "protection", None)
        return said if isinstance(said, KeyProtection) else self.protection or KeyProtection.PLAIN


@contextmanager
def opened(plan: Iterable[tuple[str, Driver, object]], known: Mapping[type, object]) -> Iterator[Bindings]:
    """Opens (role, driver, settings) in order, each with what came before it, and closes them in reverse.

    `known` is what is there without a driver: the Sighting.
    """
    from contextlib import ExitStack

    with ExitStack() as stack:
        bindings = Bindings()
        for interface, implementation in known.items():
            bindings.add("station", interface, implementation)
        for role, driver, settings in plan:
            offered = stack.enter_context(driver.open(settings, bindings))
            _keep_word(role, driver, settings, offered)
            for interface, implementation in offered.items():
                bindings.add(role, interface, implementation)
        yield bindings


def _keep_word(role: str, driver: Driver, settings: object, offered: Mapping[type, object]) -> None:
    """A recipe was judged by what the driver declares: what it opened must not be weaker."""
    declared, place = driver.protects(settings), offered.get(KeyPlace)
    if declared is None or not isinstance(place, KeyPlace) or place.protection.rank <= declared.rank:
        return
    message = (
        f"driver {driver.name!r} ({role}) declares a {declared.value} for keys, and opened a "
        f"{place.protection.value}, which is weaker"
    )
    raise RecipeError(message)


def in_order(drivers: Mapping[str, Driver], known: frozenset[type]) -> list[tuple[str, Driver]]:
    """(role, driver) pairs such that each comes after what it needs; RecipeError names what is missing."""
    waiting, ordered, offered = dict(drivers), [], set(known)
    while waiting:
        ready = [role for role, driver in waiting.items() if driver.needs <= offered]
        if not ready:
            role, driver = next(iter(waiting.items()))
            missing = ", ".join(sorted(need.__name__ for need in driver.needs - offered))
            message = (
                f"driver {driver.name!r} ({role}) needs {missing}, which no other driver of the recipe offers"
            )
            raise RecipeError(message)
        for role in ready:
            driver = waiting.pop(role)
            ordered.append((role, driver))
            offered |= driver.offers
    return ordered
