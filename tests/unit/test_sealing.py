"""What is sealed opens for its one holder and its one purpose, and as docs/vendor-group.md says, step by step."""

from __future__ import annotations

import hmac
import re
from pathlib import Path
from typing import Final

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from drivers.smp import vendor
from hal.errors import ConfigError, ProtocolViolation
from hal.secret import Secret
from hal.types import KeyPurpose, SymmetricKeyAttestation, delivery_info, transport_message
from station.sealing import (
    SUITE,
    load_upload_key,
    open_upload,
    read_upload_key,
    seal_for_board,
    seal_for_upload,
)
from station.signer.device_keys import verifier

DOCUMENT: Final = (Path(__file__).parents[2] / "docs" / "vendor-group.md").read_text()
VECTOR: Final = {
    name: bytes.fromhex(text.replace("\n", ""))
    for name, text in re.findall(r"```vector ([a-z-]+)\n([0-9a-f\n]+)```", DOCUMENT)
}
KEM_SUITE: Final = b"KEM\x00\x10"
HPKE_SUITE: Final = b"HPKE\x00\x10\x00\x01\x00\x02"


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    """LabeledExtract of RFC 9180, 4."""
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")


def expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """LabeledExpand of RFC 9180, 4."""
    labelled = length.to_bytes(2) + b"HPKE-v1" + suite + label + info
    return HKDFExpand(hashes.SHA256(), length, labelled).derive(prk)


def own(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(VECTOR[name]), ec.SECP256R1())


def test_the_documents_vector_opens_step_by_step() -> None:
    board, enc = own("transport-private"), VECTOR["encapsulated"]
    assert point(board) == VECTOR["transport-point"]
    dh = board.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), enc))
    context = enc + VECTOR["transport-point"]
    shared = expand(KEM_SUITE, extract(KEM_SUITE, b"", b"eae_prk", dh), b"shared_secret", context, 32)
    assert shared == VECTOR["shared-secret"]
    info = delivery_info(KeyPurpose.SYMMETRIC, "gw-0001")
    assert info == VECTOR["info"]
    schedule = (
        b"\x00" + extract(HPKE_SUITE, b"", b"psk_id_hash", b"") + extract(HPKE_SUITE, b"", b"info_hash", info)
    )
    secret = extract(HPKE_SUITE, shared, b"secret", b"")
    key = expand(HPKE_SUITE, secret, b"key", schedule, 32)
    nonce = expand(HPKE_SUITE, secret, b"base_nonce", schedule, 12)
    assert (key, nonce) == (VECTOR["aead-key"], VECTOR["aead-nonce"])
    assert AESGCM(key).decrypt(nonce, VECTOR["ciphertext"], b"") == VECTOR["device-key"]


def test_the_library_opens_the_documents_vector_too() -> None:
    sealed = VECTOR["encapsulated"] + VECTOR["ciphertext"]
    assert SUITE.decrypt(sealed, own("transport-private"), info=VECTOR["info"]) == VECTOR["device-key"]


def test_the_documents_messages_are_those_of_the_codecs() -> None:
    challenge = VECTOR["challenge"]
    assert transport_message(challenge, VECTOR["transport-point"]) == VECTOR["transport-message"]
    assert len(VECTOR["transport-message"]) > vendor.NONCE_LIMIT, "no nonce that prove signs can be one"
    own("device-private").public_key().verify(
        VECTOR["transport-signature"], VECTOR["transport-message"], ec.ECDSA(hashes.SHA256())
    )
    assert (
        vendor.pack_transport_key(VECTOR["transport-point"], VECTOR["transport-signature"])
        == (VECTOR["transport-result"])
    )
    assert (
        vendor.pack_install("symmetric", "gw-0001", VECTOR["encapsulated"], VECTOR["ciphertext"])
        == (VECTOR["install-argument"])
    )


def test_the_documents_proof_is_what_the_signer_checks() -> None:
    check = verifier(Secret(VECTOR["device-key"]))
    assert check == Secret(VECTOR["verifier"])
    assert hmac.digest(check.reveal(), VECTOR["challenge"], "sha256") == VECTOR["proof"]


def test_a_sealed_key_opens_for_its_board_its_purpose_and_its_name_only() -> None:
    mine, theirs = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    key = bytes(range(32))
    sealed = seal_for_board(point(mine), KeyPurpose.SYMMETRIC, "gw-1", Secret(key))
    octets = sealed.encapsulated + sealed.ciphertext
    assert key not in octets
    assert SUITE.decrypt(octets, mine, info=delivery_info(KeyPurpose.SYMMETRIC, "gw-1")) == key
    for who, purpose, name in (
        (theirs, KeyPurpose.SYMMETRIC, "gw-1"),
        (mine, KeyPurpose.PRIVATE, "gw-1"),
        (mine, KeyPurpose.SYMMETRIC, "gw-2"),
    ):
        with pytest.raises(InvalidTag):
            SUITE.decrypt(octets, who, info=delivery_info(purpose, name))


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\x04" + bytes(64),
        point(ec.generate_private_key(ec.SECP384R1()))[:65],
        b"\x02" + bytes(32),
        b"\x04" + b"\xff" * 64,
    ],
    ids=["nothing", "the origin", "P-384", "compressed", "beyond the field"],
)
def test_no_key_is_sealed_to_what_is_no_point_of_p256(wrong: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="transport key"):
        seal_for_board(wrong, KeyPurpose.SYMMETRIC, "gw-1", Secret(bytes(32)))


def test_keys_for_the_cloud_open_for_the_uploader_and_their_own_registration_id_only() -> None:
    uploader, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    keys = SymmetricKeyAttestation(Secret(b"p" * 32), Secret(b"s" * 32))
    sealed = seal_for_upload(uploader.public_key(), "gw-1", keys)
    assert open_upload(uploader, "gw-1", sealed) == keys
    assert open_upload(uploader, "gw-2", sealed) is None
    assert open_upload(other, "gw-1", sealed) is None
    for at in range(0, len(sealed), 5):
        assert (
            open_upload(uploader, "gw-1", sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :]) is None
        )
    assert open_upload(uploader, "gw-1", sealed[:-1]) is None
    assert "p" * 8 not in repr(keys)


def test_an_upload_key_has_to_be_one_on_p256(tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert read_upload_key(Secret(pem)).private_numbers() == private.private_numbers()
    file = tmp_path / "upload.pem"
    with pytest.raises(ConfigError, match=r"upload\.pem"):
        load_upload_key(file)
    for content in (b"", pem, b"-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="public key"):
            load_upload_key(file)
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    file.write_bytes(
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(ConfigError, match="P-256"):
        load_upload_key(file)
    with pytest.raises(ConfigError) as caught:
        read_upload_key(Secret(b"not a key but SECRET"))
    assert "SECRET" not in str(caught.value)
