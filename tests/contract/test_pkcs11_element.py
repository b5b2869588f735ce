"""The pkcs11-element driver over a real SoftHSM2 token: contracts of KeyPlace and CertificateStore, PINs, bad elements.

SoftHSM reads SOFTHSM2_CONF at C_Initialize: each test's driver is told its own by the `environment` setting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from drivers.pkcs11.driver import ELEMENT, ElementSettings
from hal.call import Call
from hal.conformance import certificate_store, key_place
from hal.driver import Bindings, opened
from hal.errors import (
    ConfigError,
    CredentialError,
    DeviceBusy,
    KeyConflict,
    PinRejected,
    ProtocolViolation,
)
from hal.interfaces import CertificateStore, Credentials, KeyPlace
from hal.secret import EMPTY, Secret
from hal.types import KeyProtection, KeyType
from tests.certificate_parts import CA, Ca
from tests.fixtures_signer import PIN, TOKEN, make_token, softhsm_module


class Pins:
    def __init__(self, pin: str = PIN) -> None:
        self.pin, self.asked = pin, 0

    def secret(self, name: str) -> Secret:
        assert name == "element-pin"
        self.asked += 1
        return Secret(self.pin.encode() + b"\n")


@dataclasses.dataclass
class Element:
    settings: ElementSettings
    environment: dict[str, str]
    pins: Pins = dataclasses.field(default_factory=Pins)

    @contextlib.contextmanager
    def open(self) -> Iterator[Bindings]:
        with opened([("element", ELEMENT, self.settings)], {Credentials: self.pins}) as bindings:
            yield bindings

    @contextlib.contextmanager
    def store(self) -> Iterator[CertificateStore]:
        with self.open() as bindings:
            yield bindings.get(CertificateStore)

    @contextlib.contextmanager
    def place(self) -> Iterator[KeyPlace]:
        with self.open() as bindings:
            yield bindings.get(KeyPlace)


@pytest.fixture
def element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Element:
    environment = make_token(tmp_path)
    monkeypatch.setenv("SOFTHSM2_CONF", "/nowhere")
    settings = ElementSettings(
        str(softhsm_module()),
        TOKEN,
        pin="element-pin",
        environment=(f"SOFTHSM2_CONF={environment['SOFTHSM2_CONF']}",),
    )
    return Element(settings, environment)


def lasting() -> Call:
    return Call.lasting(30)


@pytest.mark.parametrize("key_type", KeyType)
def test_key_place_contract(element: Element, key_type: KeyType) -> None:
    made = key_place.check(element.open, key_type)
    assert made.key_type is key_type
    with element.place() as place:
        assert place.protection is KeyProtection.ELEMENT


def test_certificate_store_contract(element: Element) -> None:
    with element.place() as place:
        place.make_key(lasting(), KeyType.P256, EMPTY)
    other = Ca("other")
    certificate_store.check(
        element.store,
        [CA.certificate, other.certificate],
        [other.certificate, CA.certificate, CA.certificate],
    )
    key_place.check_store(element.open, [[CA.certificate], [other.certificate]], lambda _: None)


def test_the_key_is_made_inside_and_other_programs_see_that_it_cannot_leave(element: Element) -> None:
    with element.place() as place:
        place.make_key(lasting(), KeyType.P256, EMPTY)
    shown = run_as(element, ATTRIBUTES)
    assert shown == {
        "SENSITIVE": "True",
        "EXTRACTABLE": "False",
        "ALWAYS_SENSITIVE": "True",
        "NEVER_EXTRACTABLE": "True",
        "LOCAL": "True",
    }


def test_openssl_takes_the_request_that_the_element_signed(element: Element, tmp_path: Path) -> None:
    for key_type in (KeyType.P256, KeyType.RSA2048):
        one = dataclasses.replace(element, settings=dataclasses.replace(element.settings, key=key_type.value))
        with one.place() as place:
            place.make_key(lasting(), key_type, EMPTY)
            (tmp_path / "csr.der").write_bytes(place.csr(lasting(), "gw-1"))
        command = ["openssl", "req", "-inform", "DER", "-in", str(tmp_path / "csr.der"), "-verify", "-noout"]
        done = subprocess.run([*command, "-subject"], check=True, capture_output=True, text=True, timeout=30)
        assert "OK" in done.stderr + done.stdout
        assert "CN = gw-1" in done.stdout or "CN=gw-1" in done.stdout


def test_a_key_that_can_be_read_out_of_the_element_is_refused(element: Element) -> None:
    run_as(element, "make_extractable()")
    with element.place() as place:
        for ask in (lambda: place.key(lasting()), lambda: place.prove(lasting(), bytes(32))):
            with pytest.raises(CredentialError, match="can be read out of it"):
                ask()
        with pytest.raises(CredentialError, match="can be read out of it"):
            place.make_key(lasting(), KeyType.P256, EMPTY)


def test_a_wrong_pin_is_given_once_and_never_again(element: Element) -> None:
    element.pins.pin = "wrong"
    with element.place() as place, pytest.raises(PinRejected, match="refuses the PIN") as caught:
        place.key(lasting())
    assert not caught.value.retryable
    element.pins.pin = PIN
    with element.place() as place, pytest.raises(PinRejected, match="was not given another"):
        place.key(lasting())


def test_an_element_that_is_not_there_is_waited_for(element: Element) -> None:
    absent = dataclasses.replace(element, settings=dataclasses.replace(element.settings, token="another"))
    with (
        absent.place() as place,
        pytest.raises(DeviceBusy, match="no element is labelled 'another'") as caught,
    ):
        place.key(lasting())
    assert caught.value.retryable


def test_an_element_that_goes_away_is_an_error_and_comes_back(element: Element, tmp_path: Path) -> None:
    with element.place() as place:
        key = place.make_key(lasting(), KeyType.P256, EMPTY)
        away = (tmp_path / "softhsm").rename(tmp_path / "away")
        with pytest.raises((DeviceBusy, ProtocolViolation, CredentialError)):
            place.prove(lasting(), bytes(32))
        away.rename(tmp_path / "softhsm")
        assert place.key(lasting()) == key
        with pytest.raises(KeyConflict):
            place.make_key(lasting(), KeyType.P256, EMPTY)


def test_an_interrupted_installation_shows_no_certificate(
    element: Element, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drivers.pkcs11.element_session import ElementSession

    with element.store() as store:
        store.install(lasting(), [CA.certificate])
        whole = ElementSession._store

        def cut(self: ElementSession, label: str, der: bytes, identity: bytes) -> None:
            if not label.endswith("-issuer-1"):
                raise OSError("power cut")
            whole(self, label, der, identity)

        monkeypatch.setattr(ElementSession, "_store", cut)
        with pytest.raises(OSError, match="power cut"):
            store.install(lasting(), [Ca("x").certificate, CA.certificate])
    monkeypatch.undo()
    monkeypatch.setenv("SOFTHSM2_CONF", "/nowhere")
    with element.store() as store:
        assert store.installed(lasting()) == []
        store.install(lasting(), [CA.certificate])
        assert store.installed(lasting()) == [CA.certificate]


def test_what_is_no_certificate_is_not_installed(element: Element) -> None:
    with element.store() as store:
        with pytest.raises(CredentialError, match="no certificate"):
            store.install(lasting(), [b"rubbish"])
        assert store.installed(lasting()) == []


def test_settings_are_checked(element: Element) -> None:
    wrong = dataclasses.replace(element.settings, environment=("NOTHING",))
    with pytest.raises(ConfigError, match="NAME=VALUE"), ELEMENT.open(wrong, Bindings()):
        pass


def test_the_certificate_carries_the_keys_id_as_other_programs_want_it(element: Element) -> None:
    with element.open() as bindings:
        bindings.get(KeyPlace).make_key(lasting(), KeyType.P256, EMPTY)
        bindings.get(CertificateStore).install(lasting(), [CA.certificate])
    assert run_as(element, "ids()")["same"] == "True"
    assert x509.load_der_x509_certificate(CA.certificate).subject.rfc4514_string() == "CN=issuing"


PRELUDE = """
import sys, pkcs11
from pkcs11 import Attribute, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters
token = pkcs11.lib(sys.argv[1]).get_token(token_label=sys.argv[2])
session = token.open(rw=True, user_pin=sys.argv[3])
def one(kind):
    (found,) = list(session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: "device"}))
    return found
def make_extractable():
    curve = session.create_domain_parameters(
        pkcs11.KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True)
    curve.generate_keypair(label="device", id=b"1", store=True,
        private_template={Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True})
def ids():
    print("same", one(ObjectClass.PRIVATE_KEY)[Attribute.ID] == one(ObjectClass.CERTIFICATE)[Attribute.ID] != b"")
"""
ATTRIBUTES = """
key = one(ObjectClass.PRIVATE_KEY)
for name in ("SENSITIVE", "EXTRACTABLE", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE", "LOCAL"):
    print(name, key[Attribute[name]])
"""


def run_as(element: Element, code: str) -> dict[str, str]:
    """What another process sees in the element, or does to it; lines of name and value."""
    import sys

    command = [sys.executable, "-c", PRELUDE + code, element.settings.module, TOKEN, PIN]
    done = subprocess.run(
        command, env=os.environ | element.environment, check=True, capture_output=True, text=True, timeout=30
    )
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())
