"""Public templates of the keys that Hallmark makes in a TPM, and the handles they go to. Data, no TPM is spoken to.

Each call builds a new structure: tpm2-pytss's own templates are module globals, which lanes must not share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from drivers.tpm.tss import TPM2B_PUBLIC, TPMT_PUBLIC, NoSuchIndex, create_ek_template
from hal.types import EkOrigin, KeyType, SrkTemplate

EK_HANDLE: Final = 0x81010001
"""TCG Provisioning Guidance, 7.8 (reserved handles): the first EK, where field clients look."""
EK_HANDLES: Final = range(0x81010000, 0x81010100)
SRK_HANDLE: Final = 0x81000001
DEVICE_KEY_HANDLE: Final = 0x81020000
"""TCG TPM 2.0 Keys for Device Identity and Attestation: first handle for an IDevID key."""

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

_STORAGE: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
_SIGNING: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign"
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
