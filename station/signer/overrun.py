"""Calls into the token, with a deadline that holds even when a C library hangs.

A thread inside a PKCS#11 module can't be stopped, and Python has no time-outs there. So a call that overruns its
deadline by more than the grace ends the process, which systemd starts again; the ledger makes that harmless.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import structlog

from hal.call import Call, Cancel

CALL_SECONDS: Final = 15.0
"""For one token call, with its wait in the queue and a new login. A USB token needs 1 to 3 s for an RSA signature."""
GRACE_SECONDS: Final = 10.0
EXIT_CODE: Final = 70
"""EX_SOFTWARE, sysexits.h."""

_log = structlog.get_logger()


def _give_up() -> None:
    os._exit(EXIT_CODE)


class Overrun:
    """Gives calls their deadline, and watches those that run."""

    def __init__(
        self,
        seconds: float = CALL_SECONDS,
        grace: float = GRACE_SECONDS,
        give_up: Callable[[], None] = _give_up,
    ) -> None:
        self._seconds, self._grace, self._give_up = seconds, grace, give_up
        self._running: dict[int, tuple[float, str]] = {}
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._watch, name="overrun", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def call(self, what: str, cancel: Cancel, seconds: float | None = None) -> Iterator[Call]:
        """A call for one piece of token work, named `what` in the log."""
        call = Call(deadline=time.monotonic() + (seconds or self._seconds), cancel=cancel)
        number = next(self._numbers)
        with self._changed:
            self._running[number] = call.deadline + self._grace, what
            self._changed.notify()
        try:
            yield call
        finally:
            with self._changed:
                del self._running[number]

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _watch(self) -> None:
        with self._changed:
            while not self._stopped:
                limit, what = min(self._running.values(), default=(None, ""))
                if limit is not None and (late := time.monotonic() - limit) >= 0:
                    _log.critical("the token hangs; the signer gives itself up", call=what, seconds_late=late)
                    self._give_up()
                    return
                self._changed.wait(None if limit is None else limit - time.monotonic())
