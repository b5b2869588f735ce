"""The driver `pkcs11`: which module, which token, and how it is opened and left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from drivers.pkcs11.ca_token import Pkcs11Token
from drivers.pkcs11.owner import sole_owner
from drivers.pkcs11.session import TokenSession
from hal.call import Call
from hal.driver import Bindings, Driver
from hal.interfaces import CaToken, SecretWrap, TokenPin


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
            yield {CaToken: token, SecretWrap: token}
        finally:
            thread.run(Call(), session.close)


DRIVER: Final = Driver(
    name="pkcs11",
    summary="the CA token over a PKCS#11 module: signing and wrapping with keys that never leave it",
    settings=Settings,
    open=open_token,
    offers=frozenset({CaToken, SecretWrap}),
    needs=frozenset({TokenPin}),
)
