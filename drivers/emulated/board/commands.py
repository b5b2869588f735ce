"""The control socket's commands, as the command line's help tells them: words in, deeds on the machine.

Reading and checking of words only; power, port and wire are the machine's.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from drivers.emulated.board.options import Options
from drivers.emulated.board.power import Power

POWER_BACK_SECONDS: Final = 0.2
"""How long a power cut lasts when nobody says."""
_NUMBER_LIMIT: Final = 3600


class Board(Protocol):
    """What a machine lets the bench do to it."""

    options: Options
    power: Power

    def status(self) -> Mapping[str, object]: ...
    def plug(self) -> None: ...
    def unplug(self) -> None: ...
    def lose_power(self, seconds: float) -> None: ...
    def send_signal(self, number: signal.Signals) -> None: ...
    def disturb(self, noise: float | None = None, loss: float | None = None) -> None: ...


def act(board: Board, verb: str, arguments: list[str]) -> Mapping[str, object]:
    """Does it; the board's status after that. ValueError says what is wrong with the command."""
    actions: dict[str, tuple[Callable[..., object], int, int]] = {
        "status": (lambda: None, 0, 0),
        "unplug": (board.unplug, 0, 0),
        "plug": (board.plug, 0, 0),
        "power-cut": (lambda text="": board.lose_power(_number(text, POWER_BACK_SECONDS)), 0, 1),
        "cut-at": (lambda count, tear="0.5": _cut_at(board.power, count, tear), 1, 2),
        "hang": (lambda: board.send_signal(signal.SIGSTOP), 0, 0),
        "resume": (lambda: board.send_signal(signal.SIGCONT), 0, 0),
        "noise": (lambda rate: board.disturb(noise=_number(rate)), 1, 1),
        "loss": (lambda rate: board.disturb(loss=_number(rate)), 1, 1),
        "corrupt": (lambda slot, offset: _corrupt(board.options, slot, offset), 2, 2),
    }
    if verb not in actions:
        raise ValueError(f"unknown command; there are {', '.join(actions)}")
    action, least, most = actions[verb]
    if not least <= len(arguments) <= most:
        raise ValueError(f"{verb} takes {least} to {most} arguments")
    action(*arguments)
    return board.status()


def _cut_at(power: Power, count: str, tear: str) -> None:
    wanted, fraction = int(count), _number(tear)
    if wanted < 0:
        raise ValueError("the number of an effect from now on, 1 or more; 0 for none")
    if fraction > 1:
        raise ValueError("a tear is from 0 to 1")
    power.cut_at(power.effects + wanted if wanted else 0, fraction)


def _corrupt(options: Options, slot: str, offset: str) -> None:
    number, at = int(slot), int(offset)
    if number not in (0, 1) or not 0 <= at < options.slot_size:
        raise ValueError("slot 0 or 1, and an offset in it")
    with Path(options.state, "flash.bin").open("r+b") as flash:
        flash.seek(number * options.slot_size + at)
        octet = flash.read(1)
        flash.seek(-1, 1)
        flash.write(bytes([octet[0] ^ 1]))


def _number(text: str, default: float = 0.0) -> float:
    value = float(text) if text else default
    if not 0 <= value <= _NUMBER_LIMIT:
        raise ValueError(f"a number from 0 to {_NUMBER_LIMIT}")
    return value
