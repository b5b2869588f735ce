"""Keys for devices: made or derived in the token, sealed to their board, checked by its proof, and then forgotten.

A key is in clear in this process's memory only, between the token and the seal; in the ledger it is wrapped under a
token key of its own. Asked for again, the same key is sealed again. No board and no network come in here.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hal.call import Call
from hal.errors import (
    ConfigError,
    CsrRejected,
    DuplicateKey,
    KeyConflict,
    KeyMissing,
    PossessionUnproven,
    ProtocolViolation,
    TokenError,
    quote,
)
from hal.interfaces import DeviceSecrets, SecretWrap
from hal.secret import Secret
from hal.types import KeyPurpose, KeyType, SymmetricKeyAttestation, transport_message
from station.messages import (
    CheckGroupKey,
    CheckKey,
    GroupKey,
    ImportGroupKey,
    KeyForBoard,
    SealKey,
    SealWrapped,
)
from station.sealing import KEY_LENGTH, POINT_LENGTH, seal_for_board, seal_for_upload
from station.signature import verify_signature
from station.signer.group_keys import check_group_key, import_group_key
from station.signer.key_ledger import KeyEntry, KeyLedger
from station.unit_id import unit_id

WRAP_KEY: Final = "device-keys"
"""Label of the token's AES key that wraps what the ledger keeps. Not the one of resume copies, which come and go."""
PROOF_LABEL: Final = b"hallmark key proof 1"
PRINT_LABEL: Final = b"hallmark key print 1\x00"
RANDOM: Final = "random"
LEAST_NONCE: Final = 16


def verifier(key: Secret) -> Secret:
    """What a board's proof is checked with; it tells nothing of the key. `KeyDelivery.prove_secret`'s V."""
    return Secret(hmac.digest(key.reveal(), PROOF_LABEL, "sha256"))


def derived_from(registration_id: str) -> bytes:
    """What the group key is applied to: the registration ID in lower case (DPS: IDs know no case, HMAC does)."""
    return registration_id.lower().encode("utf-8")


class DeviceKeys:
    """Thread-safe."""

    def __init__(
        self,
        ledger: KeyLedger,
        secrets: DeviceSecrets,
        wrap: SecretWrap,
        uploader: ec.EllipticCurvePublicKey | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`uploader`: whom keys that have to be uploaded are sealed to; None where station.toml names nobody."""
        self._ledger, self._secrets, self._wrap, self._clock = ledger, secrets, wrap, clock
        self._uploader = uploader
        self._making = threading.Lock()

    def seal(self, call: Call, asked: SealKey) -> KeyForBoard:
        """The unit's key for its board. DuplicateKey when it is another unit's, or the unit has one from elsewhere.

        KeyConflict once it was forgotten: then a board that asks for it has lost it.
        """
        purpose = _purpose(asked.purpose)
        origin = _origin(purpose, asked)
        bound = _vouched(asked)
        with self._making:
            entry = self._ledger.find(asked.unit, purpose)
            if entry is None:
                entry = self._ledger.add(replace(self._make(call, asked, purpose, origin), bound=bound))
        if entry.bound and not bound:
            raise PossessionUnproven(
                f"the board's own key does not vouch for where unit {quote(asked.unit)}'s key is to go"
            )
        if (entry.origin, entry.registration_id) != (origin, asked.registration_id):
            message = (
                f"unit {quote(asked.unit)} has its {purpose} key already: {entry.origin}, for"
                f" {quote(entry.registration_id)}; asked for: {origin}, for {quote(asked.registration_id)}"
            )
            raise DuplicateKey(message)
        sealed = seal_for_board(asked.transport, purpose, asked.registration_id, self._key(call, entry))
        return KeyForBoard(sealed.encapsulated, sealed.ciphertext, entry.upload, entry.spki)

    def seal_wrapped(self, call: Call, asked: SealWrapped, label: str) -> KeyForBoard:
        """A private key that was wrapped under the token's key `label`, for the board. Its public part says which."""
        key = self._wrap.unwrap(call, label, asked.context, asked.wrapped)
        spki = _spki(key)
        sealed = seal_for_board(asked.transport, KeyPurpose.PRIVATE, asked.registration_id, key)
        return KeyForBoard(sealed.encapsulated, sealed.ciphertext, spki=spki)

    def check(self, call: Call, asked: CheckKey) -> None:
        """PossessionUnproven unless the proof is by the unit's symmetric key."""
        entry = self._ledger.find(asked.unit, KeyPurpose.SYMMETRIC)
        if entry is None:
            raise KeyMissing(
                f"unit {quote(asked.unit)} has no symmetric key from this signer",
                hint="Set the board aside: an engineer finds out where its key came from.",
            )
        if len(asked.nonce) < LEAST_NONCE:
            raise ProtocolViolation(f"a nonce of {len(asked.nonce)} octets proves nothing")
        if entry.verifier is None:
            check = verifier(self._key(call, entry))
        else:
            check = self._wrap.unwrap(call, WRAP_KEY, _context(entry, b"verifier"), entry.verifier)
        if not hmac.compare_digest(hmac.digest(check.reveal(), asked.nonce, "sha256"), asked.mac):
            raise PossessionUnproven(
                f"the board of unit {quote(asked.unit)} has another symmetric key than the one on record",
                hint="Set the board aside: it does not have the key that it is enrolled with.",
            )

    def group_key(self, call: Call, asked: ImportGroupKey | CheckGroupKey) -> GroupKey:
        """Puts a group key into the token, or looks at the one that is there."""
        if isinstance(asked, ImportGroupKey):
            return import_group_key(self._secrets, call, asked.label, Secret(asked.key))
        return check_group_key(self._secrets, call, asked.label)

    def forget(self, units: list[str]) -> None:
        self._ledger.forget(units)

    def kept(self) -> list[str]:
        return self._ledger.kept()

    def _make(self, call: Call, asked: SealKey, purpose: KeyPurpose, origin: str) -> KeyEntry:
        spki = upload = b""
        check: Secret | None = None
        if purpose is KeyPurpose.PRIVATE:
            key = self._secrets.make_private_key(call, KeyType(asked.key_type))
            spki = _spki(key)
            mark = hashlib.sha256(spki).digest()
        else:
            key = self._derived(call, asked) if asked.group else self._random(call)
            check = verifier(key)
            mark = hashlib.sha256(PRINT_LABEL + check.reveal()).digest()
            if not asked.group:
                upload = self._for_upload(call, asked.registration_id, key)
        made = KeyEntry(
            unit=asked.unit,
            purpose=purpose,
            registration_id=asked.registration_id,
            origin=origin,
            print=mark,
            kept=None,
            verifier=None,
            upload=upload,
            spki=spki,
            made_at=int(self._clock()),
        )
        if asked.group:
            return made  # derived again whenever it is wanted
        kept = self._wrap.wrap(call, WRAP_KEY, _context(made, b"key"), key)
        if check is None:
            return replace(made, kept=kept)
        return replace(
            made, kept=kept, verifier=self._wrap.wrap(call, WRAP_KEY, _context(made, b"verifier"), check)
        )

    def _random(self, call: Call) -> Secret:
        key = self._secrets.random(call, KEY_LENGTH)
        if len(key) != KEY_LENGTH:
            message = f"the token gave {len(key)} random octets where {KEY_LENGTH} were asked for"
            raise TokenError(message)
        return key

    def _derived(self, call: Call, asked: SealKey) -> Secret:
        return self._secrets.derive(call, asked.group, derived_from(asked.registration_id))

    def _for_upload(self, call: Call, registration_id: str, primary: Secret) -> bytes:
        """With a secondary key that nobody gets but the service: it wants two, and would else make one itself."""
        if self._uploader is None:
            raise ConfigError(
                "no upload key is configured, so a key for the cloud can't be sealed",
                hint="An engineer makes the uploader's key pair and names its public part under [device_keys].",
            )
        keys = SymmetricKeyAttestation(primary, self._random(call))
        return seal_for_upload(self._uploader, registration_id, keys)

    def _key(self, call: Call, entry: KeyEntry) -> Secret:
        if entry.origin.startswith("group "):
            key = self._secrets.derive(
                call, entry.origin.removeprefix("group "), derived_from(entry.registration_id)
            )
            if hashlib.sha256(PRINT_LABEL + verifier(key).reveal()).digest() != entry.print:
                raise KeyMissing(
                    f"the token's {entry.origin} is not the one that unit {quote(entry.unit)}'s key was derived from"
                )
            return key
        if entry.kept is None:
            raise KeyConflict(
                f"unit {quote(entry.unit)} was given its {entry.purpose} key, and the station has forgotten it since",
                hint="Set the board aside: its key was erased; an engineer decides on a new identity.",
            )
        return self._wrap.unwrap(call, WRAP_KEY, _context(entry, b"key"), entry.kept)


def _purpose(name: str) -> KeyPurpose:
    try:
        return KeyPurpose(name)
    except ValueError:
        raise ProtocolViolation(f"{quote(name)} is no purpose of a key") from None


def _origin(purpose: KeyPurpose, asked: SealKey) -> str:
    if asked.registration_id != asked.registration_id.lower():
        raise CsrRejected(f"registration ID {quote(asked.registration_id)} is not in lower case")
    if len(asked.transport) != POINT_LENGTH:
        raise ProtocolViolation("the board's transport key is no uncompressed point of P-256")
    if purpose is KeyPurpose.SYMMETRIC:
        return f"group {asked.group}" if asked.group else RANDOM
    if asked.key_type not in set(KeyType):
        raise ProtocolViolation(f"{quote(asked.key_type)} is no type of key")
    return f"made {asked.key_type}"


def _vouched(asked: SealKey) -> bool:
    """Whether the key by which the unit is known made the transport key. PossessionUnproven for a false claim.

    Here, not only at the station: the unit's ID is made from that key, so that this needs nobody's word.
    """
    if not asked.identity:
        return False
    if asked.unit != unit_id("key", hashlib.sha256(asked.identity).hexdigest()):
        raise PossessionUnproven(
            f"the key that vouches for the transport key is not unit {quote(asked.unit)}'s"
        )
    try:
        key = serialization.load_der_public_key(asked.identity)
    except (ValueError, UnsupportedAlgorithm):
        raise ProtocolViolation("the unit's own key can't be read") from None
    verify_signature(key, asked.signature, transport_message(asked.challenge, asked.transport))
    return True


def _spki(key: Secret) -> bytes:
    try:
        private = serialization.load_der_private_key(key.reveal(), password=None)
    except (ValueError, TypeError):
        raise TokenError("what was made or wrapped is no private key") from None  # the cause might quote it
    return private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _context(entry: KeyEntry, what: bytes) -> bytes:
    """What a wrapped key is bound to: it opens as this, of this unit, for this purpose only."""
    parts = (b"hallmark device key", what, entry.unit.encode(), entry.purpose.value.encode())
    return b"\x00".join(parts)
