"""Starts an emulated board whose durable effects have names, and of whose TPM commands only the lasting ones count.

    board.py LOG LASTING [the board's own arguments]

LOG gets a line for each effect, in order; LASTING is a file of command codes (`lasting.py`), or "-" to count them all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from drivers.emulated.board import __main__ as program
from drivers.emulated.board import power, tpm
from tests.crash import lasting

DEPTH = 3
"""How many callers of an effect are told."""


def name_effects(log: Path) -> None:
    """Each effect's place in the board's code into `log`, as "Flash._store < Flash.erase < ..."."""
    fails = power.Power.fails

    def named(self: power.Power) -> bool:
        callers: list[str] = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and len(callers) < DEPTH:
            if frame.f_code.co_filename not in (power.__file__, __file__):
                callers.append(frame.f_code.co_qualname)
            if frame.f_code.co_name == "transmit":
                callers.append(f"{lasting.code(frame.f_locals['command']):#x}")
            frame = frame.f_back
        with log.open("a") as stream:
            stream.write(" < ".join(callers) + "\n")
        return fails(self)

    power.Power.fails = named  # type: ignore[method-assign]


def count_only(codes: frozenset[int]) -> None:
    """A command that changes nothing lasting is no effect: losing power at it loses sessions, as at any other time."""
    transmit = tpm.Tpm.transmit

    def transmit_counted(self: tpm.Tpm, command: bytes) -> bytes:
        return transmit(self, command) if lasting.code(command) in codes else self._exchange(command)

    tpm.Tpm.transmit = transmit_counted  # type: ignore[method-assign]


def main() -> int:
    log, codes, *arguments = sys.argv[1:]
    name_effects(Path(log))
    if codes != "-":
        count_only(lasting.read(Path(codes)))
    return program.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
