"""What may be written where people and log stores read it: an allow-list of types, and bounded, printable text.

A field's value is taken only when its type is known to be harmless; a `Secret`, octets and unknown objects never are.
"""

from __future__ import annotations

import enum
import re
import sys
import types
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Final

from hal.errors import HallmarkError

Event = MutableMapping[str, Any]

TEXT_LIMIT: Final = 1000
"""Characters kept of one text."""
ITEMS_LIMIT: Final = 32
DEPTH_LIMIT: Final = 4
FRAMES_LIMIT: Final = 16
CAUSES_LIMIT: Final = 4
REDACTED: Final = "[redacted]"
SECRET_WORDS: Final = frozenset(
    """pin pins sopin password passwd passphrase secret secrets auth auths authorization bearer cookie credential
    credentials private seed sas sig sharedaccesskey sharedaccesssignature apikey""".split()  # noqa: SIM905 - readable
)
"""A field with one of these among the words of its name is never written, whatever its value is."""

_SECRET_TEXT: Final = re.compile(
    r"""-----BEGIN[ ][A-Z0-9 ]*PRIVATE[ ]KEY-----.*?(?:-----END[ ][A-Z0-9 ]*PRIVATE[ ]KEY-----|$)
    | \b(?:SharedAccessKey|SharedAccessSignature|sig|skn)\s*=\s*[^\s;&"']+
    | \bBearer\s+[^\s"']+
    | \bb'(?:\\.|[^'\\])*'?
    | \bb"(?:\\.|[^"\\])*"?""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
"""What secrets look like inside sentences of other people's exceptions; the last two are Python's repr of bytes."""
_WORDS: Final = re.compile(r"[A-Za-z][a-z]*|[A-Z]+")


def scrub(_logger: object, _method: str, event: Event) -> Event:
    """A structlog processor: nothing is left but bounded, printable text, numbers and truth values."""
    return {clean_name(name): clean(value, name) for name, value in list(event.items())[: 2 * ITEMS_LIMIT]}


def clean_name(name: object) -> str:
    return clean_text(str(name))[:64]


def clean(value: object, name: str = "", depth: int = 0) -> Any:
    """A value made fit to be written; `name` is the field that it belongs to."""
    if _is_secret(name):
        return REDACTED
    match value:
        case enum.Enum():
            return clean(value.value, name, depth)
        case None | bool() | int() | float():
            return value
        case str():
            return clean_text(value)
        case PurePath():
            return clean_text(str(value))
        case bytes() | bytearray() | memoryview():
            return f"[{len(value)} octets]"
        case BaseException():
            return _summary(value)
        case Mapping() if depth < DEPTH_LIMIT:
            pairs = list(value.items())[:ITEMS_LIMIT]
            return {clean_name(key): clean(item, str(key), depth + 1) for key, item in pairs}
        case Sequence() | set() | frozenset() if depth < DEPTH_LIMIT:
            return [clean(item, "", depth + 1) for item in list(value)[:ITEMS_LIMIT]]
        case _:
            return f"[{type(value).__name__}]"  # never its repr: that is where secrets come out


def clean_text(text: str) -> str:
    """Text without what looks like a secret, without control and direction characters, and bounded."""
    text = _SECRET_TEXT.sub(REDACTED, text[: 4 * TEXT_LIMIT])
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return shown if len(shown) <= TEXT_LIMIT else shown[: TEXT_LIMIT - 1] + "…"


def _is_secret(name: str) -> bool:
    words = [word.lower() for word in _WORDS.findall(name)]
    return bool(SECRET_WORDS.intersection(words)) or "".join(words) in SECRET_WORDS


def _summary(error: BaseException) -> str:
    code = error.code if isinstance(error, HallmarkError) else type(error).__name__
    return clean_text(f"{code}: {error}")


def exception(_logger: object, _method: str, event: Event) -> Event:
    """`exc_info` becomes what happened and where: names of files and functions, no source lines and no locals."""
    found = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()[1]
    elif isinstance(found, tuple):
        found = found[1]
    if isinstance(found, BaseException):
        event["exception"], event["where"] = _summary(found), _frames(found.__traceback__)
        causes: list[str] = []
        cause = found.__cause__ or found.__context__
        while cause is not None and len(causes) < CAUSES_LIMIT:
            causes.append(f"{_summary(cause)} at {''.join(_frames(cause.__traceback__)[-1:])}")
            cause = cause.__cause__ or cause.__context__
        if causes:
            event["causes"] = causes
    event.pop("stack_info", None)
    return event


def _frames(traceback: types.TracebackType | None) -> list[str]:
    found: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        found.append(f"{'/'.join(Path(code.co_filename).parts[-3:])}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return found[-FRAMES_LIMIT:]
