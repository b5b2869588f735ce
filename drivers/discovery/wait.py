"""The one wait of both ways of looking: for a descriptor, a time or the end, whichever is first."""

from __future__ import annotations

import select
import time

from hal.call import FOREVER, Call
from hal.errors import HallmarkError


def wait(call: Call, seconds: float | None = None, fd: int | None = None) -> bool:
    """False once the call's cancel is set; else true, as soon as `fd` is readable or `seconds` are over.

    Raises DeadlineExceeded at the call's deadline. Unlike `Call.pause`, a cancel is an ordinary end here: it is how a
    watch is meant to stop.
    """
    left = min(call.deadline - time.monotonic(), FOREVER if seconds is None else seconds)
    poll = select.poll()
    poll.register(call.cancel.fileno(), select.POLLIN)
    if fd is not None:
        poll.register(fd, select.POLLIN)
    poll.poll(None if left == FOREVER else max(0, int(left * 1000) + 1))
    try:
        call.check()
    except HallmarkError:
        if call.cancel.is_set():
            return False
        raise
    return True
