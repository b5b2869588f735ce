"""A call that hangs in a C library ends the signer; one that is merely slow doesn't."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hal.call import Call, Cancel
from hal.errors import DeadlineExceeded, HallmarkError, KeyMissing, TokenAbsent
from hal.types import KeyType, TokenCondition, TokenState
from station.notify import Watchdog
from station.signer.overrun import EXIT_CODE, Overrun
from station.signer.supervisor import LOOP, Supervisor
from tests.fixtures_signer import REPOSITORY


@contextmanager
def watched(seconds: float, grace: float) -> Iterator[tuple[Overrun, threading.Event]]:
    gave_up = threading.Event()
    overrun = Overrun(seconds, grace, gave_up.set)
    try:
        yield overrun, gave_up
    finally:
        overrun.stop()


def test_a_call_within_its_deadline_and_grace_is_let_be() -> None:
    with watched(0.05, 5.0) as (overrun, gave_up), a_cancel() as cancel:
        with overrun.call("slow", cancel) as call, pytest.raises(DeadlineExceeded):
            call.pause(1)
        assert not gave_up.wait(0.05)


def test_a_call_that_overruns_its_grace_ends_the_process_though_others_go_on() -> None:
    with watched(0.02, 0.05) as (overrun, gave_up), a_cancel() as cancel, overrun.call("hangs", cancel):
        with overrun.call("fine", cancel, seconds=60):
            pass
        assert gave_up.wait(5)


@contextmanager
def a_cancel() -> Iterator[Cancel]:
    cancel = Cancel()
    try:
        yield cancel
    finally:
        cancel.close()


def test_the_process_really_ends_while_a_thread_hangs() -> None:
    code = (
        "import time, threading\n"
        "from hal.call import Cancel\n"
        "from station.signer.overrun import Overrun\n"
        "overrun = Overrun(0.05, 0.05)\n"
        "with overrun.call('C_Sign', Cancel()):\n"
        "    time.sleep(60)\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=False, timeout=30
    )
    assert done.returncode == EXIT_CODE
    assert time.monotonic() - began < 20


class ScriptedToken:
    """CaToken whose canary does what the script says, step by step."""

    def __init__(self, *script: HallmarkError | None) -> None:
        self.script = list(script)
        self.canaries = 0
        self.spki = b"the CA key"

    def state(self, call: Call) -> TokenState:
        return TokenState(TokenCondition.ABSENT if self.script else TokenCondition.READY, "token")

    def canary(self, call: Call) -> TokenState:
        self.canaries += 1
        if self.script and (step := self.script.pop(0)) is not None:
            raise step
        return self.state(call)

    def public_key(self, call: Call, label: str) -> bytes:
        return self.spki

    def make_key(self, call: Call, label: str, key_type: KeyType) -> bytes:
        raise AssertionError("a supervisor makes no keys")

    def sign(self, call: Call, label: str, data: bytes) -> bytes:
        raise AssertionError("only the canary key signs here")


def test_a_supervisor_finds_a_token_again_and_feeds_the_watchdog_only_by_its_rounds() -> None:
    sent: list[str] = []
    token = ScriptedToken(TokenAbsent("gone"), TokenAbsent("gone"))
    with watched(5, 5) as (overrun, _), a_cancel() as cancel:
        watchdog = Watchdog([LOOP], allowed=0.03, send=sent.append)
        supervisor = Supervisor(token, "ca", lambda: None, overrun, watchdog)
        assert supervisor.condition.problem == "not looked for yet"
        thread = threading.Thread(target=supervisor.run, args=(cancel,))
        thread.start()
        for _ in range(2000):
            if supervisor.condition.condition is TokenCondition.READY and sent:
                break
            time.sleep(0.005)
        cancel.set()
        thread.join(10)
        supervisor.close()
    assert supervisor.condition.condition is TokenCondition.READY
    assert supervisor.condition.problem == ""
    assert token.canaries >= 3
    assert set(sent) == {"WATCHDOG=1"}


def test_a_token_with_another_ca_key_than_the_certificates_is_not_ready() -> None:
    class Installed:
        spki = b"another key"

    class Active:
        label, authority = "ca", Installed()

    token = ScriptedToken()
    with watched(5, 5) as (overrun, _), a_cancel() as cancel:
        watchdog = Watchdog([LOOP], send=lambda _: None)
        supervisor = Supervisor(token, "ca", Active, overrun, watchdog)  # type: ignore[arg-type]
        with pytest.raises(KeyMissing, match="not the one of the installed CA certificate"):
            supervisor.check(cancel)
        assert supervisor.condition.condition is TokenCondition.KEY_MISSING
        token.spki = Installed.spki
        assert supervisor.check(cancel).condition is TokenCondition.READY
        supervisor.close()
