"""Letters five lines high, for verdicts that one reads from the other end of the line. Data, and how to join it."""

from __future__ import annotations

from typing import Final

HEIGHT: Final = 5
GAP: Final = 1
_FONT: Final = {
    "A": (" ███ ", "█   █", "█████", "█   █", "█   █"),
    "B": ("████ ", "█   █", "████ ", "█   █", "████ "),
    "D": ("████ ", "█   █", "█   █", "█   █", "████ "),
    "E": ("█████", "█    ", "████ ", "█    ", "█████"),
    "F": ("█████", "█    ", "████ ", "█    ", "█    "),
    "I": ("███", " █ ", " █ ", " █ ", "███"),
    "L": ("█    ", "█    ", "█    ", "█    ", "█████"),
    "O": (" ███ ", "█   █", "█   █", "█   █", " ███ "),
    "P": ("████ ", "█   █", "████ ", "█    ", "█    "),
    "R": ("████ ", "█   █", "████ ", "█  █ ", "█   █"),
    "S": (" ████", "█    ", " ███ ", "    █", "████ "),
    "T": ("█████", "  █  ", "  █  ", "  █  ", "  █  "),
    "U": ("█   █", "█   █", "█   █", "█   █", " ███ "),
}


def big(word: str, width: int) -> list[str] | None:
    """The word as lines of blocks, or None when it is wider than `width` or has a letter that we don't."""
    if any(letter not in _FONT for letter in word):
        return None
    lines = [(" " * GAP).join(_FONT[letter][row] for letter in word) for row in range(HEIGHT)]
    return lines if word and len(lines[0]) <= width else None
