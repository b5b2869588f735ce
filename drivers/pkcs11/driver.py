"""The drivers `pkcs11` (the CA token) and `pkcs11-element` (a board's): which module, which token, how it is opened."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from drivers.pkcs11.ca_token import Pkcs11Token
from drivers.pkcs11.element import Pkcs11Element
from drivers.pkcs11.element_session import ElementSession
from drivers.pkcs11.owner import sole_owner
from drivers.pkcs11.session import TokenSession
from hal.call import Call
from hal.driver import Bindings, Driver
from hal.errors import ConfigError
from hal.interfaces import (
    CaToken,
    CertificateStore,
    Credentials,
    DeviceSecrets,
    KeyPlace,
    SecretWrap,
    TokenPin,
)
from hal.secret import Secret
from hal.types import KeyProtection


@dataclass(frozen=True, slots=True)
class Settings:
    """`module`: path of the PKCS#11 library. `token`: the token's label. `canary_key`: the canary key pair's."""

    module: str
    token: str
    canary_key: str = "canary"


@contextlib.contextmanager
def open_token(settings: Settings, needs: Bindings) -> Iterator[Mapping[type, object]]:
    """Never fails for want of a token: it is looked for at the first call, and again after each loss."""
    with sole_owner(settings.module) as thread:
        pin = needs.get(TokenPin)
        session = TokenSession(settings.module, settings.token, settings.canary_key, pin)
        token = Pkcs11Token(thread, session)
        try:
            yield {CaToken: token, SecretWrap: token, DeviceSecrets: token}
        finally:
            thread.run(Call(), session.close)


@dataclass(frozen=True, slots=True)
class ElementSettings:
    """`module`: path of the PKCS#11 library. `token`: the element's label. `key`: the label of its key pair.

    `certificate`: the label of its certificate, the key's when empty. `pin`: the name of the credential with its user
    PIN, empty for elements that want none. `environment`: NAME=VALUE that the library reads from its environment.
    """

    module: str
    token: str
    key: str = "device"
    certificate: str = ""
    pin: str = ""
    environment: tuple[str, ...] = ()

    @property
    def credentials(self) -> tuple[str, ...]:
        """See `hal.driver.Driver`."""
        return (self.pin,) if self.pin else ()


@contextlib.contextmanager
def open_element(settings: ElementSettings, needs: Bindings) -> Iterator[Mapping[type, object]]:
    """Nothing is asked of the element before the first call."""
    for entry in settings.environment:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise ConfigError(f"{entry!r} is no NAME=VALUE", key="environment")
        os.environ[name] = value  # of this process, which serves one board and then ends
    pin = None
    if settings.pin:
        found = needs.get(Credentials).secret(settings.pin)
        pin = Secret(found.reveal().rstrip(b"\r\n"))
    with sole_owner(settings.module) as thread:
        label = settings.certificate or settings.key
        session = ElementSession(settings.module, settings.token, settings.key, label, pin)
        element = Pkcs11Element(thread, session)
        try:
            yield {KeyPlace: element, CertificateStore: element}
        finally:
            thread.run(Call(), session.close)


ELEMENT: Final = Driver(
    name="pkcs11-element",
    summary="a key element on the board's side over a PKCS#11 module: the device's key and its certificate",
    settings=ElementSettings,
    open=open_element,
    offers=frozenset({KeyPlace, CertificateStore}),
    needs=frozenset({Credentials}),
    protection=KeyProtection.ELEMENT,
)

DRIVER: Final = Driver(
    name="pkcs11",
    summary="the CA token over a PKCS#11 module: signing, wrapping and deriving with keys that never leave it",
    settings=Settings,
    open=open_token,
    offers=frozenset({CaToken, SecretWrap, DeviceSecrets}),
    needs=frozenset({TokenPin}),
)
