"""The driver against a stand-in for the board, on a pseudo-terminal: Hallmark's contract, and what is ACME's own."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from acme_board import LINE_LIMIT

from hal.call import Call
from hal.conformance import device_identity, device_settings, tpm_transport
from hal.driver import Bindings, opened
from hal.errors import DeviceRefused, ProtocolViolation
from hal.interfaces import DeviceIdentity, DeviceSettings, TpmTransport
from hal.registry import load
from hal.types import Sighting


class Board:
    """Answers at the other end of a pseudo-terminal. Keeps its settings over closing and opening."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.settings: dict[str, str] = {}
        self.identity = "board=acme-iq7 serial=A-0001 firmware=1.2"
        self.tpm: socket.socket | None = None
        self.awake = threading.Event()
        self.awake.set()
        os.write(self.master, b"\xff\x00#00 garbage after power-up")
        threading.Thread(target=self._serve, daemon=True).start()

    @contextmanager
    def open(self) -> Iterator[Bindings]:
        registry = load(["serial", "acme-line"])
        assert not registry.broken
        plan = [(name, registry.get(name), registry.get(name).settings()) for name in ("serial", "acme-line")]
        with opened(plan, {Sighting: Sighting("bench", os.ttyname(self.slave))}) as bindings:
            yield bindings

    @contextmanager
    def silence(self) -> Iterator[None]:
        self.awake.clear()
        try:
            yield
        finally:
            self.awake.set()

    def _serve(self) -> None:
        with os.fdopen(self.master, "r+b", buffering=0) as port:
            for line in port:
                words = [unquote(word) for word in line.decode("ascii", "replace").split()]
                self.awake.wait()
                if len(words) >= 2:
                    port.write(f"{words[0]} {self._answer(*words[1:])}\r\n".encode())

    def _answer(self, command: str, *arguments: str) -> str:
        if command == "id":
            return f"ok {self.identity}"
        if command == "tpm" and self.tpm:
            self.tpm.sendall(bytes.fromhex(arguments[0]))
            return f"ok {self.tpm.recv(4096).hex()}"
        if command == "set" and arguments[0] != "forbidden":
            self.settings[arguments[0]] = arguments[1]
            return "ok"
        if command == "get" and arguments[0] in self.settings:
            return f"ok {quote(self.settings[arguments[0]], safe='')}"
        return "ok" if command == "get" else "no such thing"


@pytest.fixture
def board() -> Board:
    return Board()


def test_it_keeps_the_contracts_of_what_it_offers(board: Board) -> None:
    @contextmanager
    def identity() -> Iterator[DeviceIdentity]:
        with board.open() as bindings:
            yield bindings.get(DeviceIdentity)

    @contextmanager
    def settings() -> Iterator[DeviceSettings]:
        with board.open() as bindings:
            yield bindings.get(DeviceSettings)

    device_identity.check(identity, board.silence)
    device_settings.check(settings, board.silence)


@pytest.fixture
def software_tpm(tmp_path: Path) -> Iterator[socket.socket]:
    path = tmp_path / "tpm"
    where = ["--tpmstate", f"dir={tmp_path}", "--server", f"type=unixio,path={path}"]
    flags = ["--flags", "not-need-init,startup-clear"]
    server = subprocess.Popen(["swtpm", "socket", "--tpm2", *where, *flags])
    with socket.socket(socket.AF_UNIX) as connection:
        while connection.connect_ex(str(path)):
            assert server.poll() is None, "swtpm ended"
            time.sleep(0.01)
        yield connection
    server.terminate()
    server.wait()


def test_it_carries_tpm_commands(board: Board, software_tpm: socket.socket) -> None:
    @contextmanager
    def tpm() -> Iterator[TpmTransport]:
        with board.open() as bindings:
            yield bindings.get(TpmTransport)

    board.tpm = software_tpm
    tpm_transport.check(tpm, board.silence)


def test_a_refusal_is_the_boards_word_and_not_a_protocol_error(board: Board) -> None:
    with board.open() as bindings, pytest.raises(DeviceRefused, match="such thing"):
        bindings.get(DeviceSettings).write_settings(Call.lasting(5), {"forbidden": "x"})


@pytest.mark.parametrize("claim", ["", "board=", "board=%1b[2J", "board=" + "x" * 200, "board=%ff"])
def test_what_a_board_claims_is_checked(board: Board, claim: str) -> None:
    board.identity = claim
    with board.open() as bindings, pytest.raises(ProtocolViolation):
        bindings.get(DeviceIdentity).identify(Call.lasting(5))


def test_a_line_without_end_is_no_answer(board: Board) -> None:
    with board.open() as bindings:
        board.identity = "x" * (3 * LINE_LIMIT)
        with pytest.raises(ProtocolViolation, match="octets"):
            bindings.get(DeviceIdentity).identify(Call.lasting(5))
