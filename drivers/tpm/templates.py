"""Public templates of the keys that Hallmark makes in a TPM, and the handles they go to. Data, no TPM is spoken to.

Each call builds a new structure: tpm2-pytss's own templates are module globals, which lanes must not share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from drivers.tpm.tss import (
    TPM2_ALG,
    TPM2_CC,
    TPM2B_PUBLIC,
    TPMA_NV,
    TPMT_PUBLIC,
    NoSuchIndex,
    create_ek_template,
)
from hal.types import EkOrigin, KeyType, SrkTemplate

EK_HANDLE: Final = 0x81010001
"""TCG Provisioning Guidance, 7.8 (reserved handles): the first EK, where field clients look."""
EK_HANDLES: Final = range(0x81010000, 0x81010100)
SRK_HANDLE: Final = 0x81000001
DEVICE_KEY_HANDLE: Final = 0x81020000
"""TCG TPM v2.0 Provisioning Guidance, 7.8, table 2: the IDevID key."""
IAK_HANDLE: Final = 0x81020001
"""The next one of that range: the specifications that we could read reserve none for an IAK."""
IDEVID_POLICY_INDEX: Final = 0x01C90010
IAK_POLICY_INDEX: Final = 0x01C90018
"""NV indexes in which an owner may put another policy: TPM 2.0 Keys for Device Identity and Attestation, 7.3.2."""
ALG_NULL: Final = int(TPM2_ALG.NULL)

EK_TEMPLATES: Final[dict[int, str]] = {
    0x01C00002: "L-1",
    0x01C0000A: "L-2",
    0x01C00012: "H-1",
    0x01C00014: "H-2",
    0x01C00016: "H-3",
    0x01C00018: "H-4",
    0x01C0001C: "H-6",
    0x01C0001E: "H-7",
}
"""NV index of an EK certificate to the template of its key: TCG EK Credential Profile 2.4, 2.2.1.4 and B.3, B.4."""
EMPTY_UNIQUE: Final = EkOrigin.EMPTY_UNIQUE.value
EK_CHAIN_INDEXES: Final = range(0x01C00100, 0x01C00200)
"""The EK certificate's issuers, DER one behind the other, going on from one index to the next (2.2.1.5.2)."""

_RH_ENDORSEMENT: Final = 0x4000000B
_CC_POLICY_SECRET, _CC_POLICY_COMMAND_CODE, _CC_POLICY_OR, _CC_POLICY_AUTHORIZE_NV = (
    0x151,
    0x16C,
    0x171,
    0x192,
)
_POLICY_NV: Final = int(
    TPMA_NV.POLICYWRITE
    | TPMA_NV.WRITEALL
    | TPMA_NV.PPREAD
    | TPMA_NV.OWNERREAD
    | TPMA_NV.AUTHREAD
    | TPMA_NV.POLICYREAD
    | TPMA_NV.NO_DA
    | TPMA_NV.WRITTEN
)
"""Attributes of the NV indexes for policies, once written: 7.3.5.1, table 9."""

_STORAGE: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
_SIGNING: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"
_IDEVID: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|adminwithpolicy|sign"
_IAK: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|adminwithpolicy|restricted|sign"
_ATTESTING: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"

_KEYS: Final[dict[KeyType, str]] = {
    KeyType.P256: "ecc_nist_p256:null:null",
    KeyType.P384: "ecc_nist_p384:null:null",
    KeyType.RSA2048: "rsa2048:null:null",
    KeyType.RSA3072: "rsa3072:null:null",
}


def ek(template: str, read: Callable[[int], bytes | None]) -> TPM2B_PUBLIC:
    """The EK template of that name ("L-1"), with the nonce or template that its maker left in NV.

    `read` gives an NV index's content or None.
    """

    def callback(index: int) -> bytes:
        content = read(index)
        if content is None:
            raise NoSuchIndex(index)
        return content

    if template == EMPTY_UNIQUE:
        # azure-iot-sdk-c, provisioning TPM client: L-1 but for `unique`, which has no octets instead of 256 zeros.
        area = ek("L-1", _nothing)
        area.publicArea.unique.rsa = b""
        return area

    # The certificate isn't wanted here; a high-range template would be refused without one.
    certificates = EK_TEMPLATES.keys()
    _, area = create_ek_template(template, lambda index: b"" if index in certificates else callback(index))
    return area


def _nothing(index: int) -> None:
    del index


def srk(template: SrkTemplate) -> TPM2B_PUBLIC:
    """Storage root key without auth: TCG TPM v2.0 Provisioning Guidance, 7.5.1 (EK template, userWithAuth, noDA).

    `unique` is zeros of the key's size, as in the EK templates.
    """
    if template is SrkTemplate.RSA2048:
        area = TPMT_PUBLIC.parse("rsa2048:null:aes128cfb", objectAttributes=_STORAGE)
        area.unique.rsa = bytes(256)
    else:
        area = TPMT_PUBLIC.parse("ecc_nist_p256:null:aes128cfb", objectAttributes=_STORAGE)
        area.unique.ecc.x = bytes(32)
        area.unique.ecc.y = bytes(32)
    return TPM2B_PUBLIC(publicArea=area)


def device_key(kind: KeyType) -> TPM2B_PUBLIC:
    """A signing key without auth and without a fixed scheme: field clients sign with what TLS asks for."""
    return TPM2B_PUBLIC(publicArea=TPMT_PUBLIC.parse(_KEYS[kind], objectAttributes=_SIGNING))


def attestation_key() -> TPM2B_PUBLIC:
    """AK: restricted, P-256, ECDSA with SHA-256: signs only what the TPM itself has made (Part 1, 11.4.6.3)."""
    return TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC.parse("ecc_nist_p256:ecdsa-sha256:null", objectAttributes=_ATTESTING)
    )


# --- TCG "TPM 2.0 Keys for Device Identity and Attestation", 7.3.4: H-2 (ECC P-256, SHA-256) --------------------------


def idevid() -> TPM2B_PUBLIC:
    """The recoverable IDevID key: anybody with the TPM derives the same one."""
    return _identity_key(_IDEVID, idevid_policy(), b"IDEVID")


def iak() -> TPM2B_PUBLIC:
    """The recoverable initial attestation key."""
    return _identity_key(_IAK, iak_policy(), b"IAK")


def _identity_key(attributes: str, policy: bytes, unique: bytes) -> TPM2B_PUBLIC:
    area = TPMT_PUBLIC.parse(
        "ecc_nist_p256:ecdsa-sha256:null", objectAttributes=attributes, authPolicy=policy
    )
    area.unique.ecc.x = unique
    area.unique.ecc.y = unique
    return TPM2B_PUBLIC(publicArea=area)


def idevid_policy() -> bytes:
    return _either(idevid_branches())


def iak_policy() -> bytes:
    return _either(iak_branches())


def idevid_branches() -> list[bytes]:
    """Endorsement auth; the same for Certify, and for ActivateCredential; or what the owner has put into NV."""
    return _branches(IDEVID_POLICY_INDEX)


def iak_branches() -> list[bytes]:
    return _branches(IAK_POLICY_INDEX)


def _branches(index: int) -> list[bytes]:
    endorsed = _sha256(
        _extended(_CC_POLICY_SECRET, _RH_ENDORSEMENT.to_bytes(4, "big"))
    )  # and an empty policyRef
    commands = (int(TPM2_CC.Certify), int(TPM2_CC.ActivateCredential))
    bound = [_extended(_CC_POLICY_COMMAND_CODE, code.to_bytes(4, "big"), endorsed) for code in commands]
    # TPMS_NV_PUBLIC of the index as the specification wants it defined: index, nameAlg, attributes, policy, size.
    area = (
        index.to_bytes(4, "big")
        + b"\x00\x0b"
        + _POLICY_NV.to_bytes(4, "big")
        + b"\x00\x20"
        + endorsed
        + b"\x00\x22"
    )
    return [endorsed, *bound, _extended(_CC_POLICY_AUTHORIZE_NV, b"\x00\x0b" + _sha256(area))]


def _either(branches: list[bytes]) -> bytes:
    return _extended(_CC_POLICY_OR, b"".join(branches))


def _extended(command: int, arguments: bytes, before: bytes = bytes(32)) -> bytes:
    """Part 1, 19.7: how each policy command extends a policy's digest."""
    return _sha256(before + command.to_bytes(4, "big") + arguments)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
