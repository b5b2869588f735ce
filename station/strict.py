"""Turns TOML tables into typed values, strictly, and collects every problem with its file, line and key.

msgspec judges single values; this walks the tables, so that no unknown key, missing key or array index goes unnamed.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import typing
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from hal.errors import ConfigError, quote
from station.toml_source import Key, TomlSource

T = TypeVar("T")


class Problems:
    """Problems of one or several files, raised together: a person mends them all in one go."""

    def __init__(self, kind: type[ConfigError] = ConfigError) -> None:
        self.kind = kind
        self.found: list[ConfigError] = []

    def add(self, source: TomlSource, key: Key, message: str) -> None:
        self.found.append(source.error(key, message, self.kind))

    def raise_first(self) -> None:
        """Raises the first; the others' texts follow in its message's `others`."""
        if not self.found:
            return
        first = self.found[0]
        first.others = self.found[1:]
        raise first


def convert(
    source: TomlSource, cls: type[T], problems: Problems, key: Key = (), table: object = None
) -> T | None:
    """`table` (by default the whole file) as the Struct or dataclass `cls`; None when a problem was added."""
    value = source.data if table is None else table
    if not isinstance(value, dict):
        problems.add(source, key, f"expected a table, found {quote(value)}")
        return None
    kind: Any = cls
    fields = _fields(kind)
    count = len(problems.found)
    for name in value:
        if name not in fields:
            expected = ", ".join(sorted(fields)) or "none"
            problems.add(source, (*key, name), f"unknown key; expected one of: {expected}")
    made: dict[str, Any] = {}
    for name, (attribute, wanted, required) in fields.items():
        if name in value:
            made[attribute] = _convert_value(source, wanted, problems, (*key, name), value[name])
        elif required:
            problems.add(source, key, f"key {name!r} is missing; expected {describe(wanted)}")
    if len(problems.found) != count:
        return None
    try:
        return cls(**made)
    except ValueError as error:  # what the fields say together does not fit: __post_init__ says why
        problems.add(source, key, str(error))
        return None


def _convert_value(source: TomlSource, wanted: Any, problems: Problems, key: Key, value: object) -> Any:
    origin, arguments = get_origin(wanted), get_args(wanted)
    if _is_table(wanted):
        return convert(source, wanted, problems, key, value)
    options = [option for option in arguments if option is not NoneType]
    if origin in (typing.Union, UnionType) and len(options) == 1:  # TOML has no null: only absence means None
        return _convert_value(source, options[0], problems, key, value)
    if origin is list or (origin is tuple and arguments[1:] == (...,)):
        if not isinstance(value, list):
            problems.add(source, key, f"expected {describe(wanted)}, found {quote(value)}")
            return None
        return origin(
            _convert_value(source, arguments[0], problems, (*key, index), item)
            for index, item in enumerate(value)
        )
    if origin is dict and isinstance(value, dict):
        return {
            _convert_value(source, arguments[0], problems, (*key, name), name): _convert_value(
                source, arguments[1], problems, (*key, name), item
            )
            for name, item in value.items()
        }
    try:
        return msgspec.convert(value, wanted, strict=True)
    except msgspec.ValidationError as error:
        problem = str(error).split(" - at ", maxsplit=1)[0]
        problems.add(source, key, f"{problem}; expected {describe(wanted)}, found {quote(value)}")
        return None


def _is_table(wanted: Any) -> bool:
    return isinstance(wanted, type) and (
        dataclasses.is_dataclass(wanted) or issubclass(wanted, msgspec.Struct)
    )


@functools.cache  # half of what reading a small table costs
def _fields(cls: Any) -> dict[str, tuple[str, Any, bool]]:
    """Name in TOML to (attribute, type, required)."""
    hints = get_type_hints(cls, include_extras=True)
    if dataclasses.is_dataclass(cls):
        return {
            field.name: (
                field.name,
                hints[field.name],
                field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            )
            for field in dataclasses.fields(cls)
        }
    return {
        field.encode_name: (field.name, hints[field.name], field.required)
        for field in msgspec.structs.fields(cls)
    }


def describe(wanted: Any) -> str:
    """A type in words for a person who edits TOML."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is typing.Annotated:
        meta = next((item for item in arguments[1:] if isinstance(item, msgspec.Meta)), None)
        return (meta.description if meta and meta.description else None) or describe(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(value) for value in arguments)
    if origin in (list, tuple):
        if not arguments:
            return "an array"
        tables = _is_table(arguments[0]) or get_origin(arguments[0]) is dict
        return f"an array of {'tables' if tables else describe(arguments[0])}"
    if origin is dict:
        return "a table"
    if arguments:
        return " or ".join(describe(argument) for argument in arguments if argument is not type(None))
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in wanted)
    words = {
        str: "a string",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        object: "any value",
    }
    return words.get(wanted, "a table" if _is_table(wanted) else str(getattr(wanted, "__name__", wanted)))
