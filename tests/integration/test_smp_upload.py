"""Image upload and boot against a board that loses requests and answers, forgets, stands still or lies."""

from __future__ import annotations

import hashlib
import threading
import time
from typing import Any, cast

import pytest
from smp.image_management import IMG_MGMT_ERR

from drivers.emulated.image import build
from drivers.smp.driver import board
from drivers.smp.settings import Settings
from hal.call import Call
from hal.errors import (
    ConfigError,
    DeadlineExceeded,
    DeviceBusy,
    DeviceRefused,
    FlashRejected,
    ProtocolViolation,
    VerifyMismatch,
)
from hal.interfaces import FirmwareTarget
from hal.types import FirmwareImage
from tests.smp_responder import ECHO, PARAMETERS, QUICK, STATE, UPLOAD, Fields, Handler, Responder, attached


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
RESET = (0, 5)
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


def test_a_board_with_an_image_on_trial_is_restarted_and_takes_the_upload_then() -> None:
    """After a power cut in a swap the other slot is in use: a restart ends that, a refusal would blame the unit."""
    slot = Slot(frozenset(), frozenset())
    restarts: list[int] = []

    def upload(responder: Responder, number: int, fields: Fields) -> Fields | None:
        if not restarts:
            return {"err": {"group": 1, "rc": int(IMG_MGMT_ERR.NO_FREE_SLOT)}}
        return slot.upload(responder, number, fields)

    def reset(_responder: Responder, number: int, _fields: Fields) -> Fields:
        restarts.append(number)
        return {}

    with attached({UPLOAD: upload, STATE: slot.state, RESET: reset}) as (_, offered):
        with pytest.raises(DeviceBusy, match="restarted") as busy:
            offered[FirmwareTarget].write(Call.lasting(20), IMAGE)
        assert busy.value.retryable
        offered[FirmwareTarget].write(Call.lasting(20), IMAGE)
    assert len(restarts) == 1


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


def test_a_lost_reset_is_asked_for_again_while_the_old_image_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivers.smp.firmware._RESET_AGAIN_SECONDS", 0.2)
    loader = Bootloader(deaf=frozenset({1}))
    with attached({STATE: loader.state, RESET: loader.reset}) as (responder, offered):
        offered[FirmwareTarget].boot(Call.lasting(10), bytes(32))
        assert responder.count(RESET) == 2
        offered[FirmwareTarget].boot(Call.lasting(10), bytes(32))
        assert responder.count(RESET) == 2, "a board that runs the image is left alone"


def test_a_swap_that_is_due_from_before_is_let_happen_and_the_image_started_then() -> None:
    """After a power cut or a killed worker a board may have to go back first: it takes no request until it did."""
    loader = Bootloader()
    due = True

    def state(responder: Responder, number: int, fields: Fields) -> Fields:
        if due and "hash" in fields:
            return {"err": {"group": 1, "rc": int(IMG_MGMT_ERR.IMAGE_ALREADY_PENDING)}}
        return loader.state(responder, number, fields)

    def reset(responder: Responder, number: int, fields: Fields) -> Fields | None:
        nonlocal due
        if due:
            due = False
            return {}
        return loader.reset(responder, number, fields)

    with attached({STATE: state, RESET: reset}) as (responder, offered):
        offered[FirmwareTarget].boot(Call.lasting(20), bytes(32))
        assert responder.count(RESET) == 2
    assert loader.swapped


def test_an_image_that_the_bootloader_refuses_is_told_when_it_refuses_it_again() -> None:
    loader = Bootloader(accepts=False)
    with attached({STATE: loader.state, RESET: loader.reset}) as (responder, offered):
        with pytest.raises(FlashRejected, match="bootloader refused"):
            offered[FirmwareTarget].boot(Call.lasting(10), bytes(32))
        assert responder.count(RESET) == 2


def test_an_image_that_lost_power_in_its_trial_is_started_once_more() -> None:
    """MCUboot has taken the old image back by then: nobody had confirmed the new one."""
    loader = Bootloader(accepts=False)

    def reset(responder: Responder, number: int, fields: Fields) -> Fields | None:
        loader.accepts = number > 1
        return loader.reset(responder, number, fields)

    with attached({STATE: loader.state, RESET: reset}) as (responder, offered):
        offered[FirmwareTarget].boot(Call.lasting(10), bytes(32))
        assert responder.count(RESET) == 2


def test_an_image_that_lost_power_before_its_reset_and_was_started_by_that_is_left_running() -> None:
    """The answer was lost with the power, so the link asked again: the image that runs can't be set to be tried."""
    loader = Bootloader()

    def state(responder: Responder, number: int, fields: Fields) -> Fields | None:
        if "hash" in fields and loader.swapped:
            return {"err": {"group": 1, "rc": 33}}
        if "hash" in fields:
            loader.swapped = True
            return None
        return loader.state(responder, number, fields)

    with attached({STATE: state, RESET: loader.reset}) as (responder, offered):
        offered[FirmwareTarget].boot(Call.lasting(10), bytes(32))
        assert responder.count(RESET) == 0


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
