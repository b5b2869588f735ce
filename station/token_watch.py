"""What the station knows of the CA token: asked of the signer all the time, so that its state is always visible."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog

from hal.errors import HallmarkError
from station import messages
from station.signer_client import SignerClient
from station.status.view import TokenView

LOOK_SECONDS: Final = 1.0


class TokenWatch:
    """`start` it; `view` and `issuers` are what was seen last."""

    def __init__(self, signer: SignerClient, answered: Callable[[], None] = lambda: None) -> None:
        """`answered` is called once the signer has answered, and again until it doesn't raise."""
        self._signer, self._answered, self._due = signer, answered, True
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._state: messages.SignerState | None = None
        self._problem: HallmarkError | None = None
        self._log = structlog.get_logger()

    def start(self) -> None:
        threading.Thread(target=self._run, name="token", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def check(self) -> None:
        """A canary signature now, as before each unit; raises what is wrong with the token."""
        self._keep(self._signer.check_token(), None)

    def issuers(self) -> tuple[bytes, ...]:
        """Every issuing CA's certificate there ever was, DER; empty until the signer has answered once."""
        with self._lock:
            return tuple(self._state.issuers) if self._state else ()

    def view(self) -> TokenView:
        with self._lock:
            state, problem = self._state, self._problem
        if problem is not None:
            return TokenView(condition="unknown", problem=str(problem), hint=problem.hint)
        if state is None:
            return TokenView(condition="unknown", problem="the signer has not answered yet")
        return TokenView(
            condition=state.condition,
            label=state.label,
            subject=state.subject,
            not_after=state.not_after,
            issued=state.issued,
            problem=state.problem,
            hint=state.hint,
        )

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._keep(self._signer.state(), None)
                if self._due:
                    self._answered()
                    self._due = False
            except HallmarkError as error:
                self._keep(None, error)
            self._stop.wait(LOOK_SECONDS)

    def _keep(self, state: messages.SignerState | None, problem: HallmarkError | None) -> None:
        with self._lock:
            before, self._state, self._problem = self._state, state or self._state, problem
        if state is not None and (before is None or before.condition != state.condition):
            self._log.info("token", condition=state.condition, label=state.label, reason=state.problem)
