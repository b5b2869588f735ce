"""HTML that is safe by the way it is made: text is escaped wherever it comes in, only `tag` makes elements.

What it writes is XML as well, so that a strict parser can judge it. What a page says doesn't belong here.
"""

from __future__ import annotations

import html
from typing import Final

VOID: Final = frozenset({"meta"})


class Html(str):
    """Markup that `tag` made. Never make one of text that came from elsewhere."""

    __slots__ = ()


def shown(text: object) -> str:
    """Text for people: what doesn't print, or turns the direction of writing, is written as its code."""
    return "".join(
        character if character.isprintable() else f"\\u{ord(character):04x}" for character in str(text)
    )


def tag(name: str, /, *content: object, **attributes: str) -> Html:
    """An element. `content`: Html as it is, anything else as text. `class_` is `class`, `http_equiv` `http-equiv`."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(shown(value), quote=True)}"'
        for key, value in attributes.items()
    )
    if name in VOID:
        return Html(f"<{name}{given}/>")
    inner = "".join(part if isinstance(part, Html) else html.escape(shown(part)) for part in content)
    return Html(f"<{name}{given}>{inner}</{name}>")


def joined(parts: list[Html]) -> Html:
    return Html("".join(parts))
