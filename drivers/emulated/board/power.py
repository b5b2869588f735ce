"""Power, and its failure at a chosen moment: counts every durable effect and can cut the power in the middle of one.

Shared memory between machine and firmware, because a power cut must stop the firmware within an effect while the
machine lives on. What an effect is belongs to those who call `fails`; how the board comes back is the machine's.
"""

from __future__ import annotations

import enum
import mmap
import os
import signal
from typing import Final, NoReturn

_WORDS: Final = 6
_EFFECTS, _CUT_AT, _TEAR, _STAGE, _TPM_COMMANDS, _TPM_NANOSECONDS = range(_WORDS)
_TEAR_WHOLE: Final = 256


class Stage(enum.IntEnum):
    OFF = 0
    BOOTLOADER = 1
    """MCUboot's serial recovery: there is no image to start."""
    APPLICATION = 2


class Power:
    """Made before the firmware is forked, so that both sides see the same memory. One writer per field."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * _WORDS)
        self._set(_TEAR, _TEAR_WHOLE // 2)

    def _get(self, word: int) -> int:
        return int.from_bytes(self._memory[8 * word : 8 * word + 8], "little")

    def _set(self, word: int, value: int) -> None:
        self._memory[8 * word : 8 * word + 8] = value.to_bytes(8, "little")

    @property
    def effects(self) -> int:
        """Durable effects since the board's process began: flash writes and erases, saves, TPM commands, answers."""
        return self._get(_EFFECTS)

    @property
    def stage(self) -> Stage:
        return Stage(self._get(_STAGE))

    @stage.setter
    def stage(self, stage: Stage) -> None:
        self._set(_STAGE, stage)

    @property
    def tpm_commands(self) -> int:
        return self._get(_TPM_COMMANDS)

    @property
    def tpm_seconds(self) -> float:
        """From command to response, all of them together: what a unit's trip takes at the least."""
        return self._get(_TPM_NANOSECONDS) / 1e9

    def used_tpm(self, nanoseconds: int) -> None:
        """Counts one command that the TPM has answered."""
        self._set(_TPM_COMMANDS, self.tpm_commands + 1)
        self._set(_TPM_NANOSECONDS, self._get(_TPM_NANOSECONDS) + nanoseconds)

    def cut_at(self, effect: int, tear: float = 0.5) -> None:
        """Arms a cut in the `effect`-th effect from the start (1 is the first); 0 disarms.

        `tear`: how much of a write or erase still happens, 0 to 1.
        """
        self._set(_TEAR, int(tear * _TEAR_WHOLE))
        self._set(_CUT_AT, effect)

    def torn(self, length: int) -> int:
        """Octets out of `length` that an interrupted write still reaches."""
        return length * self._get(_TEAR) // _TEAR_WHOLE

    def fails(self) -> bool:
        """Counts one effect. True when power is lost during it: then do a part of it, or none, and call `die`."""
        count = self.effects + 1
        self._set(_EFFECTS, count)
        return count == self._get(_CUT_AT)

    def die(self) -> NoReturn:
        """The power is gone: this process ends without a word."""
        os.kill(os.getpid(), signal.SIGKILL)
        message = "a process outlived its SIGKILL"
        raise AssertionError(message)

    def point(self) -> None:
        """An effect that power can only be lost before or after."""
        if self.fails():
            self.die()
