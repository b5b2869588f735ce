"""What every KeyDelivery promises: `check(open_device)`, against a board without a symmetric key and without its own.

The keys are sealed here as the signer does it, by RFC 9180. `board_key`, where the board offers a KeyPlace too, is
what its transport keys have to be signed by.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from hal.call import Call
from hal.conformance.endorsement_identity import PATIENCE, Open, cancelled, raised
from hal.errors import Aborted, KeyConflict, ProtocolViolation
from hal.interfaces import KeyDelivery, KeyPlace
from hal.secret import EMPTY
from hal.types import KeyPurpose, KeyType, SealedKey, TransportKey, delivery_info, transport_message

NAME = "conformance-1"
CHALLENGE = bytes(range(32))
ENCAPSULATED = 65
PROOF_LABEL = b"hallmark key proof 1"


def seal(transport: TransportKey, purpose: KeyPurpose, key: bytes, name: str = NAME) -> SealedKey:
    """As docs/vendor-group.md says."""
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), transport.point)
    suite = Suite(KEM.P256, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    octets = suite.encrypt(key, point, info=delivery_info(purpose, name))
    return SealedKey(purpose, name, octets[:ENCAPSULATED], octets[ENCAPSULATED:])


def proof(key: bytes, nonce: bytes) -> bytes:
    return hmac.digest(hmac.digest(key, PROOF_LABEL, "sha256"), nonce, "sha256")


def check(open_device: Open) -> None:
    """All promises, one after the other: symmetric key, then signed transport keys, then a private key refused."""
    key = secrets.token_bytes(32)
    with open_device() as device:
        board = device.get(KeyDelivery)
        assert isinstance(raised(lambda: board.transport_key(cancelled(), CHALLENGE)), Aborted)
        assert board.prove_secret(_call(), CHALLENGE) is None
        _check_nothing_else_opens(board, key)
        assert board.prove_secret(_call(), CHALLENGE) is None, "what did not open was not kept"
        assert board.install_key(_call(), seal(_transport(board), KeyPurpose.SYMMETRIC, key)) == b""
    with open_device() as device:
        board = device.get(KeyDelivery)
        assert board.prove_secret(_call(), CHALLENGE) == proof(key, CHALLENGE), "it outlives the visit"
        board.install_key(_call(), seal(_transport(board), KeyPurpose.SYMMETRIC, key))
        other = seal(_transport(board), KeyPurpose.SYMMETRIC, secrets.token_bytes(32))
        assert isinstance(raised(lambda: board.install_key(_call(), other)), KeyConflict)
        assert board.prove_secret(_call(), CHALLENGE) == proof(key, CHALLENGE), "and is still the same one"


def check_private(open_device: Open) -> None:
    """A board without a key takes one, can use it, and takes no other; then it signs its transport keys with it."""
    made = ec.generate_private_key(ec.SECP256R1())
    pkcs8 = made.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    spki = made.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with open_device() as device:
        board, place = device.get(KeyDelivery), device.get(KeyPlace)
        unsigned = _transport(board)
        assert unsigned.signature == b"", "there is nothing to sign with yet"
        assert board.install_key(_call(), seal(unsigned, KeyPurpose.PRIVATE, pkcs8)) == spki
        found = place.key(_call())
        assert found is not None
        assert found.spki == spki
    with open_device() as device:
        board, place = device.get(KeyDelivery), device.get(KeyPlace)
        made.public_key().verify(place.prove(_call(), CHALLENGE), CHALLENGE, ec.ECDSA(SHA256()))
        assert board.install_key(_call(), seal(_transport(board), KeyPurpose.PRIVATE, pkcs8)) == spki
        foreign = ec.generate_private_key(ec.SECP256R1())
        other = seal(
            _transport(board),
            KeyPurpose.PRIVATE,
            foreign.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        )
        assert isinstance(raised(lambda: board.install_key(_call(), other)), KeyConflict)
        assert isinstance(raised(lambda: place.make_key(_call(), KeyType.P256, EMPTY)), KeyConflict)
        check_signed(board, made.public_key())


def check_signed(board: KeyDelivery, own: ec.EllipticCurvePublicKey) -> None:
    """Each transport key is fresh, and signed by the board's own key over this challenge."""
    seen = set()
    for challenge in (CHALLENGE, secrets.token_bytes(32)):
        transport = board.transport_key(_call(), challenge)
        own.verify(transport.signature, transport_message(challenge, transport.point), ec.ECDSA(SHA256()))
        seen.add(transport.point)
    assert len(seen) == 2


def own_key(place: KeyPlace) -> ec.EllipticCurvePublicKey:
    """A P-256 key that the board makes itself."""
    public = load_der_public_key(place.make_key(_call(), KeyType.P256, EMPTY).spki)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    return public


def _check_nothing_else_opens(board: KeyDelivery, key: bytes) -> None:
    """Sealed for another name, purpose or transport key, changed, or with the transport key used up: not opened."""

    def sealed() -> SealedKey:
        return seal(_transport(board), KeyPurpose.SYMMETRIC, key)

    def flipped(octets: bytes, at: int) -> bytes:
        return octets[:at] + bytes((octets[at] ^ 1,)) + octets[at + 1 :]

    def late() -> SealedKey:
        found = sealed()
        _transport(board)
        return found

    changes: tuple[Callable[[], SealedKey], ...] = (
        lambda: replace(sealed(), registration_id="conformance-2"),
        lambda: replace(sealed(), purpose=KeyPurpose.PRIVATE),
        lambda: replace(sealed(), ciphertext=flipped(sealed().ciphertext, 3)),
        lambda: replace(
            sealed(), encapsulated=seal(_transport(board), KeyPurpose.SYMMETRIC, key).encapsulated
        ),
        late,
    )
    for change in changes:
        refused = raised(partial(board.install_key, _call(), change()))
        assert isinstance(refused, ProtocolViolation)


def _transport(board: KeyDelivery) -> TransportKey:
    return board.transport_key(_call(), CHALLENGE)


def _call() -> Call:
    return Call.lasting(PATIENCE)
