"""Escrow: what is sealed opens with the officer's key and `openssl cms`, and with nothing else."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from pyasn1.codec.der.decoder import decode as der_decode
from pyasn1.codec.der.encoder import encode as der_encode
from pyasn1_alt_modules import rfc5083, rfc5084, rfc5652

from hal.errors import ConfigError
from hal.secret import Secret
from station.escrow import EscrowRecord, check_officer, seal

RECORD = EscrowRecord(
    ek_name=b"\x00\x0b" + b"\x11" * 32,
    unit="u-17",
    station="line-1",
    generation=2,
    auths={"owner": Secret(b"\xaa" * 32), "lockout": Secret(b"\xbb" * 32)},
)
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def make_officer(folder: Path, name: str, key: Key, usage: str | None = None) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=30))
    )
    if usage is not None:
        bits = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "key_cert_sign",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(x509.KeyUsage(**(bits | {usage: True})), critical=True)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    certificate = builder.sign(key, digest)
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate


def opened(folder: Path, name: str, sealed: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [
        "openssl",
        "cms",
        "-decrypt",
        "-inform",
        "DER",
        "-inkey",
        f"{name}.key",
        "-recip",
        f"{name}.pem",
    ]
    return subprocess.run(command, input=sealed, cwd=folder, capture_output=True, check=False, timeout=20)


NEW_KEYS: dict[str, Callable[[], Key]] = {
    "rsa2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa3072": lambda: rsa.generate_private_key(65537, 3072),
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
}


@pytest.mark.parametrize("kind", NEW_KEYS)
def test_openssl_opens_what_is_sealed_to_an_officer(kind: str, tmp_path: Path) -> None:
    officer = make_officer(tmp_path, "officer", NEW_KEYS[kind]())
    done = opened(tmp_path, "officer", seal([officer], RECORD))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "format": "hallmark-escrow-1",
        "ek_name": "000b" + "11" * 32,
        "unit": "u-17",
        "station": "line-1",
        "generation": 2,
        "auths": {"owner": "aa" * 32, "lockout": "bb" * 32},
    }
    assert done.stdout == RECORD.canonical()


def test_any_of_several_officers_opens_it_and_nobody_else(tmp_path: Path) -> None:
    officers = [make_officer(tmp_path, kind, NEW_KEYS[kind]()) for kind in ("rsa2048", "p256", "p384")]
    make_officer(tmp_path, "stranger", NEW_KEYS["p256"]())
    sealed = seal(officers, RECORD)
    for kind in ("rsa2048", "p256", "p384"):
        assert opened(tmp_path, kind, sealed).stdout == RECORD.canonical()
    stranger = opened(tmp_path, "stranger", sealed)
    assert stranger.returncode != 0
    assert stranger.stdout == b""


@pytest.mark.parametrize("kind", ["rsa2048", "p256"])
def test_a_changed_octet_does_not_open(kind: str, tmp_path: Path) -> None:
    officer = make_officer(tmp_path, "officer", NEW_KEYS[kind]())
    sealed = seal([officer], RECORD)
    for at in (-1, -TAG - 5):
        changed = bytearray(sealed)
        changed[at] ^= 1
        assert opened(tmp_path, "officer", bytes(changed)).returncode != 0


TAG = 18
"""Octets of the MAC field: tag, length, 16."""


def test_the_structure_is_what_the_rfcs_say(tmp_path: Path) -> None:
    """Read by another implementation of RFC 5083 and RFC 5084, to the last octet, and written again the same."""
    officers = [make_officer(tmp_path, kind, NEW_KEYS[kind]()) for kind in ("rsa2048", "p256")]
    sealed = seal(officers, RECORD)
    info, rest = der_decode(sealed, asn1Spec=rfc5652.ContentInfo())
    assert (rest, info["contentType"]) == (b"", rfc5083.id_ct_authEnvelopedData)
    enveloped, rest = der_decode(bytes(info["content"]), asn1Spec=rfc5083.AuthEnvelopedData())
    assert rest == b""
    assert der_encode(enveloped) == bytes(info["content"])
    content = enveloped["authEncryptedContentInfo"]
    assert content["contentEncryptionAlgorithm"]["algorithm"] == rfc5084.id_aes256_GCM
    parameters, _ = der_decode(
        bytes(content["contentEncryptionAlgorithm"]["parameters"]), asn1Spec=rfc5084.GCMParameters()
    )
    assert (len(parameters["nonce"] if "nonce" in parameters else parameters[0]), int(parameters[1])) == (
        12,
        16,
    )
    assert len(enveloped["mac"]) == 16
    assert b"u-17" not in sealed


def test_the_same_record_is_never_sealed_to_the_same_octets(tmp_path: Path) -> None:
    officer = make_officer(tmp_path, "officer", NEW_KEYS["p256"]())
    assert seal([officer], RECORD) != seal([officer], RECORD)


def test_officers_that_could_not_open_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no escrow officer"):
        seal([], RECORD)
    with pytest.raises(ConfigError, match="neither an RSA nor an EC key"):
        check_officer(make_officer(tmp_path, "ed", ed25519.Ed25519PrivateKey.generate()))
    with pytest.raises(ConfigError, match="keyEncipherment"):
        check_officer(make_officer(tmp_path, "signs", NEW_KEYS["rsa2048"](), "digital_signature"))
    with pytest.raises(ConfigError, match="keyAgreement"):
        check_officer(make_officer(tmp_path, "signs", NEW_KEYS["p256"](), "digital_signature"))
    check_officer(make_officer(tmp_path, "agrees", NEW_KEYS["p256"](), "key_agreement"))


def test_auth_values_do_not_show_in_a_record(tmp_path: Path) -> None:
    assert "aa" * 8 not in repr(RECORD)
