"""What every HAL call carries: how long it may take, how it is stopped, and where its progress goes."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from hal.errors import Aborted, DeadlineExceeded, HallmarkError

FOREVER: Final = float("inf")


class Cancel:
    """A one-way switch that both threads and `select` can wait for.

    `set` may be called from any thread, once or more; the first reason wins. The descriptor stays readable from then
    on, so a driver waits on its port and on this together and is woken at once.
    """

    def __init__(self) -> None:
        self._fd: int | None = None
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._reason: HallmarkError | None = None

    def set(self, reason: HallmarkError | None = None) -> None:
        with self._lock:
            if self._event.is_set():
                return
            self._reason = reason or Aborted("stopped")
            self._event.set()
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """True as soon as it is set, False after `timeout` seconds."""
        return self._event.wait(timeout)

    @property
    def reason(self) -> HallmarkError | None:
        return self._reason

    def fileno(self) -> int:
        """Readable once set. Never read from it. Made when it is first asked for: most calls never wait on it."""
        with self._lock:
            if self._fd is None:
                self._fd = os.eventfd(int(self._event.is_set()), os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return self._fd

    def close(self) -> None:
        """Gives the descriptor back. Not needed: it goes with the last reference."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def __del__(self) -> None:
        # Every `Call` has one of these: a descriptor that outlived it would be one more each time.
        self.close()


def _no_progress(done: int, total: int | None) -> None:
    del done, total


@dataclass(frozen=True, slots=True)
class Call:
    """Deadline (`time.monotonic` seconds), cancel switch, and a progress callback `(done, total or None)`."""

    deadline: float = FOREVER
    cancel: Cancel = field(default_factory=Cancel)
    progress: Callable[[int, int | None], None] = _no_progress

    @classmethod
    def lasting(cls, seconds: float) -> Call:
        """A call of its own that may last `seconds` from now."""
        return cls(deadline=time.monotonic() + seconds)

    def within(self, seconds: float) -> Call:
        """The same call with at most `seconds` left: a shorter deadline for one operation of several."""
        return replace(self, deadline=min(self.deadline, time.monotonic() + seconds))

    def remaining(self) -> float:
        """Seconds left (may be infinite). Raises what stops the call: the cancel's reason or DeadlineExceeded."""
        self.check()
        return self.deadline - time.monotonic()

    def check(self) -> None:
        """Raises the cancel's reason, or DeadlineExceeded when the time is up; else returns."""
        if self.cancel.is_set():
            raise self.cancel.reason or Aborted("stopped")
        if time.monotonic() >= self.deadline:
            message = "no answer in time"
            raise DeadlineExceeded(message)

    def wait_readable(self, fd: int) -> None:
        """Returns when `fd` is readable; raises what stops the call. The way for a driver to wait on its port."""
        self._wait(fd, select.POLLIN)

    def wait_writable(self, fd: int) -> None:
        """Returns when `fd` takes bytes; raises what stops the call."""
        self._wait(fd, select.POLLOUT)

    def pause(self, seconds: float) -> None:
        """Waits, but not past the deadline and not past a cancel, either of which it raises."""
        if self.cancel.wait(min(seconds, self.remaining())):
            self.check()
        self.check()

    def _wait(self, fd: int, events: int) -> None:
        poll = select.poll()
        poll.register(fd, events)
        poll.register(self.cancel.fileno(), select.POLLIN)
        while True:
            left = self.remaining()
            timeout = None if left == FOREVER else max(1, int(left * 1000))
            ready = dict(poll.poll(timeout))
            if self.cancel.fileno() in ready:
                self.check()
            if fd in ready:
                # POLLHUP and POLLERR count as ready: the read or write that follows tells what is wrong.
                return
