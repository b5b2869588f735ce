"""What is not meant must not be read: unknown and missing keys, other types, each with file, line and key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import ConfigError, RecipeError
from station.strict import Problems, convert, describe
from station.toml_source import TomlSource, parse

Short = Annotated[str, msgspec.Meta(max_length=3, description="at most 3 letters")]


@dataclass(frozen=True)
class Inner:
    x: int
    y: str = "y"


@dataclass(frozen=True)
class Outer:
    name: Short
    mode: Literal["a", "b"] = "a"
    rate: float = 1.0
    on: bool = False
    words: tuple[Short, ...] = ()
    one: Inner | None = None
    many: list[Inner] = field(default_factory=list)
    by_name: dict[Short, Inner] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)


class Record(msgspec.Struct, frozen=True):
    renamed: int = msgspec.field(name="in-file", default=0)

    def __post_init__(self) -> None:
        if self.renamed == 13:
            raise ValueError("expected another number than 13")


def problems_of(text: str, cls: type = Outer) -> list[tuple[int | None, str | None, str]]:
    found = Problems()
    made = convert(parse(text, "f.toml"), cls, found)
    assert (made is None) == bool(found.found)
    return [(error.line, error.key, error.problem) for error in found.found]


def test_what_fits_is_converted_to_the_last_table() -> None:
    text = """\
name = "abc"
mode = "b"
rate = 2
on = true
words = ["x", "yz"]
one = { x = 1 }
many = [{ x = 2 }, { x = 3, y = "z" }]
free = { anything = [1, "two"] }
by_name.k = { x = 4 }
"""
    found = Problems()
    assert convert(parse(text), Outer, found) == Outer(
        name="abc",
        mode="b",
        rate=2.0,
        on=True,
        words=("x", "yz"),
        one=Inner(1),
        many=[Inner(2), Inner(3, "z")],
        by_name={"k": Inner(4)},
        free={"anything": [1, "two"]},
    )
    assert found.found == []
    found.raise_first()


@pytest.mark.parametrize(
    ("text", "line", "key", "said"),
    [
        ("", None, None, "key 'name' is missing; expected at most 3 letters"),
        ('\nname = "abcd"', 2, "name", "expected at most 3 letters, found 'abcd'"),
        ('name = "a"\nnmae = 1', 2, "nmae", "unknown key; expected one of: by_name, free"),
        ('name = "a"\nmode = "c"', 2, "mode", "one of 'a', 'b'"),
        ('name = "a"\nrate = "1"', 2, "rate", "expected a number"),
        ('name = "a"\non = 1', 2, "on", "expected true or false"),
        ('name = "a"\nwords = "x"', 2, "words", "expected an array of at most 3 letters"),
        ('name = "a"\nwords = ["x",\n "long"]', 3, "words[1]", "at most 3 letters"),
        ('name = "a"\none = 1', 2, "one", "expected a table"),
        ('name = "a"\n[one]\nx = 1\nz = 2', 4, "one.z", "unknown key; expected one of: x, y"),
        ('name = "a"\n[one]\ny = "z"', 2, "one", "key 'x' is missing; expected a whole number"),
        ('name = "a"\nmany = { x = 1 }', 2, "many", "expected an array of tables"),
        ('name = "a"\n[[many]]\nx = 1\n[[many]]\nx = 1.0', 5, "many[1].x", "expected a whole number"),
        ('name = "a"\n[[many]]\nx = 1\n[[many]]\nx = 1\nw = 1', 6, "many[1].w", "unknown key"),
        ('name = "a"\n[by_name.k]\nx = true', 3, "by_name.k.x", "expected a whole number"),
        ('name = "a"\n[by_name.long]\nx = 1', 2, "by_name.long", "at most 3 letters"),
        ('name = "a"\nby_name = []', 2, "by_name", "expected a table"),
        ('name = "a"\nfree = 2020-01-01', 2, "free", "expected a table"),
    ],
)
def test_each_problem_says_where_it_is_and_what_was_expected(
    text: str, line: int | None, key: str | None, said: str
) -> None:
    (problem,) = problems_of(text)
    assert problem[:2] == (line, key)
    assert said in problem[2]


def test_all_problems_are_found_in_one_go_and_raised_together() -> None:
    found = Problems(RecipeError)
    assert convert(parse('mode = "c"\nrate = "x"\nwhat = 1', "r.toml"), Outer, found) is None
    with pytest.raises(RecipeError) as caught:
        found.raise_first()
    lines = [error.line for error in (caught.value, *caught.value.others)]
    assert sorted(lines, key=str) == [1, 2, 3, None]
    assert all(isinstance(error, RecipeError) for error in caught.value.others)


def test_a_struct_goes_by_its_names_in_the_file_and_may_refuse_what_does_not_fit_together() -> None:
    assert convert(parse("in-file = 7"), Record, Problems()) == Record(7)
    assert problems_of("renamed = 7", Record)[0][2] == "unknown key; expected one of: in-file"
    assert problems_of("in-file = 13", Record) == [(None, None, "expected another number than 13")]


def test_a_value_of_any_length_makes_a_bounded_message() -> None:
    ((_, _, problem),) = problems_of(f'name = "{"x" * 10_000}"')
    assert len(problem) < 300


TOML_LIKE = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates(), st.times()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from([*Outer.__dataclass_fields__, "x", "y"])


@given(st.dictionaries(NAMES, TOML_LIKE))
def test_any_table_is_converted_or_refused_with_a_problem(data: dict[str, Any]) -> None:
    found = Problems()
    made = convert(TomlSource("f.toml", data, {}), Outer, found)
    assert (made is None) == bool(found.found)
    if made is not None:
        assert set(data) <= set(Outer.__dataclass_fields__)
        assert isinstance(made.rate, float)
        assert made.one is None or isinstance(made.one.x, int)
        assert all(len(word) <= 3 for word in made.words)
    assert all(isinstance(error, ConfigError) for error in found.found)


def test_types_are_described_in_words() -> None:
    assert describe(list[Inner]) == "an array of tables"
    assert describe(int | str) == "a whole number or a string"
    assert describe(dict[str, int]) == "a table"
    assert describe(object) == "any value"
    assert describe(tuple) == "tuple"
