"""The emulated board's SMP server answers as Zephyr's does, and nothing that a host sends brings it down."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from smp import file_management as fs
from smp import image_management as img
from smp import os_management
from smp import settings_management as kept
from smp.header import Version
from smp.message import Request

from drivers.emulated.board.bootloader import PRIMARY, SECONDARY, Bootloader, flash_size
from drivers.emulated.board.delivery import Delivery
from drivers.emulated.board.flash import SECTOR, Flash
from drivers.emulated.board.images import Images
from drivers.emulated.board.options import Options
from drivers.emulated.board.power import Power
from drivers.emulated.board.provisioning import Provisioning
from drivers.emulated.board.server import HEADER, Server
from drivers.emulated.board.storage import Files, KeyStore, SecretStore, Settings
from drivers.emulated.board.stores import FilesGroup, SettingsGroup
from drivers.emulated.board.system import System
from drivers.emulated.image import build
from drivers.smp import vendor
from drivers.smp.vendor import Err

SLOT: Final = 8 * SECTOR
OLD: Final = build("1.0.0", b"o" * 5000)
NEW: Final = build("1.4.2", b"n" * 9000)
BUFFER: Final = 512

Ask = Callable[..., dict[str, Any]]


class Rig:
    """A server with all groups of an application (or of the serial recovery), without a TPM."""

    def __init__(self, folder: Path, *, blank: bool = False) -> None:
        power = Power()
        self.flash = Flash(folder / "flash.bin", flash_size(SLOT), power)
        self.loader = Bootloader(self.flash, SLOT)
        if not blank:
            self.loader.write(PRIMARY, 0, OLD)
        running = self.loader.boot()
        self.system = System(Options(folder, folder / "port", folder / "control", folder / "ek-ca"))
        self.tests_run = 0
        keys = KeyStore(folder / "key.pem", power)
        groups: list[Any] = [self.system, Images(self.loader, running)]
        if running:
            groups += [
                SettingsGroup(Settings(folder / "settings.json", power)),
                FilesGroup(Files(folder / "files", power), BUFFER),
                Provisioning(
                    {"board": "gw-200"},
                    None,
                    keys,
                    Delivery(keys, SecretStore(folder / "secret.key", power)),
                    self._tests,
                    BUFFER,
                ),
            ]
        self.server = Server([command for group in groups for command in group.commands()], BUFFER)

    def _tests(self) -> list[tuple[str, bool, str]]:
        self.tests_run += 1
        return [(f"test {number}", True, "x" * 60) for number in range(20)]

    def ask(self, request: Request) -> dict[str, Any]:
        answer = self.server.handle(bytes(request))
        assert answer is not None
        assert len(answer) <= BUFFER
        head = HEADER.unpack_from(answer)
        assert head[2] == len(answer) - HEADER.size
        assert head[4] == request.header.sequence
        content: dict[str, Any] = cbor2.loads(answer[HEADER.size :])
        return content

    def upload(self, data: bytes, **first: Any) -> dict[str, Any]:
        offset, answer = 0, {}
        while offset < len(data):
            fields = {"len": len(data), **first} if offset == 0 else {}
            answer = self.ask(
                img.ImageUploadWriteRequest(off=offset, data=data[offset : offset + 400], **fields)
            )
            assert answer["off"] > offset, answer
            offset = answer["off"]
        return answer


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.flash.close()


def refusal(answer: dict[str, Any]) -> tuple[int, int]:
    return (answer["err"]["group"], answer["err"]["rc"])


def test_an_upload_goes_to_slot_1_and_its_digest_is_computed_over_flash(rig: Rig) -> None:
    answer = rig.upload(NEW, sha=hashlib.sha256(NEW).digest())
    assert answer == {"off": len(NEW), "match": True}
    assert rig.loader.read(SECONDARY, len(NEW)) == NEW
    states = rig.ask(img.ImageStatesReadRequest())["images"]
    assert [(state["slot"], state["version"]) for state in states] == [(0, "1.0.0"), (1, "1.4.2")]


def test_a_repeated_piece_is_not_written_twice_and_a_gap_is_told(rig: Rig) -> None:
    first = img.ImageUploadWriteRequest(off=0, data=NEW[:400], len=len(NEW))
    assert rig.ask(first) == {"off": 400}
    piece = img.ImageUploadWriteRequest(off=400, data=NEW[400:800])
    assert rig.ask(piece) == {"off": 800}
    assert rig.ask(piece) == {"off": 800}
    assert rig.ask(img.ImageUploadWriteRequest(off=1200, data=NEW[1200:1300])) == {"off": 800}


def test_an_upload_with_the_same_sha_goes_on_where_it_was(rig: Rig) -> None:
    sha = hashlib.sha256(NEW).digest()
    first = img.ImageUploadWriteRequest(off=0, data=NEW[:400], len=len(NEW), sha=sha)
    assert rig.ask(first) == {"off": 400}
    assert rig.ask(first) == {"off": 400}
    other = img.ImageUploadWriteRequest(off=0, data=NEW[:300], len=len(NEW), sha=b"\1" * 32)
    assert rig.ask(other) == {"off": 300}


def test_an_upload_of_what_is_there_already_ends_at_once(rig: Rig) -> None:
    sha = hashlib.sha256(NEW).digest()
    rig.upload(NEW, sha=sha)
    first = img.ImageUploadWriteRequest(off=0, data=NEW[:400], len=len(NEW), sha=sha)
    assert rig.ask(first) == {"off": len(NEW), "match": True}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"data": NEW[:10], "len": len(NEW)}, img.IMG_MGMT_ERR.INVALID_IMAGE_HEADER),
        ({"data": NEW[:400]}, img.IMG_MGMT_ERR.INVALID_LENGTH),
        ({"data": bytes(400), "len": 400}, img.IMG_MGMT_ERR.INVALID_IMAGE_HEADER_MAGIC),
        ({"data": NEW[:400], "len": SLOT}, img.IMG_MGMT_ERR.INVALID_IMAGE_TOO_LARGE),
        ({"data": NEW[:400], "len": len(NEW), "sha": bytes(33)}, img.IMG_MGMT_ERR.INVALID_HASH),
    ],
)
def test_a_first_piece_that_can_not_be_an_image_is_refused(
    rig: Rig, fields: dict[str, Any], error: img.IMG_MGMT_ERR
) -> None:
    before = rig.loader.read(SECONDARY, SLOT)
    assert refusal(rig.ask(img.ImageUploadWriteRequest(off=0, **fields))) == (1, error)
    assert rig.loader.read(SECONDARY, SLOT) == before


def test_more_than_was_announced_is_refused(rig: Rig) -> None:
    rig.ask(img.ImageUploadWriteRequest(off=0, data=NEW[:400], len=500))
    answer = rig.ask(img.ImageUploadWriteRequest(off=400, data=NEW[400:700]))
    assert refusal(answer) == (1, img.IMG_MGMT_ERR.INVALID_IMAGE_DATA_OVERRUN)


def test_a_pending_image_is_not_overwritten_or_erased(rig: Rig) -> None:
    rig.upload(NEW)
    digest = rig.ask(img.ImageStatesReadRequest())["images"][1]["hash"]
    states = rig.ask(img.ImageStatesWriteRequest(hash=digest))["images"]
    assert states[1]["pending"]
    upload = img.ImageUploadWriteRequest(off=0, data=OLD[:400], len=len(OLD))
    assert refusal(rig.ask(upload)) == (1, img.IMG_MGMT_ERR.NO_FREE_SLOT)
    assert refusal(rig.ask(img.ImageEraseRequest())) == (1, img.IMG_MGMT_ERR.NO_FREE_SLOT)


def test_states_that_make_no_sense_are_refused(rig: Rig) -> None:
    def ask(**fields: Any) -> tuple[int, int]:
        return refusal(rig.ask(img.ImageStatesWriteRequest(**fields)))

    running = rig.ask(img.ImageStatesReadRequest())["images"][0]["hash"]
    assert ask() == (1, img.IMG_MGMT_ERR.INVALID_HASH)
    assert ask(hash=bytes(32)) == (1, img.IMG_MGMT_ERR.HASH_NOT_FOUND)
    assert ask(hash=running) == (1, img.IMG_MGMT_ERR.IMAGE_SETTING_TEST_TO_ACTIVE_DENIED)


def test_a_blank_board_has_the_bootloader_only_and_takes_its_image_into_slot_0(tmp_path: Path) -> None:
    rig = Rig(tmp_path, blank=True)
    assert rig.ask(os_management.EchoWriteRequest(d="hi")) == {"r": "hi"}
    assert rig.ask(vendor.IdentifyRequest()) == {"rc": 8}
    assert rig.ask(fs.FileStatusRequest(name="/x")) == {"rc": 8}
    rig.upload(NEW)
    assert rig.loader.read(PRIMARY, len(NEW)) == NEW
    image = rig.loader.boot()
    assert image is not None
    assert image.version == "1.4.2"
    rig.flash.close()


def test_settings_outlive_a_reset_once_saved(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert rig.ask(kept.WriteSettingRequest(name="dps/id-scope", val=b"0ne1")) == {}
    assert rig.ask(kept.SaveSettingsRequest()) == {}
    assert rig.ask(kept.WriteSettingRequest(name="lost", val=b"x")) == {}
    rig.flash.close()
    again = Rig(tmp_path)
    assert again.ask(kept.ReadSettingRequest(name="dps/id-scope")) == {"val": b"0ne1"}
    missing = again.ask(kept.ReadSettingRequest(name="lost"))
    assert refusal(missing) == (3, kept.SETTINGS_MGMT_ERR.KEY_NOT_FOUND)
    again.flash.close()


def test_a_file_is_replaced_with_its_last_piece_and_read_in_pieces(rig: Rig) -> None:
    name, content = "/identity/device.pem", bytes(range(256)) * 5
    assert refusal(rig.ask(fs.FileDownloadRequest(off=0, name=name))) == (8, 3)
    rig.ask(fs.FileUploadRequest(off=0, data=content[:400], name=name, len=len(content)))
    assert refusal(rig.ask(fs.FileStatusRequest(name=name))) == (8, 3)
    for at in range(400, len(content), 400):
        rig.ask(fs.FileUploadRequest(off=at, data=content[at : at + 400], name=name))
    read = b""
    while len(read) < len(content):
        read += rig.ask(fs.FileDownloadRequest(off=len(read), name=name))["data"]
    assert read == content
    digest = rig.ask(fs.FileHashChecksumRequest(name=name))
    assert digest == {"type": "sha256", "len": len(content), "output": hashlib.sha256(content).digest()}


@pytest.mark.parametrize("name", ["", "x", "/../../etc/passwd\n", "/" + "a" * 200, "/é"])
def test_a_file_name_is_never_a_path_of_the_host(rig: Rig, name: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert refusal(rig.ask(fs.FileUploadRequest(off=0, data=b"x", name=name, len=1))) == (8, 2)
    assert sorted(tmp_path.rglob("*")) == before


def put(command: vendor.Command, number: int, off: int, length: int, data: bytes) -> Request:
    return vendor.PUT_REQUEST[command](id=number, off=off, len=length, d=data)


def test_a_transaction_runs_once_however_often_it_is_asked_for(rig: Rig) -> None:
    request = put(vendor.Command.SELF_TEST, 7, 0, 0, b"")
    first = rig.ask(request)
    result = first["d"]
    while len(result) < first["len"]:
        result += rig.ask(vendor.GET_REQUEST[vendor.Command.SELF_TEST](id=7, off=len(result)))["d"]
    assert len(vendor.unpack_tests(result)) == 20
    assert rig.ask(request) == first
    assert rig.tests_run == 1
    rig.ask(put(vendor.Command.SELF_TEST, 8, 0, 0, b""))
    assert rig.tests_run == 2


def test_an_argument_arrives_in_pieces_in_any_number_of_tries(rig: Rig) -> None:
    make = put(vendor.Command.MAKE_KEY, 1, 0, 4, b"p256")
    spki = rig.ask(make)["d"]
    assert rig.ask(put(vendor.Command.KEY, 2, 0, 0, b""))["d"] == spki
    assert rig.ask(put(vendor.Command.PROVE, 3, 0, 20, b"0123456789")) == {"id": 3, "off": 10}
    assert rig.ask(put(vendor.Command.PROVE, 3, 0, 20, b"0123456789")) == {"id": 3, "off": 10}
    assert rig.ask(put(vendor.Command.PROVE, 3, 15, 20, b"01234")) == {"id": 3, "off": 10}
    assert rig.ask(put(vendor.Command.PROVE, 3, 10, 20, b"0123456789"))["len"] > 60


def test_failures_of_transactions_are_their_results(rig: Rig) -> None:
    def failed(command: vendor.Command, number: int, argument: bytes = b"", off: int = 0) -> Err:
        group, rc = refusal(rig.ask(put(command, number, off, off + len(argument), argument)))
        assert group == vendor.GROUP
        return Err(rc)

    command = vendor.Command
    assert failed(command.TPM, 1, bytes(10)) is Err.NO_TPM
    assert failed(command.TPM, 1, bytes(10)) is Err.NO_TPM
    assert failed(command.CSR, 2, b"name") is Err.NO_KEY
    assert failed(command.MAKE_KEY, 3, b"p999") is Err.BAD_ARGUMENT
    rig.ask(put(command.MAKE_KEY, 4, 0, 4, b"p256"))
    assert failed(command.MAKE_KEY, 5, b"p256") is Err.KEY_EXISTS
    assert failed(command.CSR, 6, b"\xff") is Err.BAD_ARGUMENT
    assert failed(command.PROVE, 7, b"short") is Err.BAD_ARGUMENT
    assert failed(command.PROVE, 8, b"later", off=5) is Err.UNKNOWN_TRANSACTION


def test_a_version_1_request_gets_a_version_1_answer(rig: Rig) -> None:
    answer = rig.server.handle(bytes(fs.FileStatusRequest(name="/none", version=Version.V1)))
    assert answer is not None
    assert answer[0] >> 3 & 3 == 0
    assert cbor2.loads(answer[8:]) == {"rc": 1}


def test_an_unknown_key_is_ignored_and_a_wrong_type_refused(rig: Rig) -> None:
    def echo(content: object) -> Any:
        body = cbor2.dumps(content)
        answer = rig.server.handle(HEADER.pack(0x0A, 0, len(body), 0, 1, 0) + body)
        assert answer is not None
        return cbor2.loads(answer[8:])

    assert echo({"d": "x", "more": 1, "header": 2, "sequence": 3}) == {"r": "x"}
    for wrong in ({"d": [1]}, {}, [1], 5, {1: 2}):
        assert echo(wrong) == {"rc": 3}


def test_a_reset_is_answered_and_then_wanted(rig: Rig) -> None:
    assert rig.ask(os_management.ResetWriteRequest()) == {}
    assert rig.system.reset is os_management.BootMode.NORMAL


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 31),
    st.sampled_from([0, 1, 3, 8, 72, 9]),
    st.integers(0, 8),
    st.one_of(
        st.binary(max_size=100),
        st.dictionaries(
            st.sampled_from(["off", "len", "data", "d", "id", "name", "val", "hash", "sha", "image", "slot"]),
            st.one_of(st.integers(), st.binary(max_size=50), st.text(max_size=20), st.booleans(), st.none()),
        ).map(cbor2.dumps),
    ),
)
def test_no_request_brings_the_board_down(
    rig: Rig, first: int, group: int, command: int, body: bytes
) -> None:
    answer = rig.server.handle(HEADER.pack(first, 0, len(body), group, 1, command) + body)
    if first & 7 in (0, 2):
        assert answer is not None
        assert len(answer) <= BUFFER
        assert isinstance(cbor2.loads(answer[8:]), dict)
    else:
        assert answer is None
