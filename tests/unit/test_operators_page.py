"""Each error that a person may see has its entry on the operators' page, and the page has no entry for others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hal.errors import HallmarkError, Outcome, by_code

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/operators.md").read_text()
ENTRIES = dict(re.findall(r"^### (\w+)\n((?:(?!#).*\n?)*)", PAGE, re.MULTILINE))
OURS = {code: cls for code, cls in by_code().items() if cls.__module__ == "hal.errors"}


def test_every_error_has_one_entry_and_every_entry_an_error() -> None:
    headings = re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)
    assert sorted(headings) == sorted(OURS)


@pytest.mark.parametrize("code", OURS)
def test_an_entry_says_what_happened_and_what_to_do(code: str) -> None:
    sentences = [text for text in re.split(r"(?<=[.:;])\s+", ENTRIES[code].strip()) if text]
    assert len(sentences) >= 2


@pytest.mark.parametrize("code", OURS)
def test_an_entry_says_tried_again_exactly_where_the_runner_or_uploader_does(code: str) -> None:
    assert ("Tried again" in ENTRIES[code]) == (OURS[code].retryable and code != "TokenAbsent")


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_explained(outcome: Outcome) -> None:
    assert f"\n| {outcome} |" in PAGE


@pytest.mark.parametrize("code", OURS)
def test_every_error_has_a_hint_and_stands_in_the_trees_drawing(code: str) -> None:
    import hal.errors

    assert OURS[code].default_hint.endswith(".")
    assert re.search(rf"(?:[├└]── |^    ){code}\b", hal.errors.__doc__ or "", re.MULTILINE)
    assert issubclass(OURS[code], HallmarkError)
