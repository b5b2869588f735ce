"""Rows of the practices document that the whole trip shows; the others stand in the rooms' files beside this one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROWS: Final = 22
NAME: Final = re.compile(r"^def (test_row_(\d\d)_\w+)", re.MULTILINE)


def test_each_row_test_names_a_row_that_exists() -> None:
    files = sorted(Path(__file__).parent.glob("test_practices_*.py"))
    rows = [int(number) for file in files for _, number in NAME.findall(file.read_text())]
    assert all(1 <= row <= ROWS for row in rows)
