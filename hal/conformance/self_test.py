"""What every SelfTest promises: `check(open_)`. No test framework comes in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from hal.conformance.calls import Silence, honours_calls, working
from hal.interfaces import SelfTest

Open = Callable[[], AbstractContextManager[SelfTest]]

TEXT_LIMIT: Final = 256


def check(open_: Open, silence: Silence | None = None) -> None:
    """A device whose tests may be run more than once. `silence`: see `hal.conformance.calls`."""
    with open_() as device:
        results = device.self_test(working())
        names = [result.name for result in results]
        assert len(set(names)) == len(names), "two results of one name"
        for result in results:
            assert 0 < len(result.name) <= TEXT_LIMIT, "a result without a name, or with a long one"
            assert len(result.detail) <= TEXT_LIMIT, "a detail that is too long"
            assert (result.name + result.detail).isprintable(), "text that can't be printed"
        honours_calls(device.self_test, silence)
        assert [result.name for result in device.self_test(working())] == names, "other tests than before"
