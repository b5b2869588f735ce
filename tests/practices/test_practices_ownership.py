"""Row 14: the EK is extracted, then ownership is taken; the two can happen at different times."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hal.interfaces import Ownership
from hal.types import Hierarchy
from station.escrow_drill import drill
from station.recipe import PlannedStep, Recipe
from station.steps import STEPS
from station.store import Store
from tests import store_parts as parts
from tests.fixtures_tpm import Recorder, lasting
from tests.ownership_parts import Line


def test_row_14_the_ek_is_extracted_in_one_visit_and_ownership_taken_in_another(
    tmp_path: Path, store: Store, line: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip = Line(tmp_path, store, line, auths=["owner", "lockout"])
    whole = trip.recipe()
    options = msgspec.convert({"ek_certificate": "none"}, STEPS["tpm-identity"].options)
    incoming = Recipe(
        "i.toml", parts.SKU, "incoming", "11" * 32, (), (PlannedStep(STEPS["tpm-identity"], options),)
    )
    monkeypatch.setattr(trip, "recipe", lambda: incoming)
    trip.visit()
    unit = trip.unit()
    with line.visit() as board:
        assert not board.get(Ownership).state(lasting()).auths_set, "extracting takes nothing"
    monkeypatch.setattr(trip, "recipe", lambda: whole)
    trip.visit()
    assert trip.unit() == unit, "the same unit, by its EK"
    with line.visit() as board:
        found = drill(board, trip.escrows(unit)[-1], lasting())
    assert {item.hierarchy for item in found if item.held} == {Hierarchy.OWNER, Hierarchy.LOCKOUT}
