"""docs/practices.md says for each row of the practices document which tests show it: all of them, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROWS: Final = 22
HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/practices.md"
TEST: Final = re.compile(r"^def (test_row_(\d\d)_\w+)", re.MULTILINE)
TABLE_ROW: Final = re.compile(r"^\| (\d+) \|.*\|$", re.MULTILINE)
NAMED: Final = re.compile(r"`(test_practices_\w+\.py)::(test_row_(\d\d)_\w+)`")


def row_tests() -> set[tuple[str, str]]:
    """(file, test) of each test that is named after a row."""
    files = HERE.glob("test_practices_*.py")
    return {(file.name, name) for file in files for name, _ in TEST.findall(file.read_text())}


def test_the_table_has_each_row_once_with_tests_that_bear_its_number() -> None:
    rows = list(TABLE_ROW.finditer(PAGE.read_text()))
    assert [int(row[1]) for row in rows] == list(range(1, ROWS + 1))
    for row in rows:
        numbers = {int(number) for _, _, number in NAMED.findall(row[0])}
        assert numbers == {int(row[1])}, row[0]


def test_the_table_names_every_test_of_a_row_and_nothing_else() -> None:
    assert {(file, name) for file, name, _ in NAMED.findall(PAGE.read_text())} == row_tests()
