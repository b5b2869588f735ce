"""All that crossed a board's port, in a file: lines of JSON with time, direction and octets in hexadecimal.

For tests that look for what must not cross, or that replay. Nothing is interpreted.
"""

from __future__ import annotations

import enum
import json
import os
import time
from pathlib import Path


class Direction(enum.StrEnum):
    TO_BOARD = "to-board"
    TO_HOST = "to-host"


class Recording:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def add(self, direction: Direction, data: bytes) -> None:
        """One write each: a board that is killed leaves whole lines."""
        line = json.dumps({"at": round(time.monotonic(), 6), "way": direction, "hex": data.hex()})
        os.write(self._fd, line.encode() + b"\n")


def octets(path: Path, direction: Direction) -> bytes:
    """All octets of one direction, in order."""
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return b"".join(bytes.fromhex(line["hex"]) for line in lines if line["way"] == direction)
