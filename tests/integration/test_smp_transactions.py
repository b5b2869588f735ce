"""Transactions of the vendor group: once on the board, whatever gets lost; nonsense is a violation."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from drivers.smp import vendor
from drivers.smp.settings import Settings
from hal.call import Call
from hal.errors import (
    DeadlineExceeded,
    ProtocolViolation,
)
from hal.interfaces import TpmTransport
from tests.smp_responder import COMMAND, RESPONSE, TPM, Fields, Responder, attached


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
