"""`hallmark status --watch`: follows a station until somebody quits, on a terminal as a panel, else as lines.

It outlives the station: when that restarts, the panel says that what it shows is old, and goes on by itself.
"""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

from rich.console import Console
from rich.live import Live

from hal.errors import PeerUnavailable
from station.status import panel, wording
from station.status.client import StatusClient
from station.status.view import NestState, Snapshot

BUSY_SECONDS: Final = 0.25
IDLE_SECONDS: Final = 1.0
FIRST_SECONDS: Final = 10.0
PICTURE_COLUMNS: Final = 150
QUIT_KEYS: Final = b"qQ\x03\x04"
"""And Ctrl-C and Ctrl-D, in case they come as characters."""


class _Follower:
    """The station's last known state, and since when it hasn't answered."""

    def __init__(self, client: StatusClient) -> None:
        self._client = client
        self.snapshot = _first(client)
        self._silent_since: float | None = None

    def look(self) -> bool:
        """Asks again; False while no station answers."""
        try:
            self.snapshot = self._client.snapshot()
        except PeerUnavailable:
            self._silent_since = self._silent_since or time.monotonic()
            return False
        self._silent_since = None
        return True

    @property
    def notice(self) -> str:
        if self._silent_since is None:
            return ""
        silent = wording.duration(time.monotonic() - self._silent_since)
        return f" THE STATION DOES NOT ANSWER for {silent}: shown is what was before "

    @property
    def pause(self) -> float:
        moving = any(nest.state in (NestState.BUSY, NestState.AWAY) for nest in self.snapshot.nests)
        return BUSY_SECONDS if moving else IDLE_SECONDS


def _first(client: StatusClient) -> Snapshot:
    """Where there is a socket but nobody answers, the station may be restarting: it gets FIRST_SECONDS, then
    PeerUnavailable goes to the caller.
    """
    until = time.monotonic() + FIRST_SECONDS
    pause = threading.Event()
    while True:
        try:
            return client.snapshot()
        except PeerUnavailable:
            if not client.has_socket or time.monotonic() > until:
                raise
        pause.wait(BUSY_SECONDS)


def on_terminal(client: StatusClient, console: Console, keyboard: TextIO) -> Snapshot:
    """Draws until q or Ctrl-C; gives the last snapshot. PeerUnavailable when there is no station to begin with."""
    follower = _Follower(client)
    with _keys(keyboard) as key_fd, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                width, height = console.size
                picture = panel.render(follower.snapshot, width, height, notice=follower.notice)
                live.update(picture, refresh=True)
                if _quit_pressed(key_fd, follower.pause):
                    break
                follower.look()
        except KeyboardInterrupt:
            pass  # the usual way to leave; the terminal is put back by the two managers above
    return follower.snapshot


def as_lines(client: StatusClient, out: TextIO) -> Snapshot:
    """Prints a line for each change until Ctrl-C, or until nobody reads; gives the last snapshot."""
    follower = _Follower(client)
    before: Snapshot | None = None
    answered = True
    try:
        while True:
            lines = list(wording.changes(before, follower.snapshot))
            if answered and lines:
                _print(out, lines)
                before = follower.snapshot
            if _closed(out, follower.pause):
                break
            answers = follower.look()
            if answers != answered:
                _print(out, ["the station answers again" if answers else "the station does not answer"])
            answered = answers
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    return follower.snapshot


def save_svg(snapshot: Snapshot, file: Path, width: int = PICTURE_COLUMNS, height: int = 42) -> None:
    """The panel as a picture, as a terminal of so many columns and rows would show it."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(
            record=True,
            width=width,
            height=height,
            file=nowhere,
            force_terminal=True,
            color_system="truecolor",
        )
        console.print(panel.render(snapshot, width, height))
        picture = console.export_svg(title="hallmark status --watch")
    # rich has the picture load its font from the internet; the viewer's own monospaced one does.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    # Some viewers strip a text's leading no-break spaces.
    file.write_text(picture.replace("<svg ", '<svg xml:space="preserve" ', 1))


def _print(out: TextIO, lines: list[str]) -> None:
    stamp = time.strftime("%H:%M:%S")
    out.write("".join(f"{stamp} {line}\n" for line in lines))
    out.flush()


def _closed(out: TextIO, seconds: float) -> bool:
    """Waits; True as soon as the reader of our output is gone. poll reports that as an error, unasked."""
    watched = select.poll()
    watched.register(out.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLNVAL) for _, events in watched.poll(int(seconds * 1000)))


def _quit_pressed(key_fd: int | None, seconds: float) -> bool:
    readable, _, _ = select.select([] if key_fd is None else [key_fd], [], [], seconds)
    if not readable or key_fd is None:
        return False
    pressed = os.read(key_fd, 64)
    return not pressed or any(key in QUIT_KEYS for key in pressed)


@contextmanager
def _keys(keyboard: TextIO) -> Iterator[int | None]:
    """Single keys without echo while this lasts; None when input isn't a terminal."""
    if not keyboard.isatty():
        yield None
        return
    fd = keyboard.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def standard_streams() -> tuple[TextIO, TextIO]:
    return sys.stdin, sys.stdout
