"""ACME's boards for Hallmark: identity, settings and TPM by the line protocol of their maintenance port.

    #07 set dps/id-scope 0ne00000001      a request: number (two hex digits), command, arguments
    #07 ok                                its answer, or "#07 no REASON"

Arguments are percent-encoded (RFC 3986), so that each is one printable ASCII word. Lines end with a line feed. A board
starts its port with garbage.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote as encode
from urllib.parse import unquote_to_bytes

from hal.call import FOREVER, Call
from hal.driver import Bindings, Driver
from hal.errors import DeviceRefused, ProtocolViolation, quote
from hal.interfaces import Channel, DeviceIdentity, DeviceSettings, TpmTransport
from hal.types import BoardIdentity

LINE_LIMIT: Final = 16384
"""Octets of the longest line: a TPM response of 4096 octets (TPM 2.0, Part 2: MAX_RESPONSE_SIZE) as hex, and some."""
TEXT_LIMIT: Final = 128
TPM_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """What a recipe's [settings.ROLE] may say: `answer_within`, in seconds, is for boards that are slow."""

    answer_within: float = 2.0


class AcmeBoard:
    """`DeviceIdentity`, `DeviceSettings` and `TpmTransport` over a `Channel`."""

    def __init__(self, channel: Channel, settings: Settings) -> None:
        self._channel = channel
        self._settings = settings
        self._numbers = itertools.count()
        self._buffer = bytearray()

    def identify(self, call: Call) -> BoardIdentity:
        found = dict(pair.partition("=")[::2] for pair in self._ask(call, "id"))
        if not found.get("board"):
            raise ProtocolViolation("the board doesn't say what it is")
        return BoardIdentity(
            board=_text(found["board"]),
            serial=_text(found["serial"]) if found.get("serial") else None,
            firmware=_text(found["firmware"]) if found.get("firmware") else None,
        )

    def write_settings(self, call: Call, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            self._ask(call, "set", key, value)

    def read_settings(self, call: Call, keys: Sequence[str]) -> Mapping[str, str]:
        found = {}
        for key in keys:
            answer = self._ask(call, "get", key)
            if answer:
                found[key] = answer[0]
        return found

    def transmit(self, call: Call, command: bytes) -> bytes:
        if len(command) > TPM_LIMIT:
            raise ProtocolViolation(
                f"a TPM command of {len(command)} octets; at most {TPM_LIMIT} can be sent"
            )
        # No limit but the call's: a TPM may take many seconds to make a key.
        answer = self._ask(call, "tpm", command.hex(), within=FOREVER)
        try:
            response = bytes.fromhex("".join(answer))
        except ValueError as error:
            raise ProtocolViolation("the board's TPM response is not hex") from error
        if not 10 <= len(response) <= TPM_LIMIT:  # a response's header alone has 10 octets
            raise ProtocolViolation(f"a TPM response of {len(response)} octets")
        return response

    def _ask(self, call: Call, *words: str, within: float | None = None) -> list[str]:
        """One request and the words of its answer. What answers an earlier request comes too late and is skipped."""
        call = call.within(self._settings.answer_within if within is None else within)
        number = f"#{next(self._numbers) % 256:02x}"
        # The empty line ends whatever garbage the board has received before.
        line = " ".join([number, *(encode(word, safe="/:=.") for word in words)])
        self._channel.write(call, f"\n{line}\n".encode("ascii"))
        while True:
            answered, _, rest = self._line(call).partition(" ")
            if answered != number:
                continue
            status, *answer = rest.split(" ")
            if status == "no":
                raise DeviceRefused(f"the board refuses {words[0]}: {quote(rest[3:])}")
            if status != "ok":
                raise ProtocolViolation(f"the board answers {quote(rest)}")
            return [_decode(word) for word in answer]

    def _line(self, call: Call) -> str:
        while b"\n" not in self._buffer:
            if len(self._buffer) > LINE_LIMIT:
                self._buffer.clear()
                raise ProtocolViolation(f"a line of more than {LINE_LIMIT} octets")
            self._buffer += self._channel.read(call, LINE_LIMIT)
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        return line.decode("ascii", "replace").strip()


def _decode(word: str) -> str:
    try:
        return unquote_to_bytes(word).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolViolation(f"{quote(word)} is no UTF-8 text") from error


def _text(claimed: str) -> str:
    """What a board says of itself goes into records and onto screens: bounded and printable, or not at all."""
    if len(claimed) > TEXT_LIMIT or not (claimed.isascii() and claimed.isprintable()):
        raise ProtocolViolation(f"the board claims to be {quote(claimed)}")
    return claimed


@contextmanager
def _open(settings: Settings, needs: Bindings) -> Iterator[Mapping[type, object]]:
    board = AcmeBoard(needs.get(Channel), settings)
    yield {DeviceIdentity: board, DeviceSettings: board, TpmTransport: board}


DRIVER = Driver(
    name="acme-line",
    summary="ACME boards by their line protocol: identity, settings, TPM",
    settings=Settings,
    open=_open,
    offers=frozenset({DeviceIdentity, DeviceSettings, TpmTransport}),
    needs=frozenset({Channel}),
)
