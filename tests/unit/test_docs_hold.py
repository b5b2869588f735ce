"""What the documentation points at is there: tests that hold a promise, files, pages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(?:#[^)\s]*)?\)")


def broken(page: Path, text: str) -> list[str]:
    found = []
    for file, name in TEST.findall(text):
        path = ROOT / file
        if not path.is_file():
            found.append(f"{file} is not there")
        elif name and name not in functions(path):
            found.append(f"{file} has no {name}")
    found += [f"{link} leads nowhere" for link in LINK.findall(text) if not (page.parent / link).exists()]
    return found


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_what_a_page_points_at_is_there(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_a_reference_that_leads_nowhere_is_found() -> None:
    text = (
        "`tests/unit/test_docs_hold.py::test_what_a_page_points_at_is_there` `tests/unit/test_nothing.py` "
        "`tests/unit/test_docs_hold.py::test_nothing` [a](nothing.md) [b](https://example.com) [c](#d)"
    )
    assert broken(ROOT / "docs/x.md", text) == [
        "tests/unit/test_nothing.py is not there",
        "tests/unit/test_docs_hold.py has no test_nothing",
        "nothing.md leads nowhere",
    ]


def test_every_promise_of_the_threat_model_names_what_holds_it() -> None:
    page = (ROOT / "docs/threat-model.md").read_text()
    promises = page.partition("## Promises")[2].partition("## Not promised")[0]
    rows = [
        line for line in promises.splitlines() if line.startswith("| ") and not line.startswith("| promise")
    ]
    assert len(rows) > 20
    assert [row for row in rows if not TEST.search(row) and "`./dev " not in row] == []
