"""What every HAL call promises about its `Call`: shared by the contract tests of the interfaces.

`action` makes one harmless call on the driver under test. `silence`, where the caller has a way, is a context
in which the device hears but doesn't answer; what it has to say may come late, when the context is left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from hal.call import Call, Cancel
from hal.errors import Aborted, DeadlineExceeded

Action = Callable[[Call], object]
Silence = Callable[[], AbstractContextManager[None]]

PROMPT: Final = 1.0
"""Seconds in which a call ends after its deadline or cancel."""
SHORT: Final = 0.2
"""Seconds given to a call that can't succeed."""
WORKING: Final = 120.0
"""Seconds given to a call that has to succeed."""


def working() -> Call:
    """A call with time enough."""
    return Call.lasting(WORKING)


def honours_calls(action: Action, silence: Silence | None = None) -> None:
    """Deadline and cancel end the call promptly with what they say, and afterwards the same call works again."""
    ends_when_expired(action)
    ends_when_cancelled(action)
    action(working())
    if silence is None:
        return
    with silence():
        ends_at_its_deadline(action)
    action(working())
    with silence():
        ends_at_its_cancel(action)
    action(working())


def ends_when_expired(action: Action) -> None:
    """A deadline that has passed already."""
    began = time.monotonic()
    error = _raised(action, Call(deadline=began - 1))
    assert isinstance(error, DeadlineExceeded), (
        f"an expired call raised {error!r} instead of DeadlineExceeded"
    )
    assert time.monotonic() - began < PROMPT, "an expired call took its time"


def ends_when_cancelled(action: Action) -> None:
    """A cancel that was set before."""
    reason = Aborted("the contract test cancelled it")
    cancel = Cancel()
    try:
        cancel.set(reason)
        began = time.monotonic()
        error = _raised(action, Call(deadline=began + WORKING, cancel=cancel))
        assert error is reason, f"a cancelled call raised {error!r} instead of the cancel's reason"
        assert time.monotonic() - began < PROMPT, "a cancelled call took its time"
    finally:
        cancel.close()


def ends_at_its_deadline(action: Action) -> None:
    """On a silent device."""
    began = time.monotonic()
    error = _raised(action, Call(deadline=began + SHORT))
    took = time.monotonic() - began
    assert isinstance(error, DeadlineExceeded), f"a silent device made the call raise {error!r}"
    assert took >= SHORT, "the call gave up before its deadline"
    assert took < SHORT + PROMPT, f"the call took {took:.2f} s with a deadline after {SHORT} s"


def ends_at_its_cancel(action: Action) -> None:
    """On a silent device."""
    reason = Aborted("the contract test cancelled it")
    cancel = Cancel()
    timer = threading.Timer(SHORT, cancel.set, [reason])
    try:
        timer.start()
        began = time.monotonic()
        error = _raised(action, Call(deadline=began + WORKING, cancel=cancel))
        assert error is reason, f"a cancelled call raised {error!r} instead of the cancel's reason"
        assert time.monotonic() - began < SHORT + PROMPT, "the call went on after its cancel"
    finally:
        timer.join()
        cancel.close()


def _raised(action: Action, call: Call) -> BaseException | None:
    try:
        action(call)
    except Exception as error:  # noqa: BLE001 - whatever it raises is judged by the caller
        return error
    return None
