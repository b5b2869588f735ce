"""What every Channel promises, checked against somebody at the other end: `check(bench)`.

The bench is the caller's: a wired loop, a second port, or a pseudo-terminal. No test framework comes in.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Final, Protocol

from hal.call import Call
from hal.conformance.calls import (
    SHORT,
    ends_at_its_cancel,
    ends_at_its_deadline,
    ends_when_cancelled,
    ends_when_expired,
    working,
)
from hal.errors import DeadlineExceeded, DeviceGone
from hal.interfaces import Channel

_ALL_OCTETS: Final = bytes(range(256))
_MUCH: Final = 96 * 1024
_ENDLESS: Final = 4 * 1024 * 1024


class Bench(Protocol):
    """The channel under test and its other end. Each `open` begins with a device that is there and silent."""

    def open(self) -> AbstractContextManager[Channel]: ...

    def send(self, data: bytes) -> None:
        """Says `data` at the other end."""

    def receive(self, count: int) -> bytes:
        """The next `count` octets that arrived at the other end."""

    def unplug(self) -> None:
        """Takes the device away while the channel is open."""


def check(bench: Bench) -> None:
    """All of the promises, one after the other."""
    passes_every_octet(bench)
    passes_much_in_order(bench)
    forgets_input(bench)
    waits_no_longer_than_the_call(bench)
    writes_no_longer_than_the_call(bench)
    tells_removal(bench)


def passes_every_octet(bench: Bench) -> None:
    """Nothing is translated, swallowed or taken for control; `limit` bounds each read."""
    with bench.open() as channel:
        bench.send(_ALL_OCTETS)
        assert _read(channel, len(_ALL_OCTETS), limit=7) == _ALL_OCTETS, "not what was sent"
        channel.write(working(), _ALL_OCTETS)
        assert bench.receive(len(_ALL_OCTETS)) == _ALL_OCTETS, "not what was written"


def passes_much_in_order(bench: Bench) -> None:
    """A write larger than any buffer is whole when it returns and the other end has read it."""
    data = b"".join(number.to_bytes(4, "big") for number in range(_MUCH // 4))
    with bench.open() as channel:
        arrived: list[bytes] = []
        reader = threading.Thread(target=lambda: arrived.append(bench.receive(len(data))))
        reader.start()
        try:
            channel.write(working(), data)
        finally:
            reader.join()
        assert arrived == [data], "a large write did not arrive as it was"


def forgets_input(bench: Bench) -> None:
    """What has arrived before `drop_input` is never read."""
    with bench.open() as channel:
        bench.send(b"ab")
        assert channel.read(working(), 1) == b"a", "the first octet was not the first sent"
        channel.drop_input()
        bench.send(b"c")
        assert channel.read(working(), 1) == b"c", "an octet survived drop_input"


def waits_no_longer_than_the_call(bench: Bench) -> None:
    """A read on a silent device."""
    with bench.open() as channel:

        def read(call: Call) -> object:
            return channel.read(call, 1)

        ends_when_expired(read)
        ends_when_cancelled(read)
        ends_at_its_deadline(read)
        ends_at_its_cancel(read)
        bench.send(b"x")
        assert channel.read(working(), 16) == b"x", "the channel doesn't work after a call that ended"


def writes_no_longer_than_the_call(bench: Bench) -> None:
    """A write to a device that takes nothing."""
    with bench.open() as channel:
        try:
            channel.write(Call.lasting(SHORT), bytes(_ENDLESS))
        except DeadlineExceeded:
            return
    message = f"{_ENDLESS} octets went to a device that takes none"
    raise AssertionError(message)


def tells_removal(bench: Bench) -> None:
    """DeviceGone for a read, and for what comes after it."""
    with bench.open() as channel:
        bench.unplug()
        for _ in range(2):
            try:
                channel.read(working(), 1)
            except DeviceGone:
                continue
            message = "a device that was taken away was read from"
            raise AssertionError(message)
        try:
            channel.write(working(), b"x")
        except DeviceGone:
            return
        message = "a device that was taken away was written to"
        raise AssertionError(message)


def _read(channel: Channel, count: int, limit: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = channel.read(working(), limit)
        assert 0 < len(piece) <= limit, f"a read of at most {limit} octets gave {len(piece)}"
        found += piece
    return found
