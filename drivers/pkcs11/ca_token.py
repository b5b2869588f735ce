"""`CaToken`, `SecretWrap` and `DeviceSecrets` as others call them: from any thread, done by the module's owner."""

from __future__ import annotations

from typing import Final

from drivers.pkcs11.owner import ModuleThread
from drivers.pkcs11.session import NONCE, TAG_BITS, TokenSession
from hal.call import Call
from hal.errors import TokenError
from hal.secret import Secret
from hal.types import KeyType, TokenState

SECRET_LIMIT: Final = 4096
"""Octets of a secret that is wrapped."""
WRAP_VERSION: Final = b"\x01"
"""First octet of what is wrapped, and of what is authenticated with it."""
GROUP_KEY_LEAST: Final = 32
GROUP_KEY_MOST: Final = 64
"""Octets. Less is weaker than what is derived from it; more, HMAC-SHA256 would hash first (RFC 2104, 2)."""
OVERHEAD: Final = len(WRAP_VERSION) + NONCE + TAG_BITS // 8


class Pkcs11Token:
    def __init__(self, thread: ModuleThread, session: TokenSession) -> None:
        self._thread, self._session = thread, session

    def state(self, call: Call) -> TokenState:
        """At once, also while the token hangs: what was seen last."""
        del call
        return self._session.state

    def canary(self, call: Call) -> TokenState:
        return self._thread.run(call, self._session.canary)

    def public_key(self, call: Call, label: str) -> bytes:
        return self._thread.run(call, lambda: self._session.public_key(label))

    def make_key(self, call: Call, label: str, key_type: KeyType) -> bytes:
        return self._thread.run(call, lambda: self._session.make_key(label, key_type))

    def sign(self, call: Call, label: str, data: bytes) -> bytes:
        return self._thread.run(call, lambda: self._session.sign(label, data))

    def wrap(self, call: Call, label: str, context: bytes, plain: Secret) -> bytes:
        """Version, 12-octet nonce, AES-256-GCM ciphertext with its 16-octet tag. `context` is authenticated with it."""
        if len(plain) > SECRET_LIMIT:
            message = f"a secret of {len(plain)} octets is too long to wrap; at most {SECRET_LIMIT}"
            raise TokenError(message)
        sealed = self._thread.run(call, lambda: self._session.encrypt(label, WRAP_VERSION + context, plain))
        return WRAP_VERSION + sealed

    def destroy(self, call: Call, label: str) -> None:
        self._thread.run(call, lambda: self._session.destroy(label))

    def unwrap(self, call: Call, label: str, context: bytes, wrapped: bytes) -> Secret:
        if not OVERHEAD <= len(wrapped) <= OVERHEAD + SECRET_LIMIT or not wrapped.startswith(WRAP_VERSION):
            message = f"{len(wrapped)} octets are no wrapped secret of version {WRAP_VERSION[0]}"
            raise TokenError(message, hint="The record was damaged or was written by another release.")
        sealed = wrapped[len(WRAP_VERSION) :]
        return self._thread.run(call, lambda: self._session.decrypt(label, WRAP_VERSION + context, sealed))

    def random(self, call: Call, octets: int) -> Secret:
        return self._thread.run(call, lambda: self._session.random(octets))

    def derive(self, call: Call, label: str, data: bytes) -> Secret:
        return self._thread.run(call, lambda: self._session.mac(label, data))

    def make_private_key(self, call: Call, key_type: KeyType) -> Secret:
        return self._thread.run(call, lambda: self._session.make_exportable(key_type))

    def import_group_key(self, call: Call, label: str, key: Secret) -> None:
        if not GROUP_KEY_LEAST <= len(key) <= GROUP_KEY_MOST:
            message = f"a group key of {len(key)} octets; expected {GROUP_KEY_LEAST} to {GROUP_KEY_MOST}"
            raise TokenError(message, hint="Import the group's primary key as the service shows it.")
        self._thread.run(call, lambda: self._session.import_mac_key(label, key))
