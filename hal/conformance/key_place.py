"""What every KeyPlace and CertificateStore promises: `check(open_device, ...)`, against a device without a key.

For a TPM the SRK has to be there; the caller's `prepare` makes it. No test framework comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import NameOID

from hal.call import Call
from hal.conformance.endorsement_identity import PATIENCE, Open, cancelled, raised
from hal.driver import Bindings
from hal.errors import Aborted, KeyConflict
from hal.interfaces import CertificateStore, KeyPlace
from hal.secret import EMPTY, Secret
from hal.types import DeviceKey, KeyProtection, KeyType

COMMON_NAME = "conformance-1"
NONCE = bytes(range(32))


def check(
    open_device: Open,
    key_type: KeyType,
    owner: Secret = EMPTY,
    prepare: Callable[[Bindings], None] = lambda _: None,
) -> DeviceKey:
    """All promises of KeyPlace, one after the other. `prepare` is called in each visit before `owner` is used."""
    with open_device() as device:
        prepare(device)
        place = device.get(KeyPlace)
        assert isinstance(place.protection, KeyProtection)
        assert isinstance(raised(lambda: place.key(cancelled())), Aborted)
        assert place.key(Call.lasting(PATIENCE)) is None
        raised(lambda: place.csr(Call.lasting(PATIENCE), COMMON_NAME))
        key = place.make_key(Call.lasting(PATIENCE), key_type, owner)
        assert key.key_type is key_type
        assert place.key(Call.lasting(PATIENCE)) == key
        refused = raised(lambda: place.make_key(Call.lasting(PATIENCE), key_type, owner))
        assert isinstance(refused, KeyConflict)
        assert place.key(Call.lasting(PATIENCE)) == key, "and the key is still the same one"
    with open_device() as device:
        place = device.get(KeyPlace)
        assert place.key(Call.lasting(PATIENCE)) == key, "it outlives the visit"
        _signs(place, key)
    return key


def check_store(
    open_device: Open, chains: Sequence[Sequence[bytes]], prepare: Callable[[Bindings], None]
) -> None:
    """All promises of CertificateStore: each of `chains` (DER, leaf first) replaces the one before it."""
    for chain in chains:
        with open_device() as device:
            prepare(device)
            store = device.get(CertificateStore)
            assert isinstance(raised(partial(store.installed, cancelled())), Aborted)
            store.install(Call.lasting(PATIENCE), chain)
            store.install(Call.lasting(PATIENCE), chain)
        with open_device() as device:
            assert list(device.get(CertificateStore).installed(Call.lasting(PATIENCE))) == list(chain)


def _signs(place: KeyPlace, key: DeviceKey) -> None:
    request = x509.load_der_x509_csr(place.csr(Call.lasting(PATIENCE), COMMON_NAME))
    assert request.is_signature_valid
    assert [name.value for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [
        COMMON_NAME
    ]
    assert len(list(request.subject)) == 1
    spki = request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki == key.spki
    public, signature = load_der_public_key(key.spki), place.prove(Call.lasting(PATIENCE), NONCE)
    if isinstance(public, ec.EllipticCurvePublicKey):
        public.verify(signature, NONCE, ec.ECDSA(hashes.SHA256()))
    else:
        assert isinstance(public, rsa.RSAPublicKey)
        public.verify(signature, NONCE, padding.PKCS1v15(), hashes.SHA256())
