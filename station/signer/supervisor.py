"""The token's condition: looked at all the time, brought back after a loss, always ready to be told.

A canary signature, with a key of its own, shows that the session lives; the CA key is compared with the CA's
certificate. The driver initialises the module anew after a loss. A PIN that was refused is `pin`'s matter.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from hal.call import Call, Cancel
from hal.errors import HallmarkError, KeyMissing
from hal.interfaces import CaToken
from hal.types import TokenCondition
from station.notify import Watchdog
from station.signer.generations import Generation
from station.signer.overrun import Overrun

READY_SECONDS: Final = 20.0
"""Between two looks at a token that works: some sessions die when they idle for some minutes."""
LOST_SECONDS: Final = 1.0
"""Between two looks for one that doesn't."""
LOOP: Final = "supervisor"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Condition:
    """What `SignerState` says of the token."""

    condition: TokenCondition
    problem: str = ""
    hint: str = ""


class Supervisor:
    def __init__(
        self,
        token: CaToken,
        ca_key: str,
        active: Callable[[], Generation | None],
        overrun: Overrun,
        watchdog: Watchdog,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """`look` is called at each round, for what else has to be looked at all the time."""
        self._token, self._ca_key, self._active = token, ca_key, active
        self._overrun, self._watchdog, self._look = overrun, watchdog, look
        self._lock = threading.Lock()
        self._lost = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._seen = Condition(TokenCondition.ABSENT, "not looked for yet")

    @property
    def condition(self) -> Condition:
        """The last that was seen, at once."""
        return self._seen

    def check(self, cancel: Cancel) -> Condition:
        """A canary signature now. Raises what is wrong: TokenAbsent, PinRejected, KeyMissing ..."""
        try:
            with self._overrun.call("canary", cancel) as call:
                self._token.canary(call)
                self._check_ca_key(call)
        except HallmarkError as error:
            if not cancel.is_set():
                self._note(error)
            raise
        self._note(None)
        return self._seen

    def run(self, cancel: Cancel) -> None:
        """Looks again and again until `cancel` is set."""
        while not cancel.is_set():
            try:
                self.check(cancel)
                pause = READY_SECONDS
            except HallmarkError:
                pause = LOST_SECONDS  # noted, and logged when it was new
            self._look()
            self._watchdog.beat(LOOP)
            self._wait(cancel, min(pause, self._watchdog.interval))

    def close(self) -> None:
        """After `run` has ended and nobody checks any more."""
        os.close(self._lost)

    def _wait(self, cancel: Cancel, seconds: float) -> None:
        """Until the time is up, `cancel` is set, or somebody else's check has found the token lost."""
        poll = select.poll()
        poll.register(cancel.fileno(), select.POLLIN)
        poll.register(self._lost, select.POLLIN)
        if any(fd == self._lost for fd, _ in poll.poll(seconds * 1000)):
            os.eventfd_read(self._lost)
            cancel.wait(LOST_SECONDS)

    def _check_ca_key(self, call: Call) -> None:
        active = self._active()
        label = active.label if active else self._ca_key
        found = self._token.public_key(call, label)
        if active is not None and found != active.authority.spki:
            message = f"the key {label!r} in the token is not the one of the installed CA certificate"
            raise KeyMissing(message)

    def _note(self, error: HallmarkError | None) -> None:
        with self._lock:
            if error is None:
                now = Condition(TokenCondition.READY)
            else:
                condition = self._token.state(Call()).condition
                if condition is TokenCondition.READY:
                    condition = (
                        TokenCondition.KEY_MISSING if isinstance(error, KeyMissing) else TokenCondition.ABSENT
                    )
                now = Condition(condition, str(error), error.hint)
            before, self._seen = self._seen, now
        if now != before:
            if error is not None:
                os.eventfd_write(self._lost, 1)
            log = _log.info if error is None else _log.warning
            log("token", condition=now.condition.value, problem=now.problem)
