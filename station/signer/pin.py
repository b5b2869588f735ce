"""The CA token's PIN, and the mark that keeps a wrong one from being tried twice, across restarts and power cuts too.

A token locks for good after a few wrong PINs, so a daemon that restarts by itself must not try one again. The mark is a
file, `pin-attempt`, written and fsynced (file and folder) before each C_Login:

- *trying* is written before a login and removed after its success. Left over, it means that the process died in
  between. It bars the next login, but for one case: the token is known to tell of wrong PINs and tells of none
  (`PinTries.CLEAN`). Then the interrupted attempt succeeded or never reached the token, so trying again risks nothing,
  and a station that loses power in the middle of a login comes back by itself.
- *rejected* is written when the token refused the PIN. It always bars, whatever the token's flags say.
- *allowed* is what `hallmark ca unblock` writes: one more attempt, also when the token counts a wrong one
  (COUNT_LOW), and with `--final-try` also when it is the last. The attempt turns it into *trying*.

A mark of another token's serial number bars as well: tokens were swapped during an attempt, and a person has to look.
A token that is locked is never tried.

Nothing about the PIN is stored. A hash would tell whether the PIN was changed since, but PINs are short: whoever copied
the state folder could find it by trial at leisure, however slow the hash, instead of in the token's few tries. What was
refused is remembered in memory only, so that one process never offers the same PIN twice even when it was unblocked.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog

from hal.errors import ConfigError, PinRejected
from hal.secret import Secret
from hal.types import PinTries, PinVerdict
from station.signer import durable

MARK: Final = "pin-attempt"
MARK_LIMIT: Final = 4096
PIN_LIMIT: Final = 255
"""Octets. PKCS#11 leaves the length to the token; none takes more."""
UNBLOCK: Final = (
    "An engineer checks the PIN's credential, runs `hallmark ca unblock` and restarts the signer."
)

_log = structlog.get_logger()


class Mark(msgspec.Struct, frozen=True):
    """The content of `pin-attempt`, JSON. `at`: Unix time, for people only."""

    state: Literal["trying", "rejected", "allowed"]
    serial: str = ""
    at: float = 0.0
    final_try: bool = False


@dataclass(frozen=True, slots=True)
class PinFile:
    """Read each time it is asked for: after an unblock it may hold another PIN."""

    path: Path

    def read(self) -> Secret:
        """ConfigError when there is no such file, or others than its owner (and group, as systemd's) may read it."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            message = f"the PIN's credential can't be read: {error.strerror}"
            raise ConfigError(message, file=str(self.path)) from error
        with os.fdopen(fd, "rb") as stream:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
                message = "the PIN's credential is no regular file of this user or root"
                raise ConfigError(message, file=str(self.path))
            if found.st_mode & 0o037:
                mode = stat.S_IMODE(found.st_mode)
                message = f"the PIN's credential has mode {mode:04o}; expected 0600 or 0400"
                raise ConfigError(message, file=str(self.path), hint=f"chmod 0600 {self.path}")
            return _pin(stream.read(PIN_LIMIT + 3), str(self.path))


class PinDescriptor:
    """Read once from a file descriptor that the caller passed (`--pin-fd N`), then closed."""

    def __init__(self, fd: int) -> None:
        try:
            with os.fdopen(fd, "rb") as stream:
                self._pin = _pin(stream.read(PIN_LIMIT + 3), f"file descriptor {fd}")
        except OSError as error:
            message = f"--pin-fd {fd} can't be read: {error.strerror}"
            raise ConfigError(message) from error

    def read(self) -> Secret:
        return self._pin


def _pin(raw: bytes, where: str) -> Secret:
    pin = raw.removesuffix(b"\n").removesuffix(b"\r")
    if not 1 <= len(pin) <= PIN_LIMIT or b"\0" in pin or b"\n" in pin:
        message = f"expected a PIN of 1 to {PIN_LIMIT} octets, in one line"
        raise ConfigError(message, file=where)
    try:
        pin.decode("utf-8")
    except UnicodeDecodeError:
        message = "the PIN is not UTF-8 text, which PKCS#11 wants"
        raise ConfigError(message, file=where) from None  # the cause would quote the PIN
    return Secret(pin)


class PinGuard:
    """`hal.interfaces.TokenPin` over a source of the PIN and the mark in `folder`."""

    def __init__(self, folder: Path, source: PinFile | PinDescriptor) -> None:
        self._path, self._source = folder / MARK, source
        self._lock = threading.Lock()
        self._offered: Secret | None = None
        self._refused: Secret | None = None
        self._serial = ""

    def begin(self, serial: str, tries: PinTries) -> Secret:
        with self._lock:
            _judge(read_mark(self._path), serial, tries)
            pin = self._source.read()
            if pin == self._refused:
                message = "this PIN was refused by the token already; it is not tried again"
                hint = "Correct the PIN's credential, then restart the signer, which reads it anew."
                raise PinRejected(message, hint=hint)
            _write(self._path, Mark("trying", serial, time.time()))
            self._offered, self._serial = pin, serial
            return pin

    def end(self, verdict: PinVerdict) -> None:
        with self._lock:
            if verdict is PinVerdict.ACCEPTED:
                durable.remove(self._path)
                return
            self._refused = self._offered
            _write(self._path, Mark("rejected", self._serial, time.time()))


def unblock(folder: Path, *, final_try: bool = False) -> bool:
    """Allows one more attempt; False when nothing barred one. The token's own counter may bar it all the same."""
    path = folder / MARK
    found = read_mark(path)
    _write(path, Mark("allowed", found.serial if found else "", time.time(), final_try))
    return found is not None and found.state != "allowed"


def read_mark(path: Path) -> Mark | None:
    """The mark, None when there is none. One that can't be read counts as an attempt that nobody saw end."""
    raw = durable.read(path, MARK_LIMIT)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=Mark)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return Mark("trying", serial="?")


def _judge(mark: Mark | None, serial: str, tries: PinTries) -> None:
    """PinRejected when a login must not be tried now; see the module's docstring."""
    allowed = mark is not None and mark.state == "allowed"
    if tries is PinTries.LOCKED:
        message = "the token says that its PIN is locked"
        raise PinRejected(message, hint="The token's security officer has to set a new PIN.")
    if tries is PinTries.FINAL and not (mark is not None and mark.state == "allowed" and mark.final_try):
        message = "the token says that one more wrong PIN locks it"
        hint = "An engineer makes sure of the PIN and runs `hallmark ca unblock --final-try`."
        raise PinRejected(message, hint=hint)
    if tries is PinTries.LOW and not allowed:
        message = "the token says that a wrong PIN was given since the last right one"
        raise PinRejected(message, hint=UNBLOCK)
    if mark is None or allowed:
        return
    if mark.state == "rejected":
        message = "the token refused the PIN, and nobody has unblocked it since"
        raise PinRejected(message, hint=UNBLOCK)
    if mark.serial != serial:
        message = "a login at another token was interrupted, and nobody knows how it ended"
        raise PinRejected(message, hint=UNBLOCK)
    if tries is not PinTries.CLEAN:
        message = (
            "an earlier login was interrupted, and this token doesn't tell whether it counted a wrong PIN"
        )
        raise PinRejected(message, hint=UNBLOCK)
    _log.warning("an earlier login was interrupted; the token counts no wrong PIN, so it is tried again")


def _write(path: Path, mark: Mark) -> None:
    durable.write(path, msgspec.json.encode(mark))
