"""A nest that can't serve: its recipe is broken. It says so, and the others go on."""

from __future__ import annotations

from collections import Counter

from hal.errors import RecipeError
from hal.types import Sighting
from station.status.view import NestState, NestView

HINT = "An engineer corrects the recipe, runs `hallmark recipe check`, and restarts the station."


class OutOfService:
    """Stands where a `Nest` would. Boards in it are seen, and nothing is done to them."""

    def __init__(self, name: str, place: str, error: RecipeError) -> None:
        self.name, self._place, self._error = name, place, error
        self.outcomes: Counter[str] = Counter()
        self._plugged = False

    def start(self) -> None:
        """Nothing runs here."""

    def stop(self) -> None:
        """Nothing runs here."""

    def sighted(self, sighting: Sighting) -> None:
        del sighting
        self._plugged = True

    def departed(self) -> None:
        self._plugged = False

    def hold(self, held: bool) -> None:
        del held

    def retry(self) -> None:
        raise LookupError(f"this nest is out of service: {self._error}")

    def view(self) -> NestView:
        return NestView(
            name=self.name,
            place=self._place,
            state=NestState.OUT_OF_SERVICE,
            plugged=self._plugged,
            problem=self._error.code,
            message=str(self._error),
            hint=HINT,
        )
