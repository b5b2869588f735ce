"""Starts an emulated board: prepares its state directory, takes its lock, and runs the machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from drivers.emulated.board.bootloader import PRIMARY, Bootloader, flash_size
from drivers.emulated.board.flash import Flash
from drivers.emulated.board.machine import Machine
from drivers.emulated.board.options import Options, parse
from drivers.emulated.board.power import Power
from drivers.emulated.board.storage import burn_serial, replace
from drivers.emulated.board.tpm import SCRATCH, EkCertificate, manufacture
from drivers.emulated.image import inspect
from hal.errors import ConfigError, HallmarkError

LOCK_SECONDS: Final = 10
"""How long a board that was killed may take to be gone with all its processes."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        options.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _only_board(options.state) as lock:
            _make(options)
            Machine(options, lock).run()
    except ConfigError as error:
        print(f"{error}\n{error.hint}", file=sys.stderr)
        return 2
    except HallmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or options.state}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _only_board(state: Path) -> Iterator[int]:
    """A lock that firmware and TPM inherit: it is free when the last process of a killed board has ended."""
    with open(os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as file:  # noqa: PTH123 - with a mode
        before = signal.signal(signal.SIGALRM, _too_late)
        signal.alarm(LOCK_SECONDS)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except TimeoutError:
            raise ConfigError(f"another board is running on {state}") from None
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        yield file.fileno()


def _too_late(number: int, frame: object) -> None:
    del number, frame
    raise TimeoutError


def _make(options: Options) -> None:
    """What a board has when it leaves its maker. A crash half-way leaves what the next start completes."""
    state = options.state
    for left in state.glob(f"{SCRATCH}*"):
        shutil.rmtree(left)
    if options.tpm:
        # A foreign maker's CA is of this board alone.
        foreign = options.ek_certificate is EkCertificate.FOREIGN
        manufacture(
            state / "tpm", state / "foreign-ek-ca" if foreign else options.ek_ca, options.ek_certificate
        )
    burn_serial(state, options.serial)
    flash_file = state / "flash.bin"
    if options.factory_image is not None and not flash_file.exists():
        data = options.factory_image.read_bytes()
        image = inspect(data)
        if image is None or not image.intact:
            raise ConfigError(f"{options.factory_image} is not an intact image")
        replace(flash_file, data.ljust(flash_size(options.slot_size), b"\xff"), Power())
    # Opening makes it, and refuses an impossible size before anything starts.
    flash = Flash(flash_file, flash_size(options.slot_size), Power())
    try:
        capacity = Bootloader(flash, options.slot_size).capacity
    except ValueError as error:
        raise ConfigError(f"--slot-size: {error}") from error
    finally:
        flash.close()
    if options.factory_image is not None and options.factory_image.stat().st_size > capacity:
        raise ConfigError(f"{options.factory_image} does not fit into slot {PRIMARY}")


if __name__ == "__main__":
    sys.exit(main())
