"""What every HAL call carries: deadline, cancel, progress."""

from __future__ import annotations

import os
import select
import threading
import time
from pathlib import Path

import pytest

from hal.call import Call, Cancel
from hal.errors import Aborted, DeadlineExceeded, DeviceGone


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_call_that_is_over_leaves_no_descriptor() -> None:
    before = open_descriptors()
    for _ in range(200):
        call = Call.lasting(1.0)
        call.cancel.fileno()
        call.cancel.set()
    assert open_descriptors() <= before + 1


def test_a_call_that_never_waits_on_a_port_costs_no_descriptor() -> None:
    before = open_descriptors()
    calls = [Call.lasting(1.0).within(0.5) for _ in range(200)]
    assert open_descriptors() <= before
    assert len(calls) == 200


@pytest.mark.parametrize("asked_first", [True, False])
def test_the_descriptor_is_readable_once_it_is_set(asked_first: bool) -> None:
    cancel = Cancel()
    if asked_first:
        assert not select.select([cancel], [], [], 0)[0]
    cancel.set()
    assert select.select([cancel], [], [], 0)[0]
    assert select.select([cancel], [], [], 0)[0]


def test_the_first_reason_wins() -> None:
    cancel = Cancel()
    cancel.set(DeviceGone("unplugged"))
    cancel.set(Aborted("later"))
    with pytest.raises(DeviceGone):
        Call(cancel=cancel).check()


def test_a_wait_on_a_silent_port_ends_with_the_cancel() -> None:
    reading, writing = os.pipe()
    try:
        call = Call.lasting(10.0)
        threading.Timer(0.05, call.cancel.set, [DeviceGone("unplugged")]).start()
        began = time.monotonic()
        with pytest.raises(DeviceGone):
            call.wait_readable(reading)
        assert time.monotonic() - began < 5
    finally:
        os.close(reading)
        os.close(writing)


def test_a_wait_ends_with_the_deadline_and_a_part_of_a_call_ends_earlier() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(DeadlineExceeded):
            Call.lasting(10.0).within(0.05).wait_readable(reading)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_port_that_has_octets_is_readable_at_once() -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"x")
        Call.lasting(5.0).wait_readable(reading)
        Call.lasting(5.0).wait_writable(writing)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_pause_is_no_longer_than_the_call() -> None:
    with pytest.raises(DeadlineExceeded):
        Call.lasting(0.02).pause(60.0)
