"""The PIN and its mark: a wrong PIN is never tried twice, and an interrupted right one doesn't stop a station."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import ConfigError, PinRejected
from hal.secret import Secret
from hal.types import PinTries, PinVerdict
from station.signer.pin import MARK, PinDescriptor, PinFile, PinGuard, read_mark, unblock

SERIAL = "ce56ac3748f7c7bf"


def guard(folder: Path, pin: str = "1234") -> PinGuard:
    """A new process's, whose credential holds `pin`."""
    reading, writing = os.pipe()
    os.write(writing, pin.encode())
    os.close(writing)
    return PinGuard(folder, PinDescriptor(reading))


def state(folder: Path) -> str | None:
    mark = read_mark(folder / MARK)
    return mark.state if mark else None


def test_an_attempt_is_on_record_before_the_pin_is_given_and_gone_after_success(tmp_path: Path) -> None:
    mine = guard(tmp_path)
    assert mine.begin(SERIAL, PinTries.UNTOLD) == Secret(b"1234")
    assert state(tmp_path) == "trying"
    assert (tmp_path / MARK).stat().st_mode & 0o777 == 0o600
    mine.end(PinVerdict.ACCEPTED)
    assert state(tmp_path) is None
    mine.begin(SERIAL, PinTries.CLEAN)


@pytest.mark.parametrize("tries", PinTries)
def test_a_refused_pin_bars_every_later_login_whatever_the_token_says(
    tmp_path: Path, tries: PinTries
) -> None:
    mine = guard(tmp_path)
    mine.begin(SERIAL, PinTries.CLEAN)
    mine.end(PinVerdict.REJECTED)
    for later in (mine, guard(tmp_path), guard(tmp_path, "9999")):
        with pytest.raises(PinRejected):
            later.begin(SERIAL, tries)
    assert state(tmp_path) == "rejected"


@pytest.mark.parametrize("tries", [tries for tries in PinTries if tries is not PinTries.CLEAN])
def test_an_interrupted_login_bars_the_next_when_it_may_have_been_counted(
    tmp_path: Path, tries: PinTries
) -> None:
    guard(tmp_path).begin(SERIAL, PinTries.CLEAN)
    with pytest.raises(PinRejected):
        guard(tmp_path).begin(SERIAL, tries)


def test_an_interrupted_login_goes_on_when_the_token_shows_that_no_wrong_pin_was_counted(
    tmp_path: Path,
) -> None:
    guard(tmp_path).begin(SERIAL, PinTries.CLEAN)
    later = guard(tmp_path)
    later.begin(SERIAL, PinTries.CLEAN)
    later.end(PinVerdict.ACCEPTED)
    assert state(tmp_path) is None


def test_an_interrupted_login_at_another_token_bars(tmp_path: Path) -> None:
    guard(tmp_path).begin(SERIAL, PinTries.CLEAN)
    with pytest.raises(PinRejected, match="another token"):
        guard(tmp_path).begin("other", PinTries.CLEAN)


@pytest.mark.parametrize("tries", [PinTries.LOW, PinTries.FINAL, PinTries.LOCKED])
def test_a_token_that_counts_wrong_pins_is_not_tried_without_a_person(
    tmp_path: Path, tries: PinTries
) -> None:
    with pytest.raises(PinRejected):
        guard(tmp_path).begin(SERIAL, tries)
    assert state(tmp_path) is None


def test_unblocking_allows_one_attempt_and_no_second(tmp_path: Path) -> None:
    mine = guard(tmp_path)
    mine.begin(SERIAL, PinTries.CLEAN)
    mine.end(PinVerdict.REJECTED)
    assert unblock(tmp_path)
    later = guard(tmp_path, "4321")
    assert later.begin(SERIAL, PinTries.LOW) == Secret(b"4321")
    later.end(PinVerdict.REJECTED)
    with pytest.raises(PinRejected):
        guard(tmp_path, "1111").begin(SERIAL, PinTries.LOW)


def test_one_process_never_offers_a_refused_pin_again_even_when_unblocked(tmp_path: Path) -> None:
    mine = guard(tmp_path)
    mine.begin(SERIAL, PinTries.CLEAN)
    mine.end(PinVerdict.REJECTED)
    unblock(tmp_path)
    with pytest.raises(PinRejected, match="refused by the token already"):
        mine.begin(SERIAL, PinTries.LOW)
    assert state(tmp_path) == "allowed"


def test_the_last_try_needs_a_person_who_says_so(tmp_path: Path) -> None:
    unblock(tmp_path)
    with pytest.raises(PinRejected, match="one more wrong PIN"):
        guard(tmp_path).begin(SERIAL, PinTries.FINAL)
    unblock(tmp_path, final_try=True)
    guard(tmp_path).begin(SERIAL, PinTries.FINAL)


def test_a_locked_token_is_never_tried(tmp_path: Path) -> None:
    unblock(tmp_path, final_try=True)
    with pytest.raises(PinRejected, match="locked"):
        guard(tmp_path).begin(SERIAL, PinTries.LOCKED)


@given(st.binary(max_size=200))
def test_a_damaged_mark_counts_as_an_attempt_that_nobody_saw_end(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    folder = tmp_path_factory.mktemp("pin")
    (folder / MARK).write_bytes(raw)
    with pytest.raises(PinRejected):
        guard(folder).begin(SERIAL, PinTries.CLEAN)


def test_nothing_on_disk_tells_the_pin(tmp_path: Path) -> None:
    mine = guard(tmp_path, "98761234")
    mine.begin(SERIAL, PinTries.CLEAN)
    mine.end(PinVerdict.REJECTED)
    assert [path.name for path in tmp_path.iterdir()] == [MARK]
    assert b"9876" not in (tmp_path / MARK).read_bytes()


def pin_file(folder: Path, content: bytes, mode: int = 0o600) -> PinFile:
    path = folder / "ca-pin"
    path.write_bytes(content)
    path.chmod(mode)
    return PinFile(path)


def test_a_pin_file_gives_its_line_without_the_end(tmp_path: Path) -> None:
    assert pin_file(tmp_path, b"1234\n").read() == Secret(b"1234")
    assert pin_file(tmp_path, b"1234\r\n", 0o400).read() == Secret(b"1234")
    assert pin_file(tmp_path, b" 1 ", 0o440).read() == Secret(b" 1 ")


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o601])
def test_a_pin_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="expected 0600 or 0400"):
        pin_file(tmp_path, b"1234", mode).read()


@pytest.mark.parametrize("content", [b"", b"\n", b"1\n2\n", b"a" * 256, b"\xff\xfe", b"12\x0034"])
def test_what_is_no_pin_is_refused_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        pin_file(tmp_path, content).read()
    assert caught.value.__cause__ is None
    assert "aaaa" not in str(caught.value)


def test_a_pin_file_is_no_link_and_no_folder(tmp_path: Path) -> None:
    real = pin_file(tmp_path, b"1234").path
    link = tmp_path / "link"
    link.symlink_to(real)
    for path in (link, tmp_path / "none"):
        with pytest.raises(ConfigError, match="can't be read"):
            PinFile(path).read()


def test_a_pin_comes_by_file_descriptor_which_is_closed_afterwards() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"1234\n")
    os.close(writing)
    source = PinDescriptor(reading)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)
    assert source.read() == source.read() == Secret(b"1234")
    with pytest.raises(ConfigError, match="can't be read"):
        PinDescriptor(reading)
