"""What every KeyAttestation promises: `check(open_device, make_credential)`, against a TPM that nobody owns.

The caller makes the credentials (EK's TPM2B_PUBLIC, the object's Name, a secret): by other code than the driver's. No
test framework comes in.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from hal.call import Call
from hal.conformance.endorsement_identity import PATIENCE, Open, cancelled, chosen, foreign, name_of, raised
from hal.errors import Aborted, EkMismatch, ResidencyUnproven, TpmError
from hal.interfaces import EndorsementIdentity, KeyAttestation
from hal.types import AkKind, Credential, EndorsementKey

MakeCredential = Callable[[bytes, bytes, bytes], Credential]
GENERATED: Final = bytes.fromhex("ff544347 8017")
"""TPM_GENERATED_VALUE and TPM_ST_ATTEST_CERTIFY: how a TPMS_ATTEST of TPM2_Certify begins."""
SECRET_LENGTH: Final = 32
ATTRIBUTES: Final = slice(6, 10)
RESTRICTED_SIGNER: Final = 0x00050032
"""TPMA_OBJECT: sign, restricted, sensitiveDataOrigin, fixedParent, fixedTPM."""


def check(open_device: Open, make_credential: MakeCredential) -> None:
    """All promises, one after the other."""
    with open_device() as device:
        ek, attestation = chosen(device.get(EndorsementIdentity)), device.get(KeyAttestation)
        assert isinstance(raised(lambda: attestation.attestation_key(cancelled(), AkKind.VISIT)), Aborted)
        ak = attestation.attestation_key(Call.lasting(PATIENCE), AkKind.VISIT)
        attributes = int.from_bytes(ak[ATTRIBUTES], "big")
        assert attributes & RESTRICTED_SIGNER == RESTRICTED_SIGNER, "it signs only what its TPM has made"
        assert attestation.attestation_key(Call.lasting(PATIENCE), AkKind.VISIT) == ak, (
            "the same one each time"
        )
        absent = raised(lambda: attestation.attestation_key(Call.lasting(PATIENCE), AkKind.IAK))
        assert isinstance(absent, TpmError), "there is no IAK that nobody made"
        _activates(attestation, ek, ak, make_credential)
        _certifies(attestation, ak)
    with open_device() as device:
        attestation = device.get(KeyAttestation)
        assert attestation.attestation_key(Call.lasting(PATIENCE), AkKind.VISIT) == ak, (
            "and in the next visit"
        )


def _activates(
    attestation: KeyAttestation, ek: EndorsementKey, ak: bytes, make_credential: MakeCredential
) -> None:
    secret, call = secrets.token_bytes(SECRET_LENGTH), Call.lasting(PATIENCE)
    credential = make_credential(ek.public, name_of(ak), secret)
    assert attestation.activate(call, ek, ak, credential) == secret
    assert attestation.activate(Call.lasting(PATIENCE), ek, ak, credential) == secret, "it may be asked again"
    other = make_credential(ek.public, name_of(ek.public), secret)
    refused = raised(lambda: attestation.activate(Call.lasting(PATIENCE), ek, ak, other))
    assert isinstance(refused, ResidencyUnproven), "a credential for another Name is not opened"
    stranger = raised(lambda: attestation.activate(Call.lasting(PATIENCE), foreign(ek), ak, credential))
    assert isinstance(stranger, EkMismatch | ResidencyUnproven), "another EK than the TPM's proves nothing"


def _certifies(attestation: KeyAttestation, ak: bytes) -> None:
    nonce = secrets.token_bytes(32)
    certified = attestation.certify(Call.lasting(PATIENCE), ak, ak, nonce)
    assert certified.attest.startswith(GENERATED)
    assert nonce in certified.attest
    assert name_of(ak) in certified.attest
    assert len(certified.signature) > len(nonce)
