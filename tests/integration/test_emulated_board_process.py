"""An emulated board as a process: it behaves like hardware to whoever talks to its port, cuts its power or pulls it."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from drivers.emulated.board import __main__ as board_main
from drivers.emulated.board.recording import Direction, octets
from drivers.serial.port import SerialPort
from drivers.smp.driver import board as smp_board
from drivers.smp.link import Link
from drivers.smp.settings import Settings
from drivers.tpm.driver import serve
from hal.call import Call
from hal.errors import ConfigError, DeadlineExceeded, DeviceError, DeviceGone, DeviceRefused
from hal.interfaces import (
    DeviceIdentity,
    EndorsementIdentity,
    FirmwareTarget,
    KeyPlace,
    SelfTest,
    TpmTransport,
)
from hal.secret import EMPTY
from hal.types import EndorsementReport, KeyType
from tests.fixtures_board import Board, Boards, firmware

READ_EK = bytes.fromhex("8001 0000000e 00000173 81010001")
"""TPM2_ReadPublic(0x81010001): TPM 2.0 Part 3, 12.4."""
SECONDS = 20.0


@contextmanager
def talk(board: Board, settings: Settings | None = None) -> Iterator[Any]:
    """What the station's SMP driver finds at the board's port, by interface."""
    port = SerialPort(str(board.port), 115200)
    try:
        yield smp_board(port, settings or Settings())
    finally:
        port.close()


def call() -> Call:
    return Call.lasting(SECONDS)


def wait_for(path: Path, *, there: bool) -> None:
    end = time.monotonic() + SECONDS
    while path.is_symlink() is not there:
        assert time.monotonic() < end
        time.sleep(0.01)


def ek(board: Board) -> bytes:
    with talk(board) as offered:
        response: bytes = offered[TpmTransport].transmit(call(), READ_EK)
    assert response[6:10] == bytes(4)
    return response


def endorsements(board: Board) -> EndorsementReport:
    with talk(board) as offered, serve(offered[TpmTransport]) as tpm:
        identity = tpm[EndorsementIdentity]
        assert isinstance(identity, EndorsementIdentity)
        return identity.endorsements(call())


def certificates(board: Board) -> list[x509.Certificate]:
    report = endorsements(board)
    return [x509.load_der_x509_certificate(key.certificate) for key in report.keys if key.certificate]


def versions(board: Board) -> dict[str, bool]:
    """Versions in the board's slots, and whether each runs."""
    with talk(board) as offered:
        return {image.version: image.active for image in offered[FirmwareTarget].installed(call())}


def test_an_image_is_uploaded_booted_confirmed_and_stays(boards: Boards) -> None:
    board = boards.start(garble_start=40)
    image = firmware("1.4.2")
    with talk(board) as offered:
        target = offered[FirmwareTarget]
        digest = target.accepts(call(), image)
        target.write(call(), image)
        target.boot(call(), digest)
        target.confirm(call(), digest)
        assert offered[DeviceIdentity].identify(call()).firmware == "1.4.2"
        assert all(result.passed for result in offered[SelfTest].self_test(call()))
    board.ask("power-cut", 0)
    assert versions(board) == {"1.4.2": True, "1.0.0": False}


def test_a_blank_board_is_brought_to_life(boards: Boards) -> None:
    board = boards.start(no_tpm=True, factory_version=None)
    image = firmware("1.4.2")
    with talk(board) as offered:
        target = offered[FirmwareTarget]
        target.write(call(), image)
        target.boot(call(), target.accepts(call(), image))
        assert offered[DeviceIdentity].identify(call()).board == "gw-200"


def test_power_lost_in_the_middle_of_an_upload_leaves_the_old_image(boards: Boards) -> None:
    board = boards.start(no_tpm=True)
    board.ask("cut-at", 12, 0.3)
    with talk(board, Settings(timeout=0.3)) as offered, pytest.raises(DeviceError):
        offered[FirmwareTarget].write(call().within(0.3), firmware("1.4.2", 100_000))
    wait_boots(board, 2)
    assert board.ask("status")["power_cuts"] == 1
    assert versions(board) == {"1.0.0": True}
    with talk(board) as offered:
        offered[FirmwareTarget].write(call(), firmware("1.4.2"))


def wait_boots(board: Board, boots: int) -> None:
    end = time.monotonic() + SECONDS
    while (status := board.ask("status"))["boots"] < boots or status["stage"] != "application":
        assert time.monotonic() < end, status
        time.sleep(0.02)


def test_a_killed_board_leaves_no_process_and_starts_again_with_its_tpm(boards: Boards) -> None:
    board = boards.start()
    before = ek(board)
    assert len(board.processes()) == 3, "machine, firmware, TPM"
    board.kill()
    end = time.monotonic() + 2
    while board.processes():
        assert time.monotonic() < end
        time.sleep(0.01)
    again = boards.start()
    assert ek(again) == before


def test_a_killed_board_may_be_started_again_at_once(boards: Boards) -> None:
    for _ in range(3):
        board = boards.start()
        assert versions(board) == {"1.0.0": True}
        board.kill()


def test_a_board_ends_with_the_one_who_started_it(boards: Boards) -> None:
    board = boards.start(no_tpm=True)
    assert board.process.stdin is not None
    board.process.stdin.close()
    assert board.process.wait(SECONDS) == 0
    assert board.processes() == []
    assert not board.port.is_symlink()


def test_a_stopped_board_leaves_its_tpm_ready_for_others(boards: Boards) -> None:
    board = boards.start()
    ek(board)
    assert board.stop() == 0
    assert not board.port.is_symlink()
    assert not (board.state / "control").exists()
    assert board.processes() == []
    # TPM2_Startup(STATE) is refused after Shutdown(CLEAR); (CLEAR) is taken, and the lock on the state is free.
    shown = subprocess.run(
        ["swtpm", "socket", "--tpm2", "--print-states", "--tpmstate", f"dir={board.state / 'tpm'}"],
        capture_output=True,
        check=True,
    )
    assert b"permall" in shown.stdout


def test_pulling_the_plug_is_seen_at_once_and_the_board_comes_back(boards: Boards) -> None:
    board = boards.start(no_tpm=True)
    port = SerialPort(str(board.port), 115200)
    board.ask("unplug")
    assert not board.port.is_symlink()
    began = time.monotonic()
    with pytest.raises(DeviceGone):
        port.read(call(), 10)
    assert time.monotonic() - began < 0.5
    port.close()
    status = board.ask("status")
    assert (status["plugged"], status["powered"]) == (False, False)
    board.ask("plug")
    assert versions(board) == {"1.0.0": True}


def test_a_board_may_wait_until_it_is_plugged_in(boards: Boards) -> None:
    board = boards.begin("waiting", no_tpm=True, unplugged=True)
    end = time.monotonic() + SECONDS
    while not (board.state / "control").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not board.ask("status")["plugged"]
    board.ask("plug")
    board.await_ready()
    assert versions(board) == {"1.0.0": True}


def test_a_native_usb_board_vanishes_at_reset_and_comes_back(boards: Boards) -> None:
    board = boards.start(no_tpm=True, reset_absence=0.3)
    with talk(board) as offered:
        target = offered[FirmwareTarget]
        image = firmware("1.4.2")
        target.write(call(), image)
        target.boot(call(), target.accepts(call(), image))
    wait_for(board.port, there=False)
    gone = time.monotonic()
    wait_for(board.port, there=True)
    assert time.monotonic() - gone < 1
    assert versions(board)["1.4.2"]


def test_a_hung_board_does_not_answer_until_it_is_resumed(boards: Boards) -> None:
    board = boards.start(no_tpm=True)
    with talk(board, Settings(timeout=0.2, tries=1)) as offered:
        board.ask("hang")
        with pytest.raises(DeadlineExceeded):
            offered[DeviceIdentity].identify(call().within(0.4))
        board.ask("resume")
        assert offered[DeviceIdentity].identify(call()).board == "gw-200"


def test_a_paced_wire_takes_its_time_and_no_more(boards: Boards) -> None:
    board = boards.start(no_tpm=True, baud=115200, buf_size=4096)
    with talk(board) as offered:
        target = offered[FirmwareTarget]
        target.installed(call())
        image = firmware("1.4.2", 12_000)
        began = time.monotonic()
        target.write(call(), image)
        took = time.monotonic() - began
    # Base64 and framing make 4/3 and some of it.
    on_the_wire = len(image.data) * 4 / 3 * 10 / 115200
    assert on_the_wire < took < on_the_wire * 1.35


def test_noise_costs_time_only(boards: Boards) -> None:
    board = boards.start(no_tpm=True, noise=0.0001, seed=5, garble_start=100)
    image = firmware("1.4.2", 10_000)
    with talk(board, Settings(timeout=0.3, erase_timeout=0.3, tries=20)) as offered:
        offered[FirmwareTarget].write(call(), image)
        board.ask("noise", 0)
        assert "1.4.2" in {found.version for found in offered[FirmwareTarget].installed(call())}


def test_what_crosses_the_port_is_recorded(boards: Boards, tmp_path: Path) -> None:
    record = tmp_path / "record"
    board = boards.start(no_tpm=True, record=record)
    with talk(board) as offered:
        offered[DeviceIdentity].identify(call())
    assert octets(record, Direction.TO_BOARD).count(b"\n") >= 1
    assert b"\x06\x09" in octets(record, Direction.TO_HOST)
    assert record.stat().st_mode & 0o077 == 0


def test_a_board_without_a_tpm_keeps_its_key_by_itself(boards: Boards) -> None:
    board = boards.start(no_tpm=True)
    assert len(board.processes()) == 2
    with talk(board, Settings(timeout=0.3)) as offered:
        place = offered[KeyPlace]
        made = place.make_key(call(), KeyType.P256, EMPTY)
        request = x509.load_der_x509_csr(place.csr(call(), "unit-1"))
        assert request.is_signature_valid
        board.ask("power-cut", 0)
        assert place.key(call()).spki == made.spki
        with pytest.raises(DeviceRefused):
            offered[TpmTransport].transmit(call(), READ_EK)
    assert (board.state / "key.pem").stat().st_mode & 0o077 == 0


def test_boards_started_at_once_have_eks_of_their_own_from_one_new_maker(
    boards: Boards, tmp_path: Path
) -> None:
    found: list[x509.Certificate] = []
    boards.ek_ca = tmp_path / "new-ek-ca"
    for board in boards.start_all("a", "b"):
        made = certificates(board)
        assert made
        found += made
        root = x509.load_pem_x509_certificate((boards.ek_ca / "issuercert.pem").read_bytes())
        for certificate in made:
            certificate.verify_directly_issued_by(root)
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert len({certificate.public_key().public_bytes(*spki) for certificate in found}) == len(found)


def test_an_ek_certificate_may_be_a_foreign_makers_or_missing(boards: Boards) -> None:
    foreign = boards.start("foreign", ek_certificate="foreign")
    issuer = x509.load_pem_x509_certificate((foreign.state / "foreign-ek-ca" / "issuercert.pem").read_bytes())
    made = certificates(foreign)
    assert made
    for certificate in made:
        certificate.verify_directly_issued_by(issuer)
    bare = boards.start("bare", ek_certificate="none")
    assert endorsements(bare).keys
    assert certificates(bare) == []


def test_power_lost_after_a_tpm_command_keeps_what_the_tpm_did(boards: Boards) -> None:
    # TPM2_NV_DefineSpace(owner, index 0x01800001, 8 octets, ownerread|ownerwrite), empty password.
    define = bytes.fromhex(
        "8002 0000002d 0000012a 40000001 00000009 40000009 0000 00 0000 0000 000e 01800001 000b 00020002 0000 0008"
    )
    seen = {}
    for cut in (1, 2):
        board = boards.start(f"cut-{cut}")
        board.ask("cut-at", cut)
        with talk(board, Settings(timeout=0.2, tries=1)) as offered, pytest.raises(DeviceError):
            offered[TpmTransport].transmit(call().within(0.5), define)
        wait_boots(board, 2)
        with talk(board) as offered:
            seen[cut] = offered[TpmTransport].transmit(call(), define)[6:10].hex()
    # 0x14c: TPM_RC_NV_DEFINED.
    assert seen == {1: "00000000", 2: "0000014c"}


def test_flash_rot_is_noticed_at_the_next_boot(boards: Boards) -> None:
    board = boards.start(no_tpm=True)
    board.ask("corrupt", 0, 2000)
    board.ask("power-cut", 0)
    with talk(board) as offered:
        offered[FirmwareTarget].installed(call())
    assert board.ask("status")["stage"] == "bootloader"


def test_the_control_socket_says_what_is_wrong(boards: Boards) -> None:
    board = boards.start(no_tpm=True)
    assert (board.state / "control").stat().st_mode & 0o077 == 0
    for verb, arguments in (
        ("fly", ()),
        ("noise", ("much",)),
        ("corrupt", (2, 0)),
        ("plug", (1,)),
        ("cut-at", (-1,)),
    ):
        with pytest.raises(DeviceRefused):
            board.ask(verb, *arguments)
    assert board.ask("status")["powered"]


def test_oversized_and_malformed_octets_leave_the_board_answering(boards: Boards) -> None:
    board = boards.start(no_tpm=True)
    fd = os.open(board.port, os.O_RDWR | os.O_NOCTTY)
    for piece in (
        b"\x06\x09" + b"A" * 30000,
        b"\n\x04\x14AAAA\n",
        os.urandom(20000),
        b"\x06\x09//8AAA==\n" * 500,
    ):
        left = piece
        while left:
            left = left[os.write(fd, left) :]
            select.select([], [fd], [], 1)
    os.close(fd)
    assert versions(board) == {"1.0.0": True}


def test_one_state_directory_takes_one_board(boards: Boards, monkeypatch: pytest.MonkeyPatch) -> None:
    board = boards.start(no_tpm=True)
    monkeypatch.setattr(board_main, "LOCK_SECONDS", 1)
    with pytest.raises(ConfigError, match="another board"), board_main._only_board(board.state):
        pass


def test_a_link_of_somebody_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("precious")
    assert board_main.main(["--state", str(tmp_path / "b"), "--port", str(taken), "--no-tpm"]) == 2
    assert taken.read_text() == "precious"
    assert "left alone" in capsys.readouterr().err


def test_links_use_the_whole_window_without_overruns(boards: Boards) -> None:
    board = boards.start(no_tpm=True, buf_size=2048, buf_count=6, erase_ms=1)
    port = SerialPort(str(board.port), 115200)
    link = Link(port, Settings())
    assert link.parameters(call()).window > 1
    port.close()
    with talk(board) as offered:
        offered[FirmwareTarget].write(call(), firmware("1.4.2", 100_000))
    assert board.ask("status")["overrun"] == 0
