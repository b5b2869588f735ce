"""Everything that calls the PKCS#11 module. All of it runs in the one thread of `owner`, and nowhere else.

A token can go at any moment (unplugged, its USB hub reset, its daemon restarted), and an idle session can die; on some
only C_Finalize brings it back (yubihsm-shell#541). So whatever goes wrong is answered in one way: forget all handles,
finalise, initialise, look everything up again by label, log in. Login goes through `TokenPin`, which never lets a PIN
that was refused be tried again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import pkcs11
from pkcs11 import GCMParams, Mechanism, ObjectClass, PKCS11Error

from drivers.pkcs11 import keys, objects, tokens
from hal.errors import (
    DuplicateKey,
    HallmarkError,
    KeyMissing,
    PinRejected,
    TokenAbsent,
    TokenError,
    quote,
)
from hal.interfaces import TokenPin
from hal.secret import Secret
from hal.types import KeyType, PinVerdict, TokenCondition, TokenState

T = TypeVar("T")

NONCE: Final = 12
"""Octets; NIST SP 800-38D, 8.2.2. Random: good for 2^32 secrets under one key."""
TAG_BITS: Final = 128


@dataclass(slots=True)
class _Connected:
    """What is good between one C_Initialize and the next C_Finalize."""

    session: Any
    privates: dict[str, tuple[Any, keys.PublicKey]] = field(default_factory=dict)
    secrets: dict[str, Any] = field(default_factory=dict)


class TokenSession:
    """One token of one module, found by label."""

    def __init__(self, module: str, label: str, canary: str, pin: TokenPin) -> None:
        self._module, self._label, self._canary, self._pin = module, label, canary, pin
        self._library: Any = None
        self._connected: _Connected | None = None
        self._model, self._serial = "", ""
        self.state = TokenState(TokenCondition.ABSENT, label, problem="not looked for yet")
        """The last that was seen. Replaced as a whole, so that other threads may read it at any time."""

    # --- what is offered; each connects first when need be

    def canary(self) -> TokenState:
        """Signs fresh bytes with the canary key; after a loss, once more with everything initialised anew."""
        data = secrets.token_bytes(32)

        def sign(at: _Connected) -> None:
            self._sign(at, self._canary, data)

        self._do(sign)
        self._note(TokenCondition.READY, None)
        return self.state

    def public_key(self, label: str) -> bytes:
        return self._do(lambda at: keys.spki(self._key_pair(at, label)[1]))

    def sign(self, label: str, data: bytes) -> bytes:
        return self._do(lambda at: self._sign(at, label, data))

    def make_key(self, label: str, key_type: KeyType) -> bytes:
        """Not repeated after a loss: nobody would know whether the first one was made."""
        self._do(lambda at: self._label_must_be_free(at, label))
        return self._do(lambda at: objects.make_key_pair(at.session, label, key_type), again=False)

    def encrypt(self, label: str, aad: bytes, plain: Secret) -> bytes:
        """Nonce, then AES-256-GCM ciphertext with its tag."""
        nonce = os.urandom(NONCE)

        def encrypt(at: _Connected) -> bytes:
            parameters = GCMParams(nonce, aad, TAG_BITS)
            key = self._secret_key(at, label, make=True)
            return nonce + bytes(
                key.encrypt(plain.reveal(), mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
            )

        return self._do(encrypt)

    def decrypt(self, label: str, aad: bytes, sealed: bytes) -> Secret:
        """TokenError when it doesn't authenticate. KeyMissing when the key isn't there."""
        parameters = GCMParams(sealed[:NONCE], aad, TAG_BITS)

        def decrypt(at: _Connected) -> Secret | None:
            key = self._secret_key(at, label, make=False)
            try:
                plain = key.decrypt(sealed[NONCE:], mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
            except PKCS11Error:
                # SoftHSM says CKR_GENERAL_ERROR for a wrong tag, as for a token that is gone. Show that the key still
                # works: then it was the data.
                trial = GCMParams(os.urandom(NONCE), aad, TAG_BITS)
                key.encrypt(b"trial", mechanism=Mechanism.AES_GCM, mechanism_param=trial)
                return None
            return Secret(bytes(plain))

        found = self._do(decrypt)
        if found is None:
            message = "a wrapped secret does not unwrap: it, or what it belongs to, is not what it was"
            raise TokenError(message, hint="The record was changed or belongs to another unit or token.")
        return found

    def random(self, octets: int) -> Secret:
        return self._do(lambda at: Secret(bytes(at.session.generate_random(8 * octets))))

    def mac(self, label: str, data: bytes) -> Secret:
        """HMAC-SHA256 by a generic secret."""

        def sign(at: _Connected) -> Secret:
            key = self._secret_key(at, label, make=False)
            if key.key_type is not pkcs11.KeyType.GENERIC_SECRET:
                message = f"the key {quote(label)} in the token is no group key"
                raise KeyMissing(message, hint="Name the label that `hallmark ca group-key` imported.")
            return Secret(bytes(key.sign(data, mechanism=Mechanism.SHA256_HMAC)))

        return self._do(sign)

    def make_exportable(self, key_type: KeyType) -> Secret:
        """PKCS#8 of a key pair that the token made and has forgotten again."""
        return self._do(lambda at: objects.make_exportable(at.session, key_type))

    def import_mac_key(self, label: str, key: Secret) -> None:
        """Not repeated after a loss, as `make_key`."""
        self._do(lambda at: self._label_must_be_free(at, label, ObjectClass.SECRET_KEY))
        self._do(lambda at: objects.import_mac_key(at.session, label, key), again=False)

    def destroy(self, label: str) -> None:
        """Every secret key of that label; repeated after a loss, because what is gone stays gone."""

        def destroy(at: _Connected) -> None:
            at.secrets.pop(label, None)
            for key in objects.find(at.session, label, ObjectClass.SECRET_KEY):
                if key.key_type is not pkcs11.KeyType.AES:
                    message = f"the key {quote(label)} wraps nothing: it is not destroyed"
                    raise TokenError(message)
                key.destroy()
            if objects.find(at.session, label, ObjectClass.SECRET_KEY):
                message = f"the token {quote(self._label)} keeps a key that it was told to destroy"
                raise TokenError(message)

        self._do(destroy)

    def close(self) -> None:
        """Logs out, closes the session and finalises the module."""
        self._drop()

    # --- connecting

    def _do(self, work: Callable[[_Connected], T], *, again: bool = True) -> T:
        """`work` on a logged-in session. On any module error everything is initialised anew and `work` done again."""
        try:
            was_connected = self._connected is not None
            try:
                return self._done(work(self._connect()))
            except PKCS11Error:
                self._drop()
                if not (again and was_connected):
                    raise
            return self._done(work(self._connect()))
        except PKCS11Error as error:
            self._drop()
            gone = TokenAbsent(f"the token {quote(self._label)} does not answer: {tokens.name_of(error)}")
            self._note(TokenCondition.ABSENT, gone)
            # Not `from error`: its frames hold the library's objects, which have to be freed in this thread.
            raise gone from None
        except TokenAbsent as error:
            self._note(TokenCondition.ABSENT, error)
            raise
        except KeyMissing as error:
            self._drop()  # a stale session may not see a key that is there
            self._note(TokenCondition.KEY_MISSING, error)
            raise
        except HallmarkError:
            if self._connected is None:
                self._drop()  # nothing half-open is left behind by a login that wasn't tried
            raise

    def _done(self, result: T) -> T:
        # A key that was missing is still missing when another one works: only a canary lifts that.
        if self.state.condition not in (TokenCondition.READY, TokenCondition.KEY_MISSING):
            self._note(TokenCondition.READY, None)
        return result

    def _note(self, condition: TokenCondition, error: HallmarkError | None) -> None:
        problem = str(error) if error else ""
        self.state = TokenState(condition, self._label, self._model, self._serial, problem)

    def _connect(self) -> _Connected:
        if self._connected is None:
            token = self._find_token()
            self._model, self._serial = token.model, token.serial.decode("ascii", "backslashreplace").strip()
            session = self._log_in(token)
            self._connected = _Connected(session)
        return self._connected

    def _find_token(self) -> Any:
        if self._library is None:
            # pkcs11.lib keeps modules by path, initialised or not; it initialises what was finalised.
            self._library = pkcs11.lib(self._module)
        elif not self._library.initialized:
            self._library.initialize()
        found = tokens.labelled(self._library, self._label)
        if len(found) != 1:
            self._drop()  # SoftHSM and others list tokens once, at C_Initialize
            how_many = "no token is" if not found else f"{len(found)} tokens are"
            message = f"{how_many} labelled {quote(self._label)}"
            raise TokenAbsent(message)
        return found[0]

    def _log_in(self, token: Any) -> Any:
        # A public session first: what fails here has nothing to do with the PIN, and the token hasn't seen it.
        token.open(rw=True)
        try:
            pin = self._pin.begin(self._serial, tokens.tries(token))
        except HallmarkError as error:
            self._note(TokenCondition.PIN_BLOCKED, error)
            raise
        try:
            session = token.open(rw=True, user_pin=pin.reveal().decode("utf-8"))
        except tokens.REFUSALS as error:
            self._pin.end(PinVerdict.REJECTED)
            refused = PinRejected(f"the token {quote(self._label)} refuses the PIN: {tokens.name_of(error)}")
            self._note(TokenCondition.PIN_WRONG, refused)
            raise refused from None  # as in _do; and frames hold the PIN
        self._pin.end(PinVerdict.ACCEPTED)
        return session

    def _drop(self) -> None:
        """Forgets everything, and finalises: the only way to leave that needs no answer from the token."""
        self._connected = None
        if self._library is not None and self._library.initialized:
            try:
                self._library.finalize()
            except PKCS11Error as error:
                # `initialized` is false now whatever it said; the next C_Initialize tells what is the matter.
                self.state = TokenState(
                    TokenCondition.ABSENT,
                    self._label,
                    self._model,
                    self._serial,
                    f"finalising: {tokens.name_of(error)}",
                )

    # --- keys, looked up once for each connection

    def _key_pair(self, at: _Connected, label: str) -> tuple[Any, keys.PublicKey]:
        if label not in at.privates:
            private = self._one(at, label, ObjectClass.PRIVATE_KEY)
            public = self._one(at, label, ObjectClass.PUBLIC_KEY)
            at.privates[label] = private, objects.public_key(public)
        return at.privates[label]

    def _secret_key(self, at: _Connected, label: str, *, make: bool) -> Any:
        if label not in at.secrets:
            if make and not objects.find(at.session, label, ObjectClass.SECRET_KEY):
                objects.make_secret_key(at.session, label)
            at.secrets[label] = self._one(at, label, ObjectClass.SECRET_KEY)
        return at.secrets[label]

    def _one(self, at: _Connected, label: str, kind: ObjectClass) -> Any:
        found = objects.find(at.session, label, kind)
        what = f"{objects.KINDS[kind]} labelled {quote(label)}"
        if not found:
            message = f"the token {quote(self._label)} has no {what}"
            raise KeyMissing(message)
        if len(found) > 1:
            message = f"the token {quote(self._label)} has {len(found)} objects that are a {what}"
            raise KeyMissing(message, hint="Each label has to name one key: remove or rename the others.")
        return found[0]

    def _sign(self, at: _Connected, label: str, data: bytes) -> bytes:
        private, public = self._key_pair(at, label)
        mechanism = Mechanism.RSA_PKCS if private.key_type is pkcs11.KeyType.RSA else Mechanism.ECDSA
        raw = bytes(private.sign(keys.to_be_signed(public, data), mechanism=mechanism))
        signature = keys.from_token(public, raw)
        keys.check_signature(public, signature, data)
        return signature

    def _label_must_be_free(self, at: _Connected, label: str, *kinds: ObjectClass) -> None:
        for kind in kinds or (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
            if objects.find(at.session, label, kind):
                what = f"{objects.KINDS[kind]} labelled {quote(label)}"
                message = f"the token {quote(self._label)} has a {what} already"
                raise DuplicateKey(message, hint="Use it, or choose another label in station.toml.")
