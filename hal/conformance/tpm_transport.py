"""What every TpmTransport promises: `check(open_)`, with commands that change nothing. No test framework comes in.

Command codes and layouts: TPM 2.0 Library, Part 3, 9.3 (Startup), 16.1 (GetRandom), 30.2 (GetCapability); big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from hal.call import Call
from hal.conformance.calls import Silence, ends_at_its_deadline, honours_calls, working
from hal.errors import HallmarkError
from hal.interfaces import TpmTransport

Open = Callable[[], AbstractContextManager[TpmTransport]]

_HEADER: Final = struct.Struct(">HII")  # tag, size, code
_NO_SESSIONS: Final = 0x8001
_STARTUP, _GET_RANDOM, _GET_CAPABILITY = 0x144, 0x17B, 0x17A
_SU_CLEAR: Final = 0
_SUCCESS, _INITIALIZE = 0x000, 0x100
_CAP_COMMANDS, _FIRST_COMMAND, _MANY = 2, 0x11F, 254
_LIMIT: Final = 4096


def check(open_: Open, silence: Silence | None = None) -> None:
    """A TPM that works. `silence`: see `hal.conformance.calls`; it also shows what becomes of late answers."""
    with open_() as tpm:
        started = _code(tpm.transmit(working(), _command(_STARTUP, struct.pack(">H", _SU_CLEAR))))
        assert started in (_SUCCESS, _INITIALIZE), f"Startup gave {started:#x}"
        gives_each_command_its_answer(tpm)
        gives_long_answers_whole(tpm)
        refuses_what_is_too_long(tpm)
        honours_calls(lambda call: _random(tpm, call, 8), silence)
        if silence is not None:
            drops_late_answers(tpm, silence)


def gives_each_command_its_answer(tpm: TpmTransport) -> None:
    """Answers of different lengths, so that none can be another's."""
    for count in (1, 16, 2, 32, 3):
        _random(tpm, working(), count)


def gives_long_answers_whole(tpm: TpmTransport) -> None:
    """The list of commands takes several hundred octets, more than links carry at once."""
    response = tpm.transmit(
        working(), _command(_GET_CAPABILITY, struct.pack(">III", _CAP_COMMANDS, _FIRST_COMMAND, _MANY))
    )
    assert _code(response) == _SUCCESS, "GetCapability failed"
    (count,) = struct.unpack_from(">I", response, _HEADER.size + 5)
    assert len(response) == _HEADER.size + 9 + 4 * count, "a response that is not as long as its list"


def refuses_what_is_too_long(tpm: TpmTransport) -> None:
    """With an error of the tree, and without harm to the next command."""
    try:
        tpm.transmit(working(), _command(_GET_RANDOM, bytes(_LIMIT)))
    except HallmarkError:
        _random(tpm, working(), 4)
        return
    message = f"a command of more than {_LIMIT} octets was sent"
    raise AssertionError(message)


def drops_late_answers(tpm: TpmTransport, silence: Silence) -> None:
    """The answer to a command that was given up comes when another one waits: it is not taken for that one's."""
    with silence():
        ends_at_its_deadline(lambda call: _random(tpm, call, 8))
    for count in (16, 4, 24):
        _random(tpm, working(), count)


def _command(code: int, body: bytes) -> bytes:
    return _HEADER.pack(_NO_SESSIONS, _HEADER.size + len(body), code) + body


def _code(response: bytes) -> int:
    tag, size, code = _HEADER.unpack_from(response)
    assert tag == _NO_SESSIONS, f"a response with tag {tag:#x}"
    assert size == len(response), f"a response of {len(response)} octets that says it has {size}"
    return int(code)


def _random(tpm: TpmTransport, call: Call, count: int) -> None:
    response = tpm.transmit(call, _command(_GET_RANDOM, struct.pack(">H", count)))
    assert _code(response) == _SUCCESS, "GetRandom failed"
    assert len(response) == _HEADER.size + 2 + count, "the answer to another command"
