"""The pkcs11 driver over a real SoftHSM2 token: the contract of CaToken and SecretWrap, losses, logins.

SoftHSM reads SOFTHSM2_CONF at C_Initialize, so each test points this process at its own token.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_der_private_key

from drivers.pkcs11.driver import DRIVER, Settings
from drivers.pkcs11.owner import ModuleThread
from hal.call import Call
from hal.conformance import ca_token, device_secrets, secret_wrap
from hal.driver import Bindings
from hal.errors import ConfigError, DeadlineExceeded, KeyMissing, PinRejected, TokenAbsent, TokenError
from hal.interfaces import CaToken, DeviceSecrets, SecretWrap, TokenPin
from hal.secret import Secret
from hal.types import KeyType, PinTries, PinVerdict, TokenCondition
from tests.fixtures_signer import PIN, TOKEN, make_token, softhsm_module


class CountedPin:
    """A TokenPin that notes each attempt and each verdict."""

    def __init__(self, pin: str = PIN) -> None:
        self.pin = pin
        self.attempts: list[PinTries] = []
        self.verdicts: list[PinVerdict] = []

    def begin(self, serial: str, tries: PinTries) -> Secret:
        assert serial
        self.attempts.append(tries)
        return Secret(self.pin.encode())

    def end(self, verdict: PinVerdict) -> None:
        self.verdicts.append(verdict)


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fresh token's objects, which this process now sees."""
    softhsm_module()
    environment = make_token(tmp_path)
    monkeypatch.setenv("SOFTHSM2_CONF", environment["SOFTHSM2_CONF"])
    return tmp_path / "softhsm"


@contextlib.contextmanager
def opened(pin: object, token: str = TOKEN) -> Iterator[CaToken]:
    needs = Bindings()
    needs.add("signer", TokenPin, pin)
    with DRIVER.open(Settings(str(softhsm_module()), token), needs) as offered:
        implementation = offered[CaToken]
        assert isinstance(implementation, CaToken)
        yield implementation


def opener(pin: object) -> Callable[[], AbstractContextManager[CaToken]]:
    return lambda: opened(pin)


def test_ca_token_contract(tokens: Path) -> None:
    ca_token.check(opener(CountedPin()), "canary", tuple(KeyType))


def test_secret_wrap_contract(tokens: Path) -> None:
    @contextlib.contextmanager
    def open_wrap() -> Iterator[SecretWrap]:
        with opened(CountedPin()) as token:
            assert isinstance(token, SecretWrap)
            yield token

    secret_wrap.check(open_wrap)


def test_device_secrets_contract(tokens: Path) -> None:
    @contextlib.contextmanager
    def open_secrets() -> Iterator[DeviceSecrets]:
        with opened(CountedPin()) as token:
            assert isinstance(token, DeviceSecrets)
            yield token

    device_secrets.check(open_secrets)


def test_private_keys_for_boards_come_in_every_type_and_leave_nothing_in_the_token(tokens: Path) -> None:
    with opened(CountedPin()) as token:
        assert isinstance(token, DeviceSecrets)
        before = sorted(tokens.rglob("*"))
        sizes = {
            key_type: load_der_private_key(
                token.make_private_key(Call.lasting(60), key_type).reveal(), None
            ).key_size  # type: ignore[union-attr]
            for key_type in KeyType
        }
        assert sizes == {KeyType.P256: 256, KeyType.P384: 384, KeyType.RSA2048: 2048, KeyType.RSA3072: 3072}
        assert sorted(tokens.rglob("*")) == before


def test_a_group_key_can_not_be_read_out_again(tokens: Path) -> None:
    key = bytes(range(64))
    with opened(CountedPin()) as token:
        assert isinstance(token, DeviceSecrets)
        token.import_group_key(Call.lasting(60), "line", Secret(key))
        with pytest.raises(KeyMissing, match="no group key"):
            assert isinstance(token, SecretWrap)
            token.wrap(Call.lasting(60), "resume", b"", Secret(b"x"))
            token.derive(Call.lasting(60), "resume", b"gw-1")
    # By another process: this one's module has to be left as it is.
    script = (
        "import pkcs11, sys\nfrom pkcs11 import Attribute\n"
        f"session = pkcs11.lib({str(softhsm_module())!r}).get_token(token_label={TOKEN!r}).open(user_pin={PIN!r})\n"
        "(key,) = session.get_objects({Attribute.LABEL: 'line'})\n"
        "assert (key[Attribute.SENSITIVE], key[Attribute.EXTRACTABLE]) == (True, False)\n"
        "try:\n    key[Attribute.VALUE]\n"
        "except pkcs11.AttributeSensitive:\n    print('sensitive')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "sensitive\n"
    assert not any(key in file.read_bytes() for file in tokens.rglob("*") if file.is_file())


def test_a_lost_token_is_told_and_comes_back_by_itself(tokens: Path) -> None:
    pin = CountedPin()
    with opened(pin) as token:
        call = Call.lasting(60)
        token.make_key(call, "canary", KeyType.P256)
        assert token.canary(call).condition is TokenCondition.READY
        away = tokens.rename(tokens.with_name("away"))
        for work in (lambda: token.canary(call), lambda: token.sign(call, "canary", b"data")):
            with pytest.raises(TokenAbsent):
                work()
            state = token.state(call)
            assert state.condition is TokenCondition.ABSENT
            assert state.problem
        away.rename(tokens)
        assert token.canary(call).condition is TokenCondition.READY
        assert pin.verdicts == [PinVerdict.ACCEPTED] * len(pin.attempts)


def test_a_loss_between_two_signatures_that_heals_is_not_noticed_outside(tokens: Path) -> None:
    """Objects made anew under the same label: old handles are dead, the next signature still succeeds."""
    with opened(CountedPin()) as token:
        call = Call.lasting(60)
        spki = token.make_key(call, "canary", KeyType.P256)
        session = token._session  # type: ignore[attr-defined]
        for _ in range(2):  # the second time with the key's handle at hand
            token._thread.run(call, session._connected.session.close)  # type: ignore[attr-defined]
            assert ca_token.verify(spki, token.sign(call, "canary", b"data"), b"data")
        wrapped = token.wrap(call, "wrap", b"", Secret(b"data"))  # type: ignore[attr-defined]
        token._thread.run(call, session._connected.session.close)  # type: ignore[attr-defined]
        assert token.unwrap(call, "wrap", b"", wrapped) == Secret(b"data")  # type: ignore[attr-defined]


def test_a_token_of_another_label_is_not_used(tokens: Path) -> None:
    with (
        opened(CountedPin(), "other") as token,
        pytest.raises(TokenAbsent, match="no token is labelled 'other'"),
    ):
        token.canary(Call.lasting(60))


def test_a_module_that_cannot_be_loaded_is_an_absent_token(tmp_path: Path) -> None:
    needs = Bindings()
    needs.add("signer", TokenPin, CountedPin())
    with DRIVER.open(Settings(str(tmp_path / "none.so"), TOKEN), needs) as offered:
        token = offered[CaToken]
        assert isinstance(token, CaToken)
        with pytest.raises(TokenAbsent, match="loading"):
            token.canary(Call.lasting(60))


def test_a_wrong_pin_is_told_once_and_the_token_says_that_it_was_counted(tokens: Path) -> None:
    pin = CountedPin("00000000")
    with opened(pin) as token:
        with pytest.raises(PinRejected):
            token.canary(Call.lasting(60))
        assert token.state(Call()).condition is TokenCondition.PIN_WRONG
        assert pin.verdicts == [PinVerdict.REJECTED]
        with pytest.raises(PinRejected):
            token.canary(Call.lasting(60))
    assert pin.attempts == [PinTries.CLEAN, PinTries.LOW]
    assert "00000000" not in str(token.state(Call()))


def test_no_pin_means_no_login_and_nothing_left_open(tokens: Path) -> None:
    class NoPin:
        def begin(self, serial: str, tries: PinTries) -> Secret:
            raise ConfigError("no PIN", file="ca-pin")

        def end(self, verdict: PinVerdict) -> None:
            raise AssertionError("nothing was begun")

    with opened(NoPin()) as token:
        for _ in range(3):
            with pytest.raises(ConfigError):
                token.canary(Call.lasting(60))
            assert token.state(Call()).condition is TokenCondition.PIN_BLOCKED


def test_the_module_has_one_owner_in_a_process(tokens: Path) -> None:
    with opened(CountedPin()), pytest.raises(TokenError, match="open in this process"), opened(CountedPin()):
        raise AssertionError("opened twice")


def test_a_call_that_waits_its_turn_gives_up_in_time_and_one_that_runs_is_waited_for() -> None:
    import threading

    thread = ModuleThread("test")
    running, release = threading.Event(), threading.Event()
    results: list[str] = []

    def hang() -> str:
        running.set()
        release.wait(20)
        return "ended"

    first = threading.Thread(target=lambda: results.append(thread.run(Call.lasting(0.05), hang)))
    first.start()
    assert running.wait(5)
    with pytest.raises(DeadlineExceeded):
        thread.run(Call.lasting(0.05), lambda: results.append("begun after its time"))
    assert results == []
    release.set()
    first.join(5)
    assert thread.run(Call.lasting(5), lambda: 17) == 17
    assert results == ["ended"]
    thread.stop()
