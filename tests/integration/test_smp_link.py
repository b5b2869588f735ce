"""The SMP link against a board that loses, delays, damages and invents answers."""

from __future__ import annotations

import os
import select
import threading
import time

import pytest

from drivers.smp.framing import encode
from hal.call import Call, Cancel
from hal.errors import (
    Aborted,
    DeadlineExceeded,
    ProtocolViolation,
)
from hal.interfaces import DeviceIdentity, TpmTransport
from tests.smp_responder import (
    COMMAND,
    ECHO,
    IDENTIFY,
    IDENTITY,
    PARAMETERS,
    QUICK,
    RESPONSE,
    TPM,
    Fields,
    Handler,
    Responder,
    attached,
)


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
