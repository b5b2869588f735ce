"""Certificates a second through the signer's socket, against the token alone and against the disk alone."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pkcs11
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from drivers.emulated.bench.layout import TOKEN, softhsm_module
from station.attestation import to_json
from station.messages import SignRequest
from station.nest.attesting import Attesting
from station.signer_client import SignerClient
from tests.bench.durable import raw_sync_rate
from tests.bench.rig import Rig
from tests.bench.table import Row
from tests.tpm_parts import SoftTpm

CA_KEY = "issuing-ca"
RAW_SECONDS = 1.0
SYNCS = 2
"""For one certificate: its intent before the token signs, and itself before it leaves."""


def raw_sign_seconds(rig: Rig) -> float:
    """One C_Sign with the CA's key, from this process and one thread."""
    os.environ.update(rig.layout.environment)
    pin = (rig.layout.etc / "credentials/ca-pin").read_text()
    library: Any = pkcs11.lib(str(softhsm_module()))
    library.reinitialize()
    try:
        with library.get_token(token_label=TOKEN).open(user_pin=pin) as session:
            key = session.get_key(label=CA_KEY, object_class=pkcs11.ObjectClass.PRIVATE_KEY)
            digest = os.urandom(32)
            key.sign(digest, mechanism=pkcs11.Mechanism.ECDSA)
            count, began = 0, time.monotonic()
            while (took := time.monotonic() - began) < RAW_SECONDS:
                key.sign(digest, mechanism=pkcs11.Mechanism.ECDSA)
                count += 1
    finally:
        library.finalize()
    return took / count


def _request(
    number: int, key: ec.EllipticCurvePrivateKey, profile: str, attestation: bytes = b""
) -> SignRequest:
    name = f"bench-{number}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    der = csr.public_bytes(serialization.Encoding.DER)
    return SignRequest(name, name, profile, der, attestation=attestation)


def _plain(number: int) -> SignRequest:
    """A key of which nothing was shown: the signer checks the request's own signature."""
    return _request(number, ec.generate_private_key(ec.SECP256R1()), "idevid-p256")


def _attested(number: int) -> SignRequest:
    """A key that was shown to be in a TPM: the signer checks the transcript too."""
    tpm, attesting = SoftTpm(number + 1), Attesting()
    tpm.show_ek(attesting)
    tpm.show_key(attesting)
    transcript = to_json(attesting.proven_transcript())
    return _request(number, tpm.device_key, "idevid-tpm-p256", transcript)


KINDS: Final = {"certificates": _plain, "certificates with a TPM's proof": _attested}


def run(rig: Rig, count: int) -> list[Row]:
    """Each with verification: of request and proof before the intent, of the token's signature before it leaves."""
    signer = SignerClient(rig.paths.signer_socket)
    signer.check_token()
    rows, first = [], 0
    for kind, make in KINDS.items():
        for connections in (1, 8):
            requests = [make(number) for number in range(first, first + count)]
            first += count
            rows += _measured(rig, signer, requests, f"{kind}, {connections} at a time", connections)
    return rows


def _measured(
    rig: Rig, signer: SignerClient, requests: list[SignRequest], name: str, connections: int
) -> list[Row]:
    signatures = 1 / raw_sign_seconds(rig)
    disk_before = raw_sync_rate(rig.layout.root, 1)
    cpu = rig.cpu()["signer"]
    began = time.monotonic()
    with ThreadPoolExecutor(connections) as pool:
        for chain in pool.map(signer.issue, requests):
            assert len(chain) > 1
    rate = len(requests) / (time.monotonic() - began)
    disk = (disk_before + raw_sync_rate(rig.layout.root, 1)) / 2 / SYNCS
    spent = (rig.cpu()["signer"] - cpu) / len(requests) * 1000
    return [
        Row(name, rate, "/s", signatures, "raw C_Sign", is_rate=True),
        Row(f"{name} ({spent:.1f} ms CPU each)", rate, "/s", disk, "two raw fdatasync", is_rate=True),
    ]
