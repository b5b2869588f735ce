"""One serial port, opened for us alone: 8N1, raw, non-blocking; waits honour the call's deadline and cancel.

Also works on pseudo-terminals, which have no modem lines, no parity and no serial_struct. No protocol comes in.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat
import termios
from typing import Final, NoReturn

from hal.call import Call
from hal.errors import ConfigError, DeviceBusy, DeviceGone, quote

READ_LIMIT: Final = 65536
"""Octets that one read gives at most, whatever the caller asks for."""

_GONE: Final = frozenset({errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOENT, errno.EBADF, errno.ENOTCONN})
_BUSY: Final = frozenset({errno.EBUSY, errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EWOULDBLOCK})
_NO_SUCH_CONTROL: Final = frozenset({errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})

# Linux, include/uapi/asm-generic/ioctls.h and linux/tty_flags.h; struct serial_struct (linux/serial.h): `flags` is
# its fifth int.
_TIOCGSERIAL: Final = 0x541E
_TIOCSSERIAL: Final = 0x541F
_SERIAL_STRUCT_INTS: Final = 32
_FLAGS_INT: Final = 4
_ASYNC_LOW_LATENCY: Final = 0x2000
# Documentation/admin-guide/devices.txt: Unix98 pseudo-terminal slaves.
_PTY_MAJORS: Final = range(136, 144)


class SerialPort:
    """A `hal.interfaces.Channel` over a tty. One thread uses it at a time."""

    def __init__(self, path: str, baud: int, *, rtscts: bool = False, low_latency: bool = True) -> None:
        """Opens the port at `path`.

        Raises:
            DeviceBusy: another program holds it, or udev hasn't given us access yet.
            DeviceGone: it isn't there.
            ConfigError: it is no terminal, or the kernel has no such rate.
        """
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            self._fail(exc, "open")
        try:
            self._claim()
            self._configure(baud, rtscts=rtscts)
            if low_latency:
                self._low_latency()
        except OSError as exc:
            os.close(self._fd)
            self._fail(exc, "set up")
        except termios.error as exc:
            os.close(self._fd)
            self._fail(OSError(*exc.args), "set up")
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, call: Call, limit: int) -> bytes:
        """At least one and at most `limit` octets."""
        while True:
            call.wait_readable(self._fd)
            try:
                data = os.read(self._fd, min(limit, READ_LIMIT))
            except BlockingIOError:
                continue
            except OSError as exc:
                self._fail(exc, "read")
            if not data:
                message = f"{quote(self._path)} was hung up"
                raise DeviceGone(message)
            return data

    def write(self, call: Call, data: bytes) -> None:
        """All of `data` handed to the kernel, as it takes it."""
        call.check()
        rest = memoryview(data)
        while rest:
            try:
                written = os.write(self._fd, rest)
            except BlockingIOError:
                written = 0
            except OSError as exc:
                self._fail(exc, "written")
            rest = rest[written:]
            if rest:
                call.wait_writable(self._fd)

    def drop_input(self) -> None:
        """Forgets what has arrived and was not read."""
        self._flush(termios.TCIFLUSH)

    def drop_output(self) -> None:
        """Forgets what was written and not sent, so that closing doesn't wait for a board that takes nothing."""
        self._flush(termios.TCOFLUSH)

    def close(self) -> None:
        """Gives the port back. The board keeps its modem lines: HUPCL is off, so closing resets no board."""
        os.close(self._fd)

    def _flush(self, queue: int) -> None:
        try:
            termios.tcflush(self._fd, queue)
        except termios.error as exc:
            self._fail(OSError(*exc.args), "flushed")

    def _claim(self) -> None:
        """A lock that other careful programs ask for, and the kernel's for all others.

        TIOCEXCL stays on a pseudo-terminal as long as its other side lives, past our death; so there only the lock is
        used, which goes with us. On a real port both go with the last close.
        """
        about = os.fstat(self._fd)
        if not stat.S_ISCHR(about.st_mode) or not os.isatty(self._fd):
            message = f"{quote(self._path)} is no serial port"
            raise ConfigError(message)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.major(about.st_rdev) not in _PTY_MAJORS:
            fcntl.ioctl(self._fd, termios.TIOCEXCL)

    def _configure(self, baud: int, *, rtscts: bool) -> None:
        rate = getattr(termios, f"B{baud}", None)
        if baud <= 0 or rate is None:
            message = f"{baud} baud is no standard rate, as 115200, 460800, 921600 or 1000000 are"
            raise ConfigError(message)
        control = termios.CS8 | termios.CREAD | termios.CLOCAL | (termios.CRTSCTS if rtscts else 0)
        characters: list[bytes | int] = [b"\x00"] * len(termios.tcgetattr(self._fd)[6])
        # With VMIN 1 an empty read means hung up and nothing else; O_NONBLOCK makes "nothing yet" an EAGAIN.
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, [0, 0, control, 0, rate, rate, characters])
        # A driver takes what it can of the settings and reports success; the rate is what matters.
        if termios.tcgetattr(self._fd)[4:6] != [rate, rate]:
            message = f"{quote(self._path)} can't be run at {baud} baud"
            raise ConfigError(message)
        termios.tcflush(self._fd, termios.TCIOFLUSH)

    def _low_latency(self) -> None:
        """Asks the driver to hand over each octet at once (FTDI: 1 ms instead of 16). Many have no such switch."""
        state = array.array("i", [0] * _SERIAL_STRUCT_INTS)
        try:
            fcntl.ioctl(self._fd, _TIOCGSERIAL, state)
            state[_FLAGS_INT] |= _ASYNC_LOW_LATENCY
            fcntl.ioctl(self._fd, _TIOCSSERIAL, state)
        except OSError as exc:
            if exc.errno not in _NO_SUCH_CONTROL:
                raise

    def _fail(self, exc: OSError, deed: str) -> NoReturn:
        locked = exc.errno == errno.EWOULDBLOCK
        reason = "another program holds it" if locked else exc.strerror or "no reason given"
        message = f"{quote(self._path)} could not be {'opened' if deed == 'open' else deed}: {reason}"
        if exc.errno in _BUSY:
            raise DeviceBusy(message) from exc
        if exc.errno in _GONE:
            raise DeviceGone(message) from exc
        raise ConfigError(message) from exc
