"""Values are tomllib's; the line of each key is where an independent parser (spanned-toml) sees it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import spanned_toml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hal.errors import ConfigError, RecipeError
from station.toml_source import SIZE_LIMIT, Key, dotted, parse, read

# --- documents: every form of key, value, header, comment and line end that TOML 1.0 has ---

NAMES = st.sampled_from(["a", "b-1", "'l.t'", '"q k"', '"\\u0041#"', '""', '"]"', "3"])
BLANKS = st.sampled_from(["", " ", "\t", "  "])
GAPS = st.sampled_from(["", " ", "\n", "\n\n", " # ],}\n", '\t#"""\n ', "\r\n"])
SCALARS = st.sampled_from(
    [
        "1", "0x1F", "1_000", "+1.5e-3", "inf", "-nan", "true", "false",
        "1979-05-27", "1979-05-27 07:32:00", "1979-05-27T00:32:00.5-07:00", "07:32:00",
        '"x"', '""', "''", '"a\\"b#,]}"', "'c\\'", '"\\\\"', '"[1]"', "'''x'''", '""""""', "''''''",
        '"""two\nlines"""', '"""\nquotes ""\\""" """', "'''\r\nraw \\ # ]\n'''", '"""\\\n   folded"""',
        '"""ends with one""""', '"""ends with two"""""', "'''ends with two'''''", '"""a\\\\"""',
    ]
)  # fmt: skip


def arrays(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def join(parts: list[tuple[str, str, str]], trailing: bool, empty: str) -> str:
        if not parts:
            return f"[{empty}]"
        body = ",".join(f"{before}{item}{after}" for before, item, after in parts)
        return f"[{body}{',' if trailing else ''}{empty}]"

    return st.builds(join, st.lists(st.tuples(GAPS, items, GAPS), max_size=4), st.booleans(), GAPS)


def inline_tables(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def join(parts: list[tuple[str, str, str]]) -> str:
        # A number of its own makes each key new; what doubles otherwise is tomllib's to refuse.
        pairs = (f"{name}.k{number}{blank}={blank}{item}" for number, (name, item, blank) in enumerate(parts))
        return "{" + ",".join(pairs) + "}"

    return st.builds(join, st.lists(st.tuples(NAMES, items, BLANKS), max_size=3))


VALUES = st.recursive(SCALARS, lambda inner: st.one_of(arrays(inner), inline_tables(inner)), max_leaves=8)
ENDS = st.sampled_from(["\n", "\r\n", " # a = 1\n", "\n\n", "\n# [x]\n"])


@st.composite
def documents(draw: st.DrawFn) -> str:
    lines = []
    for number in range(draw(st.integers(0, 8))):
        blank = draw(BLANKS)
        prefix = "".join(f"{draw(NAMES)}{blank}.{blank}" for _ in range(draw(st.integers(0, 2))))
        form = draw(st.sampled_from(["pair", "pair", "pair", "table", "array", "array"]))
        if form == "pair":
            line = f"{blank}{prefix}p{number}{blank}={blank}{draw(VALUES)}"
        elif form == "table":
            line = f"{blank}[{blank}{prefix}t{number}{blank}]"
        else:
            line = f"{blank}[[{blank}{prefix}{draw(st.sampled_from(['x', 'y']))}{blank}]]"
        lines.append(line + blank + draw(ENDS))
    return "".join(lines)


def other_lines(text: str) -> dict[Key, int]:
    """Key path to line as spanned-toml has it, wherever it has a position at all."""
    text = text.replace("\r\n", "\n")
    found: dict[Key, int] = {}

    def visit(node: Any, path: Key) -> None:
        inner = getattr(node, "_Spanned__inner", node)
        if isinstance(inner, dict):
            for key, value in inner.items():
                here = (*path, key._Spanned__inner)
                found[here] = text.count("\n", 0, key._Spanned__start) + 1
                visit(value, here)
        elif isinstance(inner, list):
            for index, item in enumerate(inner):
                start, end = item._Spanned__start, item._Spanned__end
                if end > start:
                    found[(*path, index)] = text.count("\n", 0, start) + 1
                visit(item, (*path, index))

    visit(spanned_toml.loads(text), ())
    return found


@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(documents())
def test_values_are_those_of_tomllib_and_lines_those_of_another_parser(text: str) -> None:
    try:
        expected = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(tomllib.TOMLDecodeError):
            parse(text)
        return
    source = parse(text)
    assert repr(source.data) == repr(expected)  # repr: nan is not equal to itself
    theirs = other_lines(text)
    assert {key: source.lines.get(key) for key in theirs} == theirs
    # What only we know are the elements of arrays of tables, which spanned-toml gives no position.
    assert all(isinstance(key[-1], int) for key in source.lines.keys() - theirs.keys())


@given(st.text(alphabet="ab01.=[]{}\"'#\\,\n\r \t_-:TZ", max_size=60))
def test_any_text_is_read_or_refused_as_toml(text: str) -> None:
    try:
        expected = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(tomllib.TOMLDecodeError):
            parse(text)
    else:
        source = parse(text)
        assert repr(source.data) == repr(expected)
        theirs = other_lines(text)
        assert {key: source.lines.get(key) for key in theirs} == theirs


ARRAYS_OF_TABLES = """\
[[nest]]
name = "A"
[[nest.pin]]
n = 1
[[nest.pin]]
n = 2
[nest.pin.more]
x = [
  1,
  { y = 2 },
]
[[nest]]
name = "B"
[[nest.pin]]
n = 3
"""


def test_elements_of_arrays_of_tables_have_their_headers_line() -> None:
    source = parse(ARRAYS_OF_TABLES)
    assert [source.line(("nest", index)) for index in (0, 1)] == [1, 12]
    assert [source.line(("nest", 0, "pin", index)) for index in (0, 1)] == [3, 5]
    assert source.line(("nest", 1, "pin", 0, "n")) == 15
    assert source.line(("nest", 0, "pin", 1, "more", "x", 1, "y")) == 10


def test_a_key_that_is_missing_has_the_line_of_the_table_around_it() -> None:
    source = parse(ARRAYS_OF_TABLES)
    assert source.line(("nest", 1, "place")) == 12
    assert source.line(("station", "name")) is None
    assert source.line(()) is None


def test_an_error_names_file_line_and_key() -> None:
    error = parse(ARRAYS_OF_TABLES, "station.toml").error(("nest", 1, "name"), "is taken", RecipeError)
    assert isinstance(error, RecipeError)
    assert str(error) == "station.toml:13: nest[1].name: is taken"
    assert (error.file, error.line, error.key, error.problem) == (
        "station.toml",
        13,
        "nest[1].name",
        "is taken",
    )


def test_keys_are_written_as_people_write_them() -> None:
    assert dotted(("nest", 2, "place")) == "nest[2].place"
    assert dotted(()) == ""


@pytest.mark.parametrize(
    ("raw", "line", "said"),
    [
        (b"a = 1\nb = = 2\n", 2, "is not TOML"),
        (b"a = 1\na = 2\n", 2, "is not TOML"),
        (b"a = 1\nb = [1,\n", 3, "is not TOML"),
        (b'a = 1\n\nb = "\xff"\n', 3, "is not UTF-8"),
        (b"a = 1" + b"0" * 5000, None, "can be read"),  # Python's limit on the digits of a number
        (b"a = " + b"[" * 5000 + b"]" * 5000, None, "can be read"),
        (b"# " * (SIZE_LIMIT // 2) + b"\n", None, "larger than"),
    ],
)
def test_a_file_that_is_no_toml_is_refused_with_its_line(
    tmp_path: Path, raw: bytes, line: int | None, said: str
) -> None:
    path = tmp_path / "station.toml"
    path.write_bytes(raw)
    with pytest.raises(RecipeError) as caught:
        read(path, RecipeError)
    assert (caught.value.file, caught.value.line) == (str(path), line)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.toml", tmp_path):
        with pytest.raises(ConfigError, match="can't be read") as caught:
            read(path, name="station.toml")
        assert caught.value.file == "station.toml"
