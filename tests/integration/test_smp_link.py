"""The SMP link against a board that loses, delays, damages and invents answers: a responder on a pseudo-terminal."""

from __future__ import annotations

import hashlib
import os
import select
import struct
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import cbor2
import pytest

from drivers.emulated.image import build
from drivers.serial.port import SerialPort
from drivers.smp import vendor
from drivers.smp.driver import board
from drivers.smp.framing import Deframer, encode
from drivers.smp.settings import Settings
from hal.call import Call, Cancel
from hal.errors import (
    Aborted,
    ConfigError,
    DeadlineExceeded,
    DeviceRefused,
    FlashRejected,
    ProtocolViolation,
    VerifyMismatch,
)
from hal.interfaces import DeviceIdentity, FirmwareTarget, TpmTransport
from hal.types import FirmwareImage

HEADER = struct.Struct("!BBHHBB")
ECHO, PARAMETERS = (0, 0), (0, 6)
STATE, UPLOAD = (1, 0), (1, 1)
IDENTIFY, TPM = (vendor.GROUP, 0), (vendor.GROUP, 1)
QUICK = Settings(timeout=0.15, erase_timeout=0.3, sync_timeout=1, sync_interval=0.1, tries=4)
RESPONSE = bytes.fromhex("80010000000a00000000")
COMMAND = bytes.fromhex("80010000000c000001440000")

Fields = dict[str, Any]
Handler = Callable[["Responder", int, Fields], Fields | bytes | None]


class Responder:
    """Answers by `handlers`: a map, whole octets for the wire, or None for silence. Echo and parameters work."""

    def __init__(self, handlers: dict[tuple[int, int], Handler], buffer: int = 512, count: int = 4) -> None:
        self.handlers: dict[tuple[int, int], Handler] = {
            ECHO: lambda _board, _number, fields: {"r": fields["d"]},
            PARAMETERS: lambda _board, _number, _fields: {"buf_size": buffer, "buf_count": count},
        } | handlers
        self.seen: list[tuple[int, int]] = []
        self.buffer = buffer
        self.late: list[bytes] = []
        self.framed = b""
        self._master, slave = os.openpty()
        tty.setraw(slave)
        self._slave = slave
        self.path = os.ttyname(slave)
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join()
        for fd in (self._stop, self._master, self._slave):
            os.close(fd)

    def send(self, data: bytes) -> None:
        os.write(self._master, data)

    def count(self, command: tuple[int, int]) -> int:
        return self.seen.count(command)

    def _run(self) -> None:
        deframer = Deframer()
        while True:
            ready, _, _ = select.select([self._master, self._stop], [], [])
            if self._stop in ready:
                return
            for message in deframer.feed(os.read(self._master, 65536)):
                self._answer(message)

    def _answer(self, message: bytes) -> None:
        assert len(message) + 4 <= self.buffer, "a request larger than the buffer"
        first, flags, _, group, sequence, command = HEADER.unpack_from(message)
        key = (group, command)
        self.seen.append(key)

        def framed(content: Fields) -> bytes:
            body = cbor2.dumps(content)
            return encode(HEADER.pack(first + 1, flags, len(body), group, sequence, command) + body)

        self.framed = framed(IDENTITY)
        handler = self.handlers.get(key, lambda _board, _number, _fields: {"rc": 8})
        answer = handler(self, self.count(key), cbor2.loads(message[HEADER.size :]))
        if isinstance(answer, dict):
            answer = framed(answer)
        if answer is not None:
            self.send(answer)


IDENTITY = {"v": 1, "board": "gw-200"}


@contextmanager
def attached(
    handlers: dict[tuple[int, int], Handler], settings: Settings = QUICK, **options: int
) -> Iterator[tuple[Responder, dict[type, Any]]]:
    responder = Responder(handlers, **options)
    try:
        port = SerialPort(responder.path, 115200)
        try:
            yield responder, cast("dict[type, Any]", board(port, settings))
        finally:
            port.close()
    finally:
        responder.close()


def test_a_lost_answer_is_asked_for_again() -> None:
    with attached({IDENTIFY: lambda _b, number, _f: None if number == 1 else IDENTITY}) as (
        responder,
        offered,
    ):
        assert offered[DeviceIdentity].identify(Call.lasting(5)).board == "gw-200"
        assert responder.count(IDENTIFY) == 2


def test_a_late_answer_is_not_taken_for_the_next() -> None:
    def identify(responder: Responder, number: int, _fields: Fields) -> Fields | bytes | None:
        if number == 1:
            responder.late.append(responder.framed)
            return None
        # The late one comes first, then the right one: told apart by their sequence numbers.
        responder.send(responder.late[0])
        return {"v": 1, "board": "second"}

    with attached({IDENTIFY: identify}) as (_, offered):
        with pytest.raises(DeadlineExceeded):
            offered[DeviceIdentity].identify(Call.lasting(0.1))
        assert offered[DeviceIdentity].identify(Call.lasting(5)).board == "second"


def test_silence_is_a_deadline_and_damage_a_violation() -> None:
    with attached({IDENTIFY: lambda _b, _n, _f: None}) as (responder, offered):
        with pytest.raises(DeadlineExceeded, match="did not answer identify"):
            offered[DeviceIdentity].identify(Call.lasting(9))
        assert responder.count(IDENTIFY) == QUICK.tries
    damaged = encode(b"x" * 20).replace(b"e", b"f")
    with (
        attached({IDENTIFY: lambda _b, _n, _f: damaged}) as (_, offered),
        pytest.raises(ProtocolViolation, match="CRC is wrong"),
    ):
        offered[DeviceIdentity].identify(Call.lasting(9))


def test_the_link_waits_for_a_board_that_garbles_and_ignores_the_first_requests() -> None:
    def echo(responder: Responder, number: int, fields: Fields) -> Fields | None:
        responder.send(bytes(range(128, 200)))
        return {"r": fields["d"]} if number > 3 else None

    with attached({ECHO: echo, IDENTIFY: lambda _b, _n, _f: IDENTITY}) as (_, offered):
        assert offered[DeviceIdentity].identify(Call.lasting(5)).board == "gw-200"


def test_a_board_that_knows_neither_echo_nor_parameters_is_served() -> None:
    handlers: dict[tuple[int, int], Handler] = {
        ECHO: lambda _b, _n, _f: {"rc": 8},
        PARAMETERS: lambda _b, _n, _f: {"rc": 8},
        TPM: lambda _b, _n, fields: {"id": fields["id"], "off": 0, "len": 10, "d": RESPONSE},
    }
    with attached(handlers) as (_, offered):
        assert offered[TpmTransport].transmit(Call.lasting(5), COMMAND) == RESPONSE


def test_a_board_that_never_answers_costs_no_more_than_its_time() -> None:
    with attached({ECHO: lambda _b, _n, _f: None}) as (_, offered):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="echo"):
            offered[DeviceIdentity].identify(Call.lasting(60))
        assert QUICK.sync_timeout <= time.monotonic() - began < QUICK.sync_timeout + 1


@pytest.mark.parametrize("noise", [b"\x06\x09AAAA" * 50, b"boot: \xff\x00\n" * 40], ids=["frames", "lines"])
def test_endless_noise_ends_at_the_deadline_and_at_the_cancel(noise: bytes) -> None:
    def flood(responder: Responder, _number: int, _fields: Fields) -> None:
        ended = time.monotonic() + 0.5
        while time.monotonic() < ended:
            _, writable, _ = select.select([], [responder._master], [], 0.05)
            if writable:
                os.write(responder._master, noise)

    with attached({IDENTIFY: flood}) as (_, offered):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            offered[DeviceIdentity].identify(Call.lasting(0.3))
        assert time.monotonic() - began < 0.6
        cancel, reason = Cancel(), Aborted("drain")
        timer = threading.Timer(0.2, cancel.set, [reason])
        timer.start()
        with pytest.raises(Aborted) as caught:
            offered[DeviceIdentity].identify(Call(deadline=time.monotonic() + 9, cancel=cancel))
        assert caught.value is reason
        timer.join()
        cancel.close()


def test_an_answer_that_is_whole_but_makes_no_sense_is_a_violation_and_the_next_call_works() -> None:
    def identify(_responder: Responder, number: int, _fields: Fields) -> Fields:
        return {"v": 1, "board": 7} if number == 1 else IDENTITY

    with attached({IDENTIFY: identify}) as (_, offered):
        with pytest.raises(ProtocolViolation, match="'board'"):
            offered[DeviceIdentity].identify(Call.lasting(5))
        assert offered[DeviceIdentity].identify(Call.lasting(5)).board == "gw-200"


# --- transactions ------------------------------------------------------------------------------------------------


class TransactingTpm:
    """The board's rules of docs/vendor-group.md, in small. `lose` says which answers get lost."""

    def __init__(self, lose: Callable[[int], bool] = lambda _number: False, piece: int = 100) -> None:
        self.lose, self.piece = lose, piece
        self.id = -1
        self.held = b""
        self.result: bytes | None = None
        self.executed: list[bytes] = []

    def __call__(self, _responder: Responder, number: int, fields: Fields) -> Fields | None:
        answer = self._answer(fields)
        return None if self.lose(number) else answer

    def _answer(self, fields: Fields) -> Fields:
        if "d" not in fields:
            return self._piece(fields["off"])
        if fields["id"] != self.id:
            if fields["off"]:
                return {"err": {"group": vendor.GROUP, "rc": 7}}
            self.id, self.held, self.result = fields["id"], b"", None
        if self.result is None and fields["off"] == len(self.held):
            self.held += fields["d"]
        if self.result is None and len(self.held) == fields["len"]:
            self.executed.append(self.held)
            self.result = RESPONSE[:2] + struct.pack(">I", len(self.held)) + self.held[6:]
        return self._piece(0) if self.result is not None else {"id": self.id, "off": len(self.held)}

    def _piece(self, offset: int) -> Fields:
        assert self.result is not None
        piece = self.result[offset : offset + self.piece]
        return {"id": self.id, "off": offset, "len": len(self.result), "d": piece}


def long_command(number: int) -> bytes:
    return struct.pack(">HII", 0x8001, 4096, 0x17B) + bytes([number]) * (4096 - 10)


@pytest.mark.parametrize("every", [0, 3, 2], ids=["nothing lost", "each third lost", "each second lost"])
def test_a_tpm_command_in_pieces_runs_once_whatever_answers_get_lost(every: int) -> None:
    tpm = TransactingTpm(lambda number: bool(every) and number % every == 0, piece=300)
    quicker = Settings(timeout=0.03, sync_interval=0.1, sync_timeout=2, tries=6)
    with attached({TPM: tpm}, quicker, buffer=1024) as (_, offered):
        for number in range(2):
            command = long_command(number)
            assert offered[TpmTransport].transmit(Call.lasting(20), command) == command
        assert tpm.executed == [long_command(0), long_command(1)]


def test_a_busy_board_is_asked_until_it_is_done() -> None:
    tpm = TransactingTpm()

    def busy(responder: Responder, number: int, fields: Fields) -> Fields | None:
        return {"rc": 10} if number < 5 else tpm(responder, number, fields)

    with attached({TPM: busy}) as (_, offered):
        assert offered[TpmTransport].transmit(Call.lasting(5), COMMAND) == RESPONSE[:2] + struct.pack(
            ">I", len(COMMAND)
        ) + COMMAND.removeprefix(COMMAND[:6])
    with attached({TPM: lambda _b, _n, _f: {"rc": 10}}) as (_, offered), pytest.raises(DeadlineExceeded):
        offered[TpmTransport].transmit(Call.lasting(0.3), COMMAND)


def test_a_board_that_was_reset_in_between_is_a_violation() -> None:
    forgot = {"err": {"group": vendor.GROUP, "rc": int(vendor.Err.UNKNOWN_TRANSACTION)}}
    with (
        attached({TPM: lambda _b, _n, _f: forgot}) as (_, offered),
        pytest.raises(ProtocolViolation, match="reset meanwhile"),
    ):
        offered[TpmTransport].transmit(Call.lasting(5), COMMAND)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 5, "off": 0, "len": 10, "d": RESPONSE},
        {"off": 12},
        {"off": 0},
        {"off": 4, "len": 10, "d": RESPONSE},
        {"off": 0, "len": 4, "d": RESPONSE},
        {"off": 0, "len": 5000, "d": RESPONSE},
        {"off": 0, "len": 9, "d": RESPONSE[:9]},
        {"off": 0, "len": 0, "d": b""},
    ],
)
def test_a_wrong_piece_is_a_violation(wrong: Fields) -> None:
    with (
        attached({TPM: lambda _b, _n, fields: {"id": fields["id"]} | wrong}) as (_, offered),
        pytest.raises(ProtocolViolation),
    ):
        offered[TpmTransport].transmit(Call.lasting(5), COMMAND)


# --- uploads -----------------------------------------------------------------------------------------------------


class Slot:
    """An image slot as Zephyr's img_mgmt behaves. `deaf`: numbers of upload requests that never arrive; `mute`: those
    whose answer is lost; `restart`: those before which the board forgets the upload."""

    def __init__(
        self, deaf: frozenset[int], mute: frozenset[int], restart: frozenset[int] = frozenset()
    ) -> None:
        self.deaf, self.mute, self.restart = deaf, mute, restart
        self.data, self.size, self.whole = b"", 0, b""
        self.arrived = 0

    def upload(self, _responder: Responder, number: int, fields: Fields) -> Fields | None:
        if number in self.deaf:
            return None
        if number in self.restart:
            self.data = b""
        self.arrived += 1
        if fields["off"] == 0:
            self.data, self.size = b"", fields["len"]
        if fields["off"] == len(self.data):
            self.data += fields["data"]
        answer: Fields = {"rc": 0, "off": len(self.data)}
        if self.size and len(self.data) == self.size:
            self.whole, self.data = self.data, b""
            answer["match"] = True
        return None if number in self.mute else answer

    def state(self, _responder: Responder, _number: int, _fields: Fields) -> Fields:
        if not self.whole:
            return {"images": []}
        digest = hashlib.sha256(self.whole[: 0x200 + len(BODY)]).digest()
        return {"images": [{"slot": 1, "version": "1.4.2", "hash": digest, "novel": 1}], "splitStatus": 0}


BODY = hashlib.sha256(b"body").digest() * 500
IMAGE = FirmwareImage("gw.bin", build("1.4.2", BODY), bytes(32), "1.4.2")
LAST = 35  # upload requests that one upload takes with this image and buffer


@pytest.mark.parametrize("count", [1, 4], ids=["one buffer", "four buffers"])
@pytest.mark.parametrize(
    ("deaf", "mute", "restart"),
    [
        ((), (), ()),
        ((2, 9), (), ()),
        ((), (5, 6, 20), ()),
        ((1,), (2,), ()),
        ((7, 8, 9), (15,), ()),
        ((), (), (12,)),
        ((LAST,), (), ()),
        ((), (LAST,), ()),
    ],
    ids=[
        "nothing",
        "requests",
        "answers",
        "first",
        "a whole window",
        "a restart",
        "last request",
        "last answer",
    ],
)
def test_an_upload_survives_the_loss_of(
    deaf: tuple[int, ...], mute: tuple[int, ...], restart: tuple[int, ...], count: int
) -> None:
    slot = Slot(frozenset(deaf), frozenset(mute), frozenset(restart))
    with attached({UPLOAD: slot.upload, STATE: slot.state}, count=count) as (responder, offered):
        offered[FirmwareTarget].write(Call.lasting(20), IMAGE)
        assert slot.whole == IMAGE.data
        # Goes on from what was acknowledged: only a restart, or a forgotten end, sends much of it again.
        if not restart and LAST not in mute:
            assert responder.count(UPLOAD) <= LAST + 4 * (len(deaf) + len(mute))
        if not deaf and not mute and not restart:
            assert responder.count(UPLOAD) == LAST


def test_several_requests_are_under_way_where_the_board_has_buffers() -> None:
    slot = Slot(frozenset(), frozenset())
    first_three = threading.Event()
    arrived = []

    def upload(responder: Responder, number: int, fields: Fields) -> Fields | None:
        answer = slot.upload(responder, number, fields)
        if 2 <= number <= 4:
            # Answers to the second, third and fourth are held back until all three have arrived.
            arrived.append(answer)
            if number < 4:
                return None
            first_three.set()
        return answer

    with attached({UPLOAD: upload, STATE: slot.state}, Settings(timeout=5)) as (_, offered):
        began = time.monotonic()
        offered[FirmwareTarget].write(Call.lasting(20), IMAGE)
        assert first_three.is_set()
        assert time.monotonic() - began < 4, "it waited for an answer instead of sending the next request"


def test_a_board_that_stands_still_is_given_up() -> None:
    stuck: dict[tuple[int, int], Handler] = {UPLOAD: lambda _b, _n, _f: {"off": 0}}
    with attached(stuck) as (responder, offered), pytest.raises(DeadlineExceeded, match="at offset 0"):
        offered[FirmwareTarget].write(Call.lasting(20), IMAGE)
    assert responder.count(UPLOAD) <= 2 * QUICK.tries


@pytest.mark.parametrize("offset", [-1, len(IMAGE.data) + 1, 1 << 70, None, "4"])
def test_an_offset_outside_the_image_is_a_violation(offset: object) -> None:
    wrong: dict[tuple[int, int], Handler] = {UPLOAD: lambda _b, _n, _f: {"off": offset}}
    with attached(wrong) as (_, offered), pytest.raises(ProtocolViolation):
        offered[FirmwareTarget].write(Call.lasting(20), IMAGE)


def test_a_refused_upload_names_the_reason() -> None:
    no = {"err": {"group": 1, "rc": 30}}
    with (
        attached({UPLOAD: lambda _b, _n, _f: no}) as (_, offered),
        pytest.raises(FlashRejected, match="TOO_LARGE"),
    ):
        offered[FirmwareTarget].write(Call.lasting(20), IMAGE)


def test_a_digest_that_differs_is_a_mismatch() -> None:
    slot = Slot(frozenset(), frozenset())
    other = {"images": [{"slot": 1, "version": "1.4.2", "hash": bytes(32)}]}
    with (
        attached({UPLOAD: slot.upload, STATE: lambda _b, _n, _f: other}) as (_, offered),
        pytest.raises(VerifyMismatch, match="doesn't name"),
    ):
        offered[FirmwareTarget].write(Call.lasting(20), IMAGE)

    def bad(responder: Responder, number: int, fields: Fields) -> Fields | None:
        answer = slot.upload(responder, number, fields)
        return answer and (answer | {"match": False} if "match" in answer else answer)

    with (
        attached({UPLOAD: bad, STATE: slot.state}) as (_, offered),
        pytest.raises(VerifyMismatch, match="computed over its flash"),
    ):
        offered[FirmwareTarget].write(Call.lasting(20), IMAGE)


class Bootloader:
    """Two slots: the old image runs, ours waits. `deaf`: numbers of resets that are lost on the way."""

    def __init__(self, *, deaf: frozenset[int] = frozenset(), accepts: bool = True) -> None:
        self.deaf, self.accepts = deaf, accepts
        self.pending = self.swapped = False

    def state(self, _responder: Responder, _number: int, fields: Fields) -> Fields:
        self.pending = self.pending or "hash" in fields
        ours = {
            "slot": 0 if self.swapped else 1,
            "version": "2.0.0",
            "hash": bytes(32),
            "active": self.swapped,
        }
        old = {
            "slot": 1 if self.swapped else 0,
            "version": "1.0.0",
            "hash": b"o" * 32,
            "active": not self.swapped,
        }
        return {"images": [ours | {"pending": self.pending}, old]}

    def reset(self, _responder: Responder, number: int, _fields: Fields) -> Fields | None:
        if number in self.deaf:
            return None
        self.pending, self.swapped = False, self.accepts
        return {}


RESET = (0, 5)


def test_a_lost_reset_is_asked_for_again_while_the_old_image_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivers.smp.firmware._RESET_AGAIN_SECONDS", 0.2)
    loader = Bootloader(deaf=frozenset({1}))
    with attached({STATE: loader.state, RESET: loader.reset}) as (responder, offered):
        offered[FirmwareTarget].boot(Call.lasting(10), bytes(32))
        assert responder.count(RESET) == 2
        offered[FirmwareTarget].boot(Call.lasting(10), bytes(32))
        assert responder.count(RESET) == 2, "a board that runs the image is left alone"


def test_an_image_that_the_bootloader_refuses_is_told_at_once() -> None:
    loader = Bootloader(accepts=False)
    with (
        attached({STATE: loader.state, RESET: loader.reset}) as (_, offered),
        pytest.raises(FlashRejected, match="bootloader refused"),
    ):
        offered[FirmwareTarget].boot(Call.lasting(10), bytes(32))


def test_a_board_that_never_comes_back_is_a_deadline() -> None:
    loader = Bootloader()
    gone = False

    def echo(_responder: Responder, _number: int, fields: Fields) -> Fields | None:
        return None if gone else {"r": fields["d"]}

    def reset(_responder: Responder, _number: int, _fields: Fields) -> None:
        nonlocal gone
        gone = True

    quick = Settings(timeout=0.15, sync_timeout=0.3, boot_timeout=0.8)
    with (
        attached({STATE: loader.state, RESET: reset, ECHO: echo}, quick) as (_, offered),
        pytest.raises(DeadlineExceeded, match="did not come back"),
    ):
        offered[FirmwareTarget].boot(Call.lasting(10), bytes(32))


def test_a_buffer_too_small_for_anything_is_refused() -> None:
    with (
        attached({PARAMETERS: lambda _b, _n, _f: {"buf_size": 64, "buf_count": 1}}) as (_, offered),
        pytest.raises(DeviceRefused, match="64 octets"),
    ):
        offered[FirmwareTarget].write(Call.lasting(5), IMAGE)


@pytest.mark.parametrize(
    "wrong", [{"window": 0}, {"timeout": 0}, {"line": 4}, {"certificate_path": "x.pem"}, {"largest": 1 << 20}]
)
def test_settings_that_can_not_work_are_refused_at_opening(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        board(cast("Any", None), Settings(**wrong))
