"""What every DeviceIdentity promises: `check(open_)`. No test framework comes in."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from hal.conformance.calls import Silence, honours_calls, working
from hal.interfaces import DeviceIdentity

Open = Callable[[], AbstractContextManager[DeviceIdentity]]

TEXT_LIMIT: Final = 128
MAC_LIMIT: Final = 64
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}|[0-9a-f]{2}(:[0-9a-f]{2}){7}")


def check(open_: Open, silence: Silence | None = None) -> None:
    """A device that is there and answers. `silence`: see `hal.conformance.calls`."""
    with open_() as device:
        first = device.identify(working())
        texts = [text for text in (first.board, first.serial, first.firmware) if text is not None]
        assert first.board, "a board without a name"
        for text in texts:
            assert 0 < len(text) <= TEXT_LIMIT, f"{len(text)} characters of identity"
            assert text.isascii(), "identity that is not ASCII"
            assert text.isprintable(), "identity that can't be printed"
        assert len(first.macs) <= MAC_LIMIT, f"{len(first.macs)} MAC addresses"
        for mac in first.macs:
            assert _MAC.fullmatch(mac), f"{mac!r} is no MAC address in lower case with colons"
        honours_calls(device.identify, silence)
        assert device.identify(working()) == first, "the board is another one when it is asked again"
    with open_() as device:
        assert device.identify(working()) == first, "the board is another one when it is opened again"
