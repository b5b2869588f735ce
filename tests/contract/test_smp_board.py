"""The driver smp-serial over the driver serial, against an emulated board: the HAL's contract tests."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TypeVar, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from drivers.emulated.image import build
from drivers.smp.settings import Settings
from hal.call import Call, Cancel
from hal.conformance import (
    certificate_store,
    device_identity,
    device_settings,
    firmware_target,
    key_delivery,
    self_test,
    tpm_transport,
)
from hal.driver import Bindings
from hal.errors import (
    Aborted,
    DeviceGone,
    DeviceRefused,
    FlashRejected,
    KeyConflict,
    ProtocolViolation,
)
from hal.interfaces import (
    CertificateStore,
    DeviceIdentity,
    DeviceSettings,
    FirmwareTarget,
    KeyDelivery,
    KeyPlace,
    SelfTest,
    TpmTransport,
)
from hal.secret import EMPTY
from hal.types import FirmwareImage, KeyPurpose, KeyType
from tests.fixtures_smp import Board, MakeBoard, started_boards

T = TypeVar("T")
BODY = random.Random(1).randbytes(40_000)


def opener(board: Board, interface: type[T]) -> AbstractContextManager[T]:
    return cast("AbstractContextManager[T]", board.open(interface))


def image(version: str = "1.4.2", body: bytes = BODY) -> FirmwareImage:
    data = build(version, body)
    return FirmwareImage(name="gw.bin", data=data, sha256=hashlib.sha256(data).digest(), version=version)


def certificate(name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    )
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(dt.datetime(2026, 1, 1))
    built = builder.not_valid_after(dt.datetime(2036, 1, 1)).sign(key, hashes.SHA256())
    return built.public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The options of a board that runs firmware 1.0.0."""
    file = tmp_path_factory.mktemp("images") / "factory.bin"
    file.write_bytes(image("1.0.0", b"factory" * 1000).data)
    return ("--factory-image", str(file))


@pytest.fixture(scope="module")
def running(factory: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """One board without a TPM for the tests that don't mind each other."""
    with started_boards(tmp_path_factory.mktemp("boards")) as start:
        yield start("--no-tpm", "--baud", "0", *factory)


def test_identity_keeps_the_contract(running: Board) -> None:
    device_identity.check(lambda: opener(running, DeviceIdentity), running.silence)


def test_settings_keep_the_contract(running: Board) -> None:
    device_settings.check(lambda: opener(running, DeviceSettings), running.silence)


def test_certificates_keep_the_contract(running: Board) -> None:
    ca = certificate("CA")
    chain, other = [certificate("a"), ca, certificate("root")], [certificate("b"), ca]
    with opener(running, CertificateStore) as store:
        assert list(store.installed(Call.lasting(10))) == []
    certificate_store.check(lambda: opener(running, CertificateStore), chain, other, running.silence)


def test_self_test_keeps_the_contract(running: Board) -> None:
    self_test.check(lambda: opener(running, SelfTest), running.silence)


@pytest.mark.parametrize("reset_absence", ["0", "0.3"], ids=["uart", "native usb"])
def test_firmware_keeps_the_contract(
    emulated_board: MakeBoard, factory: tuple[str, str], reset_absence: str
) -> None:
    board = emulated_board("--no-tpm", "--baud", "0", *factory, "--reset-absence", reset_absence)

    def open_when_back() -> AbstractContextManager[FirmwareTarget]:
        waiting = Call.lasting(10)
        while True:
            try:
                with opener(board, FirmwareTarget) as target:
                    target.installed(waiting)
                return opener(board, FirmwareTarget)
            except DeviceGone:
                waiting.pause(0.05)

    good = image()
    damaged = good.data[:-40] + bytes(1) + good.data[-39:]
    firmware_target.check(open_when_back, good, damaged, board.silence)


def test_an_upload_that_was_cut_goes_on_where_it_was(emulated_board: MakeBoard) -> None:
    board, new = emulated_board("--no-tpm", "--baud", "1000000"), image()
    with opener(board, FirmwareTarget) as target:
        cancel, seen = Cancel(), list[int]()

        def cut(done: int, _total: int | None) -> None:
            if done > len(new.data) // 2:
                cancel.set()

        with pytest.raises(Aborted):
            target.write(Call(deadline=time.monotonic() + 20, cancel=cancel, progress=cut), new)
        again = Call(deadline=time.monotonic() + 20, progress=lambda done, _total: seen.append(done))
        target.write(again, new)
        assert seen[0] > len(new.data) // 2
        cancel.close()


def test_a_board_that_is_unplugged_in_an_upload_is_gone(emulated_board: MakeBoard) -> None:
    board, new = emulated_board("--no-tpm", "--baud", "1000000"), image()
    seen: list[int] = []

    def unplug(done: int, _total: int | None) -> None:
        if not seen and done > 5_000:
            seen.append(done)
            board.command("unplug")

    with opener(board, FirmwareTarget) as target, pytest.raises(DeviceGone):
        target.write(Call(deadline=time.monotonic() + 20, progress=unplug), new)


def test_an_upload_survives_a_line_that_flips_bits(emulated_board: MakeBoard) -> None:
    # About one frame in seven is damaged.
    board, new = (
        emulated_board("--no-tpm", "--baud", "1000000", "--noise", "1e-4", "--garble-start", "50"),
        image(),
    )
    with opener(board, FirmwareTarget) as target:
        digest = target.accepts(Call.lasting(10), new)
        target.write(Call.lasting(60), new)
        target.boot(Call.lasting(20), digest)


def test_a_blank_board_is_flashed_through_its_bootloader(emulated_board: MakeBoard) -> None:
    board, new = emulated_board("--no-tpm", "--baud", "0"), image()
    with opener(board, FirmwareTarget) as target:
        digest = target.accepts(Call.lasting(10), new)
        target.write(Call.lasting(10), new)
        target.boot(Call.lasting(10), digest)
        assert [found.active for found in target.installed(Call.lasting(10))] == [True]


def test_what_a_bootloader_does_not_offer_is_refused(emulated_board: MakeBoard) -> None:
    board = emulated_board("--no-tpm", "--baud", "0")
    with opener(board, DeviceIdentity) as device, pytest.raises(DeviceRefused, match="ENOTSUP"):
        device.identify(Call.lasting(10))


def test_an_image_that_the_board_can_not_hold_is_refused(emulated_board: MakeBoard) -> None:
    board = emulated_board("--no-tpm", "--baud", "0", "--slot-size", "65536")
    with opener(board, FirmwareTarget) as target, pytest.raises(FlashRejected, match="TOO_LARGE"):
        target.write(Call.lasting(10), image(body=bytes(70_000)))


@pytest.mark.parametrize("key_type", [KeyType.P256, KeyType.P384])
def test_a_board_held_key_is_made_once_and_signs(
    emulated_board: MakeBoard, factory: tuple[str, str], key_type: KeyType
) -> None:
    board = emulated_board("--no-tpm", "--baud", "0", *factory)
    with opener(board, KeyPlace) as place:
        assert place.key(Call.lasting(30)) is None
        made = place.make_key(Call.lasting(60), key_type, EMPTY)
        assert made.key_type is key_type
        assert place.key(Call.lasting(30)) == made
        with pytest.raises(KeyConflict):
            place.make_key(Call.lasting(30), key_type, EMPTY)
        request = x509.load_der_x509_csr(place.csr(Call.lasting(30), "unit-7"))
        assert request.is_signature_valid
        assert request.subject.rfc4514_string() == "CN=unit-7"
        assert place.prove(Call.lasting(30), bytes(32))


@contextlib.contextmanager
def bindings(board: Board) -> Iterator[Bindings]:
    with board.open_all() as offered:
        found = Bindings()
        for interface, implementation in offered.items():
            found.add("link", interface, implementation)
        yield found


def test_key_delivery_keeps_the_contract(emulated_board: MakeBoard, factory: tuple[str, str]) -> None:
    # A small buffer, so that what is sealed goes in pieces.
    board = emulated_board("--no-tpm", "--baud", "0", "--buf-size", "256", *factory)
    key_delivery.check(lambda: bindings(board))
    key_delivery.check_private(lambda: bindings(board))


def test_a_transport_key_does_not_outlive_a_reset(
    emulated_board: MakeBoard, factory: tuple[str, str]
) -> None:
    board = emulated_board("--no-tpm", "--baud", "0", *factory)
    with opener(board, KeyDelivery) as delivery:
        transport = delivery.transport_key(Call.lasting(30), bytes(32))
        sealed = key_delivery.seal(transport, KeyPurpose.SYMMETRIC, bytes(range(32)))
        board.command("power-cut 0.05")
        with pytest.raises(ProtocolViolation, match="reset"):
            delivery.install_key(Call.lasting(30), sealed)


def test_tpm_keeps_the_contract(emulated_board: MakeBoard, factory: tuple[str, str]) -> None:
    # A small buffer, so that commands and responses go in pieces.
    board = emulated_board(
        "--baud",
        "0",
        *factory,
        "--buf-size",
        "256",
        settings=Settings(sync_timeout=10),
    )
    tpm_transport.check(lambda: opener(board, TpmTransport), board.silence)
