"""The emulated board's line keeps a UART's pace, and its framing survives whatever a line brings."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from smp import packet

from drivers.emulated.board.frames import Deframer, frame
from drivers.emulated.board.uart import ADAPTER_PACKET, Adapter, Line


def line(baud: int = 9600, noise: float = 0.0, loss: float = 0.0) -> Line:
    return Line(baud, noise, loss, random.Random(1))


def test_octets_arrive_when_their_stop_bit_has_passed() -> None:
    wire = line(baud=10)  # one octet a second
    wire.push(b"abc", 100.0)
    assert wire.pop(100.4) == b""
    assert wire.pop(101.1) == b"a"
    assert wire.pop(103.0) == b"bc"
    assert wire.due(103.0) is None


def test_a_late_reader_does_not_delay_what_follows() -> None:
    wire = line(baud=10)
    wire.push(b"abcd", 0.0)
    assert wire.pop(2.9) == b"ab"
    wire.push(b"e", 2.9)
    assert wire.pop(5.0) == b"cde"


def test_an_idle_line_saves_no_time_for_later() -> None:
    wire = line(baud=10)
    wire.push(b"a", 0.0)
    assert wire.pop(50.0) == b"a"
    wire.push(b"bc", 50.0)
    assert wire.pop(51.0) == b"b"


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=50), st.floats(0, 0.1)), max_size=20))
def test_all_octets_come_out_in_order_and_never_faster_than_the_baud_rate(
    writes: list[tuple[bytes, float]],
) -> None:
    wire, now, sent, got = line(), 0.0, b"", b""
    for data, gap in writes:
        wire.push(data, now)
        sent += data
        now += gap
        got += wire.pop(now)
        assert len(got) <= now * 960 + 1
    while (due := wire.due(now)) is not None:
        assert due > now - 1e-9
        now = max(now, due)
        got += wire.pop(now)
    assert got == sent
    assert len(wire) == 0


def test_an_unpaced_line_delivers_at_once() -> None:
    wire = line(baud=0)
    wire.push(b"abc", 5.0)
    assert wire.due(5.0) == 5.0
    assert wire.pop(5.0) == b"abc"


def test_an_adapter_holds_back_less_than_a_packet_until_its_timer_ticks() -> None:
    adapter = Adapter(0.016)
    adapter.push(b"x" * ADAPTER_PACKET, 10.0)
    assert len(adapter.pop(10.0)) == ADAPTER_PACKET
    adapter.push(b"abc", 10.001)
    assert adapter.pop(10.002) == b""
    due = adapter.due()
    assert due is not None
    assert 10.002 < due <= 10.017
    adapter.push(b"d", 10.003)
    assert adapter.due() == due
    assert adapter.pop(due) == b"abcd"
    assert adapter.due() is None


def test_an_adapter_without_a_timer_holds_nothing_back() -> None:
    adapter = Adapter(0.0)
    for now in (1.0, 1.0, 2.5):
        adapter.push(b"abc", now)
        assert adapter.pop(now) == b"abc"


def test_noise_and_loss_have_their_rates_and_repeat_with_the_seed() -> None:
    sent = bytes(20000)
    results = []
    for _ in range(2):
        wire = line(baud=0, noise=0.1, loss=0.05)
        wire.push(sent, 0.0)
        results.append(wire.pop(0.0))
    assert results[0] == results[1]
    assert len(sent) - len(results[0]) == pytest.approx(1000, rel=0.2)
    flipped = [octet for octet in results[0] if octet]
    assert len(flipped) == pytest.approx(1900, rel=0.2)
    assert all(octet.bit_count() == 1 for octet in flipped)


@given(st.binary(min_size=1, max_size=2000), st.integers(8, 300))
def test_a_frame_is_read_by_the_library_and_by_us(message: bytes, line_length: int) -> None:
    lines = frame(message, line_length)
    assert all(len(part) <= max(line_length, 7) for part in lines.splitlines(keepends=True))
    assert Deframer(2000).feed(lines) == [message]
    decoder = packet.decode()
    next(decoder)
    with pytest.raises(StopIteration) as done:
        for part in lines.splitlines(keepends=True):
            decoder.send(part)
    assert done.value.value == message


@given(st.binary(min_size=1, max_size=500))
def test_what_the_library_sends_is_read(message: bytes) -> None:
    assert Deframer(500).feed(b"".join(packet.encode(message))) == [message]


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_garbage_is_dropped_and_the_next_message_is_read(pieces: list[bytes]) -> None:
    deframer = Deframer(256)
    for piece in pieces:
        deframer.feed(piece)
    deframer.feed(b"\n")
    assert deframer.feed(frame(b"hello, board", 127)) == [b"hello, board"]


@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_damaged_frame_never_gives_another_message(message: bytes, data: st.DataObject) -> None:
    lines = bytearray(frame(message, 64))
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] ^= 1 << data.draw(st.integers(0, 7))
    assert all(found == message for found in Deframer(256).feed(bytes(lines)))


def test_a_line_without_end_takes_bounded_memory() -> None:
    deframer = Deframer(256)
    for _ in range(100):
        assert deframer.feed(b"\x06\x09" + b"A" * 10000) == []
    assert len(deframer._line) <= 8192
    assert deframer.feed(b"\n" + frame(b"x", 127)) == [b"x"]
