"""A TPM behind a line that is silent, breaks, garbles, lies or comes late: facts of tpm2-tss and tpm2-pytss handled."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from drivers.swtpm.process import SwtpmProcess
from drivers.tpm import codec
from drivers.tpm.context import Tpm
from drivers.tpm.tcti import TctiTransport, is_bench_only
from hal.call import Call, Cancel
from hal.conformance.endorsement_identity import name_of
from hal.errors import (
    DeadlineExceeded,
    DeviceBusy,
    DeviceGone,
    EkMismatch,
    HallmarkError,
    ProtocolViolation,
)
from hal.interfaces import EndorsementIdentity, KeyPlace, Ownership, TpmTransport
from hal.secret import EMPTY, Secret
from hal.types import EndorsementKey, Hierarchy, KeyType, SrkTemplate
from tests.fixtures_tpm import Recorder, lasting
from tests.tpm_parts import prove_ak, prove_resident

CC_HIERARCHY_CHANGE_AUTH = 0x129
CC_READ_PUBLIC = 0x173
CC_GET_RANDOM = 0x17B


def answer(code: int) -> bytes:
    return bytes.fromhex("80010000000a") + code.to_bytes(4, "big")


def loaded(line: Recorder) -> list[int]:
    """Handles of transient objects and sessions that are in the TPM now."""
    found: list[int] = []
    for kind in (codec.TRANSIENT_OBJECTS, codec.LOADED_SESSIONS, codec.SAVED_SESSIONS):
        found += codec.handles(
            line.inner.transmit(lasting(), codec.get_capability(codec.CAP_HANDLES, kind, 16))
        )[1]
    return found


def silent(call: Call, command: bytes) -> bytes:
    """A transport as the HAL asks for, on a line that says nothing."""
    call.pause(60)
    raise AssertionError("unreachable")


# --- silence, deadline, cancel ----------------------------------------------------------------------------------


def test_a_silent_line_ends_at_the_deadline_with_its_own_error_and_the_next_call_works(
    line: Recorder, ek: EndorsementKey
) -> None:
    with line.visit() as tpm:
        ownership = tpm.get(Ownership)
        ownership.state(lasting())
        line.before = lambda call, command: silent(call, command) if len(line.sent) % 5 == 0 else None
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            for _ in range(10):
                ownership.proves(Call.lasting(0.3), ek, Hierarchy.OWNER, EMPTY)
        assert time.monotonic() - begun < 2
        line.before = lambda call, command: None
        assert ownership.proves(lasting(), ek, Hierarchy.OWNER, EMPTY)
        assert loaded(line) == []


@pytest.mark.parametrize("after", [0, 4, 7])
def test_a_cancel_during_silence_returns_at_once_with_the_reason_of_the_cancel(
    line: Recorder, ek: EndorsementKey, after: int
) -> None:
    cancel = Cancel()
    with line.visit() as tpm:
        line.before = lambda call, command: silent(call, command) if len(line.sent) > after else None
        threading.Timer(0.1, lambda: cancel.set(DeviceGone("pulled out"))).start()
        begun = time.monotonic()
        with pytest.raises(DeviceGone, match="pulled out"):
            tpm.get(Ownership).proves(Call(cancel=cancel), ek, Hierarchy.OWNER, EMPTY)
        assert time.monotonic() - begun < 1
        before_close = len(line.sent)
    assert len(line.sent) == before_close, "a device that is gone is not told to shut down"
    cancel.close()


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, GeneratorExit, DeviceGone("x"), ZeroDivisionError]
)
def test_whatever_the_transport_raises_comes_out_as_it_is(
    line: Recorder, ek: EndorsementKey, error: BaseException | type[BaseException]
) -> None:
    def raising(call: Call, command: bytes) -> bytes | None:
        if len(line.sent) > 6:
            raise error
        return None

    line.before = raising
    expected = error if isinstance(error, type) else type(error)
    with pytest.raises(expected), line.visit() as tpm:
        try:
            tpm.get(Ownership).proves(lasting(), ek, Hierarchy.OWNER, EMPTY)
        finally:
            line.before = lambda call, command: None


# --- answers that are no answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garble",
    [
        lambda response: b"",
        lambda response: response[:-1],
        lambda response: response + b"\0",
        lambda response: b"\x12\x34" + response[2:],
        lambda response: response[:2] + b"\0\0\x10\x01" + response[6:] + bytes(4097 - len(response)),
        lambda response: answer(0)[:6] + response[6:10],
    ],
)
def test_an_answer_that_does_not_hold_is_a_violation_and_the_next_call_works(
    line: Recorder, ek: EndorsementKey, garble: Callable[[bytes], bytes]
) -> None:
    with line.visit() as tpm:
        line.after = lambda command, response: garble(response) if len(line.sent) > 6 else response
        with pytest.raises(ProtocolViolation):
            tpm.get(Ownership).proves(lasting(), ek, Hierarchy.OWNER, EMPTY)
        line.after = lambda command, response: response
        assert tpm.get(Ownership).proves(lasting(), ek, Hierarchy.OWNER, EMPTY)


def test_no_flipped_octets_in_any_answer_bring_out_anything_but_our_errors(
    line: Recorder, ek: EndorsementKey
) -> None:
    chance = random.Random(20)
    with line.visit() as tpm:
        tpm.get(Ownership).make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
        tpm.get(KeyPlace).make_key(lasting(), KeyType.P256, EMPTY)

    def flip(command: bytes, response: bytes) -> bytes:
        if chance.random() < 0.12:
            octets = bytearray(response)
            for _ in range(chance.choice((1, 1, 3))):
                octets[chance.randrange(len(octets))] ^= 1 << chance.randrange(8)
            return bytes(octets)
        return response

    failed = 0
    for _ in range(60):
        with line.visit() as tpm:
            line.after = flip
            for action in (
                lambda tpm=tpm: tpm.get(EndorsementIdentity).endorsements(lasting()),
                lambda tpm=tpm: prove_ak(tpm, ek),
                lambda tpm=tpm: tpm.get(Ownership).proves(lasting(), ek, Hierarchy.OWNER, EMPTY),
                lambda tpm=tpm: tpm.get(KeyPlace).csr(lasting(), "x"),
                lambda tpm=tpm: tpm.get(Ownership).state(lasting()),
            ):
                try:
                    action()
                except HallmarkError:
                    failed += 1
        line.after = lambda command, response: response
    assert failed > 50
    with line.visit() as tpm:
        assert tpm.get(Ownership).proves(lasting(), ek, Hierarchy.OWNER, EMPTY)


# --- a TPM that wants time, or to be started --------------------------------------------------------------------


@pytest.mark.parametrize("code", [0x922, 0x90A])
def test_a_tpm_that_wants_a_command_again_gets_it_after_a_pause(
    line: Recorder, ek: EndorsementKey, code: int
) -> None:
    refusals = iter([answer(code)] * 7)
    line.before = lambda call, command: next(refusals, None) if codec_of(command) == 0x176 else None
    begun = time.monotonic()
    with line.visit() as tpm:
        assert tpm.get(Ownership).proves(lasting(), ek, Hierarchy.OWNER, EMPTY)
    assert time.monotonic() - begun > 0.5, (
        "seven pauses: ESAPI alone would have given up after five tries at once"
    )


def codec_of(command: bytes) -> int:
    return int.from_bytes(command[6:10], "big")


def test_a_tpm_that_never_begins_is_left_at_the_deadline(line: Recorder) -> None:
    line.before = lambda call, command: answer(0x922)
    with line.visit() as tpm, pytest.raises(DeadlineExceeded):
        tpm.get(Ownership).state(Call.lasting(0.3))


def test_a_tpm_that_was_not_started_is_started(line: Recorder) -> None:
    line.before = lambda call, command: (
        answer(codec.RC_INITIALIZE) if codec.CC_STARTUP not in line.codes else None
    )
    with line.visit() as tpm:
        assert not tpm.get(Ownership).state(lasting()).auths_set
    assert line.codes.count(codec.CC_STARTUP) == 1


# --- what is loaded in the TPM ----------------------------------------------------------------------------------


def test_objects_and_sessions_that_others_left_are_swept(line: Recorder, ek: EndorsementKey) -> None:
    create = bytes.fromhex(
        "80020000004300000131400000010000000940000009000000000000040000000000"
        "1a0023000b00030472000000060080004300100003001000000000" + "0000" + "00000000"
    )
    hmac, policy = (
        codec.command(
            0x176, (0x40000007, 4), (0x40000007, 4), (16, 2), (0, 16), (0, 2), (kind, 1), (0x10, 2), (0xB, 2)
        )
        for kind in (0, 1)
    )
    for session in (policy, hmac, policy):
        assert codec.response_code(line.transmit(lasting(), create)) == 0
        assert codec.response_code(line.transmit(lasting(), session)) == 0
    assert codec.response_code(line.transmit(lasting(), create)) == 0x902, "three objects fill the TPM"
    assert codec.response_code(line.transmit(lasting(), session)) == 0x903, "three sessions as well"
    with line.visit() as tpm:
        prove_ak(tpm, ek)
        assert loaded(line) == []


def test_nothing_stays_loaded_after_any_operation_even_a_failed_one(
    line: Recorder, ek: EndorsementKey
) -> None:
    with line.visit() as tpm:
        ownership, place = tpm.get(Ownership), tpm.get(KeyPlace)
        owner = Secret.random()
        ownership.make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
        ownership.set_auth(lasting(), ek, Hierarchy.OWNER, owner, EMPTY)
        assert loaded(line) == []
        for action in (
            lambda: ownership.set_auth(lasting(), ek, Hierarchy.OWNER, owner, Secret.random()),
            lambda: place.make_key(lasting(), KeyType.P256, Secret.random()),
            lambda: place.csr(lasting(), "x"),
        ):
            with pytest.raises(HallmarkError):
                action()
            assert loaded(line) == []
        key = place.make_key(lasting(), KeyType.P256, owner)
        prove_resident(tpm, ek, key)
        assert loaded(line) == []


def test_one_object_asked_for_twice_outlives_the_first_that_lets_go(line: Recorder) -> None:
    tpm = Tpm(line)
    with tpm.use(lasting(), "x") as esapi, tpm.persistent(0x81010001) as outer:
        with tpm.persistent(0x81010001) as inner:
            assert inner == outer
        esapi.read_public(outer)
    tpm.close()


# --- the end of a visit -----------------------------------------------------------------------------------------


def test_each_visit_ends_with_an_orderly_shutdown_also_after_an_error(
    line: Recorder, ek: EndorsementKey
) -> None:
    with line.visit() as tpm:
        tpm.get(EndorsementIdentity).describe(lasting())
    assert line.codes[-1] == codec.CC_SHUTDOWN
    with line.visit() as tpm:
        line.after = lambda command, response: response[:-1]
        with pytest.raises(ProtocolViolation):
            tpm.get(Ownership).state(lasting())
        line.after = lambda command, response: response
        tpm.get(Ownership).state(lasting())
        line.after = lambda command, response: response[:-1]
        with pytest.raises(ProtocolViolation):
            tpm.get(Ownership).state(lasting())
        line.after = lambda command, response: response
    assert line.codes[-1] == codec.CC_SHUTDOWN


def test_a_visit_without_a_call_sends_nothing(line: Recorder) -> None:
    with line.visit():
        pass
    assert line.sent == []


# --- a line that lies -------------------------------------------------------------------------------------------


def test_a_salt_never_goes_to_another_key_than_the_verified_one(line: Recorder, ek: EndorsementKey) -> None:
    def other_key(command: bytes, response: bytes) -> bytes:
        """ReadPublic of the EK answered with a key of the liar's, whose Name is right for it."""
        if codec_of(command) != CC_READ_PUBLIC or ek.public not in response:
            return response
        mine = ek.public[:-1] + bytes([ek.public[-1] ^ 1])
        return response.replace(ek.public, mine).replace(ek.name, name_of(mine))

    line.after = other_key
    secret = Secret.random()
    with line.visit() as tpm, pytest.raises(EkMismatch):
        tpm.get(Ownership).set_auth(lasting(), ek, Hierarchy.OWNER, secret, EMPTY)
    assert CC_HIERARCHY_CHANGE_AUTH not in line.codes
    assert not line.carried(secret.reveal())


def test_a_public_area_that_is_not_what_its_name_says_is_never_used(
    line: Recorder, ek: EndorsementKey
) -> None:
    def other_key(command: bytes, response: bytes) -> bytes:
        mine = ek.public[:-1] + bytes([ek.public[-1] ^ 1])
        return response.replace(ek.public, mine) if codec_of(command) == CC_READ_PUBLIC else response

    line.after = other_key
    with line.visit() as tpm, pytest.raises((EkMismatch, ProtocolViolation)):
        tpm.get(Ownership).set_auth(lasting(), ek, Hierarchy.OWNER, Secret.random(), EMPTY)
    assert CC_HIERARCHY_CHANGE_AUTH not in line.codes


# --- the C library ----------------------------------------------------------------------------------------------

LOUD = """
from drivers.tpm.context import Tpm
from drivers.tpm.tss import TSS2_Exception
from drivers.swtpm.process import SwtpmProcess
from hal.call import Call
from hal.errors import HallmarkError
from pathlib import Path
import sys
with SwtpmProcess(Path(sys.argv[1])) as process:
    tpm = Tpm(process)
    try:
        with tpm.use(Call.lasting(5), "x") as esapi:
            esapi.tr_from_tpmpublic(0x81010099)
    except HallmarkError as error:
        print(error)
"""


def test_the_c_library_says_nothing_even_when_the_environment_asks_it_to(tpm_state: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", LOUD, str(tpm_state)],
        env={**os.environ, "TSS2_LOG": "all+trace"},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stderr == ""
    assert "TPM_RC_HANDLE" in child.stdout


def test_lanes_in_parallel_each_get_their_own_kind_of_key(tmp_path: Path, tpm_template: Path) -> None:
    import shutil

    from drivers.swtpm.process import SwtpmProcess

    problems: list[object] = []

    def lane(number: int) -> None:
        state = tmp_path / str(number)
        shutil.copytree(tpm_template, state)
        wanted = (KeyType.P256, KeyType.P384, KeyType.RSA2048)[number % 3]
        try:
            with SwtpmProcess(state) as process, Recorder(process).visit() as tpm:
                ek = tpm.get(EndorsementIdentity).endorsements(lasting()).keys[0]
                tpm.get(Ownership).make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
                key = tpm.get(KeyPlace).make_key(lasting(), wanted, EMPTY)
                assert key.key_type is wanted
                prove_resident(tpm, ek, key)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=lane, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


# --- TCTIs of the host ------------------------------------------------------------------------------------------


def test_a_tcti_that_is_not_there_is_busy_and_says_what_to_check() -> None:
    for tcti in ("device:/dev/hallmark-has-no-such-tpm", "no-such-tcti:x"):
        with pytest.raises(DeviceBusy) as caught:
            TctiTransport(tcti).transmit(lasting(), codec.shutdown())
        assert "can't be opened" in str(caught.value)


def test_tctis_for_the_bench_are_known_as_such() -> None:
    assert all(is_bench_only(tcti) for tcti in ("swtpm:path=/x", "mssim:host=10.0.0.1", "swtpm"))
    assert not any(is_bench_only(tcti) for tcti in ("device:/dev/tpm0", "cmd:x", "tabrmd:"))


class Chip:
    """A character device as the kernel gives for a TPM, made of a pty: one write is a command, one read its answer."""

    def __init__(self, inner: TpmTransport) -> None:
        self._inner = inner
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self.answers = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while (command := os.read(self._master, 4096)) != b"end":
            self.answers.wait()
            os.write(self._master, self._inner.transmit(lasting(), command))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.answers.set()
        os.write(self._slave, b"end")
        self._thread.join()
        os.close(self._slave)
        os.close(self._master)


def test_a_silent_tpm_of_this_host_is_left_at_the_deadline_and_its_late_answer_dropped(
    swtpm: SwtpmProcess,
) -> None:
    persistent = codec.get_capability(codec.CAP_HANDLES, codec.PERSISTENT_OBJECTS, 8)
    with Chip(swtpm) as chip:
        transport = TctiTransport(f"device:{chip.path}")
        chip.answers.set()
        assert codec.handles(transport.transmit(lasting(), persistent)) == (False, [0x81010001, 0x81010016])
        chip.answers.clear()
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            transport.transmit(Call.lasting(0.2), codec.command(CC_GET_RANDOM, (8, 2)))
        cancel = Cancel()
        threading.Timer(0.1, cancel.set, [DeviceGone("pulled out")]).start()
        with pytest.raises(DeviceGone, match="pulled out"):
            transport.transmit(Call(cancel=cancel), persistent)
        assert time.monotonic() - begun < 2
        chip.answers.set()
        assert codec.handles(transport.transmit(lasting(), persistent)) == (False, [0x81010001, 0x81010016])
        transport.close()
        cancel.close()
