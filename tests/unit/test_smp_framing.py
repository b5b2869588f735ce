"""Framing: whole messages or nothing, whatever the wire brings, and the other implementation reads what we write."""

from __future__ import annotations

import base64
import itertools
import logging
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from smp import packet
from smp.image_management import ImageUploadWriteRequest

from drivers.smp.framing import LINE, MESSAGE_LIMIT, Deframer, encode

messages = st.binary(min_size=1, max_size=600)
# Everything but what begins a frame: console text, power-up garbage, cut lines.
garbage = st.binary(max_size=80).filter(lambda data: b"\x06\x09" not in data and not data.endswith(b"\x06"))


def fed(deframer: Deframer, pieces: Iterable[bytes]) -> list[bytes]:
    return [message for piece in pieces for message in deframer.feed(piece)]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(borders)]


@given(st.lists(messages, max_size=4), st.lists(st.integers(0, 10_000), max_size=12), st.integers(16, 400))
def test_messages_survive_any_chunking(sent: list[bytes], places: list[int], line: int) -> None:
    wire = b"".join(encode(message, line) for message in sent)
    assert fed(Deframer(), cut(wire, places)) == sent


@given(messages)
def test_the_library_reads_what_we_write_line_by_line(message: bytes) -> None:
    lines = [line + b"\n" for line in encode(message).split(b"\n")[:-1]]
    assert all(len(line) <= LINE for line in lines)
    decoder = packet.decode()
    next(decoder)
    with pytest.raises(StopIteration) as done:
        for line in lines:
            decoder.send(line)
    assert done.value.value == message


@given(st.lists(st.tuples(garbage, messages), min_size=1, max_size=4))
def test_garbage_before_a_frame_costs_no_frame(parts: list[tuple[bytes, bytes]]) -> None:
    wire = b"".join(noise + encode(message) for noise, message in parts)
    assert fed(Deframer(), [wire]) == [message for _, message in parts]


@given(messages, messages, st.data())
@example(b"a" * 200, b"b", None).via("an example without drawn data")
def test_a_flipped_bit_loses_a_frame_and_never_changes_one(first: bytes, second: bytes, data: object) -> None:
    wire = bytearray(encode(first))
    place = data.draw(st.integers(0, len(wire) - 1)) if isinstance(data, st.DataObject) else 100
    bit = data.draw(st.integers(0, 7)) if isinstance(data, st.DataObject) else 3
    wire[place] ^= 1 << bit
    # What follows begins on a line of its own: the board's next answer, after our newline.
    found = fed(Deframer(), [bytes(wire), b"\n", encode(second)])
    assert found in ([second], [first, second])


@given(st.binary(max_size=3000), st.lists(st.integers(0, 10_000), max_size=5))
def test_noise_never_becomes_a_message_with_a_wrong_crc(noise: bytes, places: list[int]) -> None:
    for message in fed(Deframer(), cut(noise, places)):
        assert encode(message, 2 * len(message) + 64).strip() in noise


@pytest.mark.parametrize("length", [0, 1, 2, MESSAGE_LIMIT + 3, 0xFFFF])
def test_a_length_out_of_bounds_is_a_lost_frame(length: int) -> None:
    deframer = Deframer()
    line = packet.START_DELIMITER + base64.b64encode(length.to_bytes(2, "big") + bytes(10)) + b"\n"
    assert fed(deframer, [line, encode(b"next")]) == [b"next"]
    assert (deframer.lost, deframer.last_fault) == (1, "the length it gives is out of bounds")


def test_the_largest_message_passes() -> None:
    message = bytes(MESSAGE_LIMIT)
    assert fed(Deframer(), [encode(message)]) == [message]
    assert fed(Deframer(), [encode(message, MESSAGE_LIMIT * 2)]) == [message]


def test_a_line_without_end_takes_no_memory() -> None:
    deframer = Deframer()
    for _ in range(100):
        assert fed(deframer, [b"\x06\x09" + b"A" * 60_000]) == []
        assert len(deframer._line) <= 2 * MESSAGE_LIMIT
    assert fed(deframer, [b"\n", encode(b"next")]) == [b"next"]


def test_a_frame_that_never_ends_is_given_up_for_the_next() -> None:
    deframer = Deframer()
    begun = encode(b"x" * 300).split(b"\n")[0] + b"\n"
    assert fed(deframer, [begun, encode(b"next")]) == [b"next"]
    assert deframer.lost == 1


def test_console_lines_between_the_lines_of_a_frame_are_passed_over() -> None:
    lines = encode(b"x" * 300).split(b"\n")[:-1]
    wire = b"\n".join(itertools.chain.from_iterable((line, b"[00:00:01] <inf> app: hello") for line in lines))
    assert fed(Deframer(), [wire + b"\n"]) == [b"x" * 300]


def test_terminals_that_send_carriage_returns_are_understood() -> None:
    assert fed(Deframer(), [encode(b"x" * 300).replace(b"\n", b"\r\n")]) == [b"x" * 300]


def test_payloads_stay_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        encode(bytes(ImageUploadWriteRequest(off=0, data=b"payload", len=7)))
    assert caplog.records == []
