"""The vendor group: its document shows the very frames that the codecs make, and nothing malformed passes them."""

from __future__ import annotations

import re
from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from smp.message import Request, Response

from drivers.smp import vendor
from drivers.smp.framing import encode
from drivers.smp.messages import BoardError, split, understood
from drivers.smp.vendor import Command
from hal.errors import ProtocolViolation

DOCUMENT = (Path(__file__).parents[2] / "docs" / "vendor-group.md").read_text()
FRAMES = {
    name: bytes.fromhex(text.replace("\n", ""))
    for name, text in re.findall(r"```hex ([a-z-]+)\n([0-9a-f\n]+)```", DOCUMENT)
}
ID = 0x01020304
BUILT: dict[str, Request | Response] = {
    "identify-request": vendor.IdentifyRequest(sequence=1),
    "identify-response": vendor.IdentifyResponse(
        sequence=1, v=1, board="gw-200", sn="A1", mac=["02:00:00:00:00:01"], fw="1.4.2", tpm=True
    ),
    "prove-put": vendor.PUT_REQUEST[Command.PROVE](sequence=7, id=ID, off=0, len=16, d=bytes(range(16))),
    "prove-more": vendor.PUT_RESPONSE[Command.PROVE](sequence=7, id=ID, off=8),
    "prove-result": vendor.PUT_RESPONSE[Command.PROVE](sequence=7, id=ID, off=0, len=2, d=b"\xca\xfe"),
    "prove-get": vendor.GET_REQUEST[Command.PROVE](sequence=8, id=ID, off=200),
}


def test_the_document_shows_each_frame_and_its_line() -> None:
    assert set(FRAMES) == {name + suffix for name in BUILT for suffix in ("", "-line")}


@pytest.mark.parametrize("name", BUILT)
def test_the_document_shows_what_the_codecs_make(name: str) -> None:
    assert FRAMES[name] == bytes(BUILT[name])
    assert FRAMES[f"{name}-line"] == encode(bytes(BUILT[name]))


@pytest.mark.parametrize("name", BUILT)
def test_the_codecs_read_what_the_document_shows(name: str) -> None:
    built = BUILT[name]
    fields = type(built).model_fields.keys() - {"header", "version", "sequence", "smp_data"}
    read = type(built).loads(FRAMES[name])
    assert {field: getattr(read, field) for field in fields} == {
        field: getattr(built, field) for field in fields
    }


def test_the_document_names_the_numbers_of_the_codecs() -> None:
    assert f"**{vendor.GROUP}**" in DOCUMENT
    for command in vendor.TRANSACTIONS:
        assert f"| {command.value} | {command.name.lower().replace('_', '-')} |" in DOCUMENT
    for error in vendor.Err:
        assert error is vendor.Err.OK or f"| {error.value} | {error.name} |" in DOCUMENT


def answer(content: object, command: int = Command.IDENTIFY) -> bytes:
    body = cbor2.dumps(content)
    head = bytes([1 | 1 << 3, 0]) + len(body).to_bytes(2, "big") + vendor.GROUP.to_bytes(2, "big")
    return head + bytes([1, command]) + body


IDENTITY = {"v": 1, "board": "gw-200"}


def test_unknown_keys_are_ignored() -> None:
    reply = split(answer(IDENTITY | {"colour": "red"}))
    assert understood(reply, vendor.IdentifyResponse, "identify").board == "gw-200"


@pytest.mark.parametrize(
    "wrong",
    [
        {"board": "gw-200"},
        IDENTITY | {"v": 0},
        IDENTITY | {"v": "1"},
        IDENTITY | {"board": ""},
        IDENTITY | {"board": "x" * 65},
        IDENTITY | {"board": "gw\x1b[2J"},
        IDENTITY | {"board": "gw-200\n"},
        IDENTITY | {"board": b"gw-200"},
        IDENTITY | {"sn": 5},
        IDENTITY | {"mac": ["02:00:00:00:00:0G"]},
        IDENTITY | {"mac": ["02:00:00:00:00:01"] * 9},
        IDENTITY | {"tpm": 1},
        [IDENTITY],
        "gw-200",
        {"rc": "no"},
        {"err": {"group": 72}},
        {"err": 5},
    ],
)
def test_an_identity_outside_the_limits_is_a_violation(wrong: object) -> None:
    with pytest.raises(ProtocolViolation):
        understood(split(answer(wrong)), vendor.IdentifyResponse, "identify")


@pytest.mark.parametrize(
    ("content", "group", "rc", "text"),
    [
        ({"rc": 8}, None, 8, r"ENOTSUP"),
        ({"rc": 1, "rsn": "flash \x1b[31m"}, None, 1, r"EUNKNOWN.*\\x1b"),
        ({"err": {"group": 72, "rc": 2}}, 72, 2, r"NO_TPM"),
        ({"err": {"group": 1, "rc": 30}}, 1, 30, r"TOO_LARGE"),
        ({"err": {"group": 999, "rc": 12345}}, 999, 12345, r"12345"),
    ],
)
def test_both_kinds_of_errors_are_told(content: object, group: int | None, rc: int, text: str) -> None:
    with pytest.raises(BoardError, match=text) as caught:
        understood(split(answer(content)), vendor.IdentifyResponse, "identify")
    assert (caught.value.group, caught.value.rc, caught.value.code) == (group, rc, "DeviceRefused")


@given(st.binary(max_size=200))
def test_any_octets_are_an_answer_or_a_violation(noise: bytes) -> None:
    head = bytes([9, 0]) + len(noise).to_bytes(2, "big") + bytes([0, vendor.GROUP, 1, 0])
    reply = split(head + noise)
    try:
        read = understood(reply, vendor.IdentifyResponse, "identify")
    except (ProtocolViolation, BoardError):
        return
    assert 0 < len(read.board) <= vendor.TEXT_LIMIT


cbor = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["id", "off", "len", "d", "rc", "err", "rsn", "header", "smp_data", "x"])


@given(st.dictionaries(keys, cbor, max_size=6))
def test_any_map_is_an_answer_or_a_violation(content: dict[str, object]) -> None:
    reply = split(answer(content, Command.TPM))
    try:
        read = understood(reply, vendor.PUT_RESPONSE[Command.TPM], "a TPM command")
    except (ProtocolViolation, BoardError):
        return
    assert 0 <= read.off <= vendor.PAYLOAD_LIMIT
    assert read.d is None or len(read.d) <= vendor.PAYLOAD_LIMIT


@given(st.binary(max_size=100) | cbor.map(cbor2.dumps))
def test_any_self_test_result_is_read_or_refused(data: bytes) -> None:
    try:
        results = vendor.unpack_tests(data)
    except ValueError:
        return
    assert vendor.unpack_tests(vendor.pack_tests(results)) == results


def test_a_message_that_is_not_as_long_as_it_says_is_a_violation() -> None:
    whole = answer(IDENTITY)
    for wrong in (whole[:-1], whole + b"x", whole[:7], b""):
        with pytest.raises(ProtocolViolation):
            split(wrong)
