"""Initialises a SoftHSM token. Its tool takes PINs from arguments, which everybody can read, or from a
terminal: so it gets one.
"""

from __future__ import annotations

import os
import pty
import secrets
import subprocess
from collections.abc import Mapping
from typing import Final

from hal.errors import StationError

PROMPT: Final = b"PIN: "


def make_token(label: str, pin: str, environment: Mapping[str, str]) -> None:
    """A token `label` whose user PIN is `pin`; the SO PIN is random and forgotten."""
    terminal, end = pty.openpty()
    try:
        process = subprocess.Popen(
            ["softhsm2-util", "--init-token", "--free", "--label", label],
            env={**os.environ, **environment},
            stdin=end,
            stdout=end,
            stderr=end,
        )
    finally:
        os.close(end)
    so_pin = secrets.token_hex(16)
    answers, said = [so_pin, so_pin, pin, pin], b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # EIO: the other end is closed
            break
        if not piece:
            break
        said += piece
        while answers and said.count(PROMPT) > 4 - len(answers):
            os.write(terminal, answers.pop(0).encode() + b"\n")
    os.close(terminal)
    if process.wait() != 0:
        raise StationError(f"softhsm2-util could not make a token: {said.decode(errors='replace')[-300:]}")
