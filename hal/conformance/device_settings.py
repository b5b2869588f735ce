"""What every DeviceSettings promises: `check(open_)`. It leaves settings below `check/`. No test framework comes in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from hal.conformance.calls import Silence, honours_calls, working
from hal.interfaces import DeviceSettings

Open = Callable[[], AbstractContextManager[DeviceSettings]]

_LONGEST: Final = 256
_NEVER_SET: Final = "check/never-set"


def check(open_: Open, silence: Silence | None = None) -> None:
    """A device that keeps settings. `silence`: see `hal.conformance.calls`."""
    values = {"check/id-scope": "0ne00000001", "check/text": "Straße 7", "check/long": "v" * _LONGEST}
    with open_() as device:
        device.write_settings(working(), values)
        found = device.read_settings(working(), [*values, _NEVER_SET])
        assert found == values, "not what was written, or a setting that never was"
        device.write_settings(working(), {"check/text": "other"})
        assert device.read_settings(working(), ["check/text"]) == {"check/text": "other"}, "not replaced"
        honours_calls(lambda call: device.read_settings(call, ["check/text"]), silence)
        honours_calls(lambda call: device.write_settings(call, {"check/text": "again"}), silence)
    with open_() as device:
        expected = values | {"check/text": "again"}
        assert device.read_settings(working(), list(values)) == expected, "forgotten when opened again"
