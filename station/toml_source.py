"""A TOML file together with the line of each of its keys, so that an error can name file, line and key.

`tomllib` reads the values and decides what is valid; this adds only positions, over text that it has accepted.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hal.errors import ConfigError, quote

SIZE_LIMIT: Final = 1 << 20
"""Octets of a configuration file: more is no configuration."""

Key = tuple[str | int, ...]
"""Where a value is: table keys and array indexes from the top."""

_SPACE: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANK: Final = re.compile(r"[ \t]*")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR: Final = re.compile(r"[^,\]}#\n]*")
_STRINGS: Final = (
    re.compile(r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})', re.DOTALL),
    re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)


@dataclass(frozen=True, slots=True)
class TomlSource:
    """`data` as tomllib gives it; `lines` from key path to 1-based line."""

    file: str
    data: dict[str, Any]
    lines: dict[Key, int]
    over: dict[Key, TomlSource] = field(default_factory=dict)
    """What another file put over this one: each key below one of these is that file's."""

    def overlaid(self, other: TomlSource) -> TomlSource:
        """This file with `other` over it: a table key by key, anything else, arrays too, as a whole."""
        data, over = dict(self.data), dict(self.over)
        for name, value in other.data.items():
            mine = data.get(name)
            if isinstance(value, dict) and isinstance(mine, dict):
                data[name] = mine | value
                over |= {(name, inner): other for inner in value}
            else:
                data[name] = value
                over[(name,)] = other
        return TomlSource(self.file, data, self.lines, over)

    def line(self, key: Key) -> int | None:
        """The line of `key`, or of the nearest table around it that has one."""
        while key:
            if key in self.lines:
                return self.lines[key]
            key = key[:-1]
        return None

    def error(self, key: Key, message: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
        """An error of `kind` that names the file that `key` stands in, the key's line and the key."""
        for begin, other in self.over.items():
            if key[: len(begin)] == begin:
                return other.error(key, message, kind)
        return kind(message, file=self.file, line=self.line(key), key=dotted(key) or None)


def dotted(key: Key) -> str:
    """`nest[2].place` for ("nest", 2, "place")."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read(path: Path, kind: type[ConfigError] = ConfigError, name: str | None = None) -> TomlSource:
    """The file at `path`; an error of `kind` when it is missing, too large, not UTF-8 or not TOML."""
    shown = name or str(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise kind(f"can't be read ({error.strerror}); expected a TOML file there", file=shown) from error
    if len(raw) > SIZE_LIMIT:
        raise kind(f"is larger than {SIZE_LIMIT} octets; expected a configuration file", file=shown)
    try:
        return parse(raw.decode("utf-8"), shown)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise kind("is not UTF-8 text", file=shown, line=line) from error
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at (?:line (\d+), column \d+|end of document)\)", str(error))
        line = int(found[1]) if found and found[1] else raw.count(b"\n") + 1
        problem = re.sub(r" \(at .*\)$", "", str(error))
        raise kind(f"is not TOML: {problem}", file=shown, line=line) from error
    except (ValueError, RecursionError) as error:
        # tomllib lets these through for numbers of thousands of digits, and for brackets nested as deep.
        raise kind(f"is not TOML that can be read: {quote(str(error))}", file=shown) from error


def parse(text: str, file: str = "<text>") -> TomlSource:
    """`text` as a source. Raises tomllib.TOMLDecodeError."""
    text = text.replace("\r\n", "\n")
    return TomlSource(file, tomllib.loads(text), _Positions(text).find())


class _Positions:
    """Walks text that tomllib has accepted, so it need not doubt the syntax."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Key, int] = {}
        self.array_length: dict[Key, int] = {}
        self._counted_to = 0
        self._line = 1

    def find(self) -> dict[Key, int]:
        table: Key = ()
        self._skip(_SPACE)
        while self.at < len(self.text):
            if self.text.startswith("[[", self.at):
                table = self._header(2, array=True)
            elif self.text[self.at] == "[":
                table = self._header(1, array=False)
            else:
                self._pair(table)
            self._skip(_SPACE)
        return self.lines

    def _skip(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found[0]

    def _here(self) -> int:
        self._line += self.text.count("\n", self._counted_to, self.at)
        self._counted_to = self.at
        return self._line

    def _header(self, brackets: int, *, array: bool) -> Key:
        line = self._here()
        self.at += brackets
        names = self._key()
        self.at += brackets
        path: Key = ()
        for index, name in enumerate(names):
            path = (*path, name)
            last = index == len(names) - 1
            self.lines.setdefault(path, line)
            if last and array:
                number = self.array_length.get(path, 0)
                self.array_length[path] = number + 1
                path = (*path, number)
                self.lines[path] = line
            elif path in self.array_length:
                path = (*path, self.array_length[path] - 1)
        return path

    def _key(self) -> list[str]:
        names = []
        while True:
            self._skip(_BLANK)
            names.append(self._key_part())
            self._skip(_BLANK)
            if not self.text.startswith(".", self.at):
                return names
            self.at += 1

    def _key_part(self) -> str:
        if self.text[self.at] in "\"'":
            quoted = self._string()
            # tomllib knows the escapes: let it read the quoted key.
            return str(tomllib.loads(f"key = {quoted}")["key"])
        return self._skip(_BARE_KEY)

    def _string(self) -> str:
        for pattern in _STRINGS:
            found = self._skip(pattern)
            if found:
                return found
        message = "text that tomllib accepted has an unreadable string"
        raise AssertionError(message)

    def _pair(self, table: Key) -> None:
        line = self._here()
        path = table
        for name in self._key():
            path = (*path, name)
            self.lines.setdefault(path, line)
        self.at += 1  # the equals sign
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: Key) -> None:
        first = self.text[self.at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            self._skip(_SCALAR)

    def _array(self, path: Key) -> None:
        self.at += 1
        number = 0
        self._skip(_SPACE)
        while self.text[self.at] != "]":
            item = (*path, number)
            self.lines[item] = self._here()
            self._value(item)
            number += 1
            self._skip(_SPACE)
            if self.text[self.at] == ",":
                self.at += 1
                self._skip(_SPACE)
        self.at += 1

    def _inline_table(self, path: Key) -> None:
        self.at += 1
        self._skip(_SPACE)
        while self.text[self.at] != "}":
            self._pair(path)
            self._skip(_SPACE)
            if self.text[self.at] == ",":
                self.at += 1
                self._skip(_SPACE)
        self.at += 1
