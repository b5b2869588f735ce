"""Auth values sealed to the escrow officers: what only they can open, with a key that no station has.

CMS AuthEnvelopedData (RFC 5083) with AES-256-GCM (RFC 5084), to one or several certificates: RSA by RSAES-OAEP with
SHA-256 (RFC 3560), EC by ephemeral-static ECDH with SHA-256 KDF and AES-256 key wrap (RFC 5753). Opened by
`openssl cms -decrypt -inform DER -in escrow.p7m -inkey officer.key -recip officer.pem`. Nothing here opens or stores.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgspec
from asn1crypto import algos, cms, core, keys
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from hal.errors import ConfigError, quote
from hal.secret import Secret

FORMAT: Final = "hallmark-escrow-1"
KEY_LENGTH: Final = 32
"""Octets: AES-256, for the content and for wrapping its key."""
NONCE_LENGTH: Final = 12
"""Octets; RFC 5084, 3.2, recommends 12. Fresh with each content key, so it can't come twice."""
TAG_LENGTH: Final = 16
"""Octets; the default of RFC 5084 is 12, OpenSSL and we use all 16."""
LEAST_RSA_BITS: Final = 2048

AES256_GCM: Final = "2.16.840.1.101.3.4.1.46"
ECDH_SHA256_KDF: Final = "1.3.132.1.11.1"
"""dhSinglePass-stdDH-sha256kdf-scheme, RFC 5753, 7.1.4."""
AES256_WRAP: Final = "2.16.840.1.101.3.4.1.45"


class _EccCmsSharedInfo(core.Sequence):  # type: ignore[misc]  # asn1crypto is untyped
    """RFC 5753, 7.2. `supp_pub_info`: the wrapping key's length in bits, 4 octets big-endian."""

    _fields: ClassVar[list[tuple[Any, ...]]] = [
        ("key_info", algos.EncryptionAlgorithm),
        ("supp_pub_info", core.OctetString, {"explicit": 2}),
    ]


@dataclass(frozen=True, slots=True)
class EscrowRecord:
    """What an officer gets to see. `ek_name`: the EK's Name, as in TPM2B_NAME; `auths` by hierarchy."""

    ek_name: bytes
    unit: str
    station: str
    generation: int
    auths: Mapping[str, Secret]

    def canonical(self) -> bytes:
        """JSON with sorted keys and no spaces; octets in hexadecimal."""
        plain = {
            "auths": {name: auth.reveal().hex() for name, auth in self.auths.items()},
            "ek_name": self.ek_name.hex(),
            "format": FORMAT,
            "generation": self.generation,
            "station": self.station,
            "unit": self.unit,
        }
        return msgspec.json.encode(plain, order="sorted")


def check_officer(certificate: x509.Certificate) -> None:
    """ConfigError when nothing can be sealed to this certificate: its key's kind or usage won't do."""
    key = certificate.public_key()
    name = quote(certificate.subject.rfc4514_string())
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < LEAST_RSA_BITS:
            message = (
                f"the escrow officer {name} has an RSA key of {key.key_size} bits; expected {LEAST_RSA_BITS}"
            )
            raise ConfigError(message)
    elif not isinstance(key, ec.EllipticCurvePublicKey):
        message = f"the escrow officer {name} has neither an RSA nor an EC key"
        raise ConfigError(message)
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    fits = usage.key_encipherment if isinstance(key, rsa.RSAPublicKey) else usage.key_agreement
    if not fits:
        wanted = "keyEncipherment" if isinstance(key, rsa.RSAPublicKey) else "keyAgreement"
        message = f"the escrow officer {name}'s certificate has a key usage without {wanted}"
        raise ConfigError(message)


def seal(officers: Sequence[x509.Certificate], record: EscrowRecord) -> bytes:
    """`record` for all of `officers`, any of whom can open it: a DER ContentInfo. ConfigError when there is none."""
    if not officers:
        message = "no escrow officer: nothing can be sealed"
        raise ConfigError(message)
    for officer in officers:
        check_officer(officer)
    content_key, nonce = os.urandom(KEY_LENGTH), os.urandom(NONCE_LENGTH)
    recipients = [_recipient(officer, content_key) for officer in officers]
    # No authenticated attributes: RFC 5083, 2.1, wants them only when the content is not id-data.
    sealed = AESGCM(content_key).encrypt(nonce, record.canonical(), None)
    parameters = core.Sequence.load(_gcm_parameters(nonce))
    enveloped = cms.AuthEnvelopedData(
        {
            "version": "v0",
            "recipient_infos": recipients,
            "auth_encrypted_content_info": {
                "content_type": "data",
                "content_encryption_algorithm": {"algorithm": AES256_GCM, "parameters": parameters},
                "encrypted_content": sealed[:-TAG_LENGTH],
            },
            "mac": sealed[-TAG_LENGTH:],
        }
    )
    info = cms.ContentInfo({"content_type": "authenticated_enveloped_data", "content": enveloped})
    return bytes(info.dump())


def _gcm_parameters(nonce: bytes) -> bytes:
    """GCMParameters ::= SEQUENCE { aes-nonce OCTET STRING, aes-ICVlen INTEGER DEFAULT 12 } (RFC 5084, 3.2), DER."""
    body = core.OctetString(nonce).dump() + core.Integer(TAG_LENGTH).dump()
    return bytes((0x30, len(body))) + bytes(body)


def _recipient(officer: x509.Certificate, content_key: bytes) -> Any:
    key = officer.public_key()
    own = asn1_x509.Certificate.load(officer.public_bytes(serialization.Encoding.DER))
    who = cms.IssuerAndSerialNumber({"issuer": own.issuer, "serial_number": own.serial_number})
    if isinstance(key, rsa.RSAPublicKey):
        return cms.RecipientInfo("ktri", _by_rsa(key, who, content_key))
    if isinstance(key, ec.EllipticCurvePublicKey):
        return cms.RecipientInfo("kari", _by_ecdh(key, who, content_key))
    message = "an escrow officer with another kind of key"
    raise ConfigError(message)


def _by_rsa(key: rsa.RSAPublicKey, who: Any, content_key: bytes) -> Any:
    sha256 = hashes.SHA256()
    encrypted = key.encrypt(content_key, padding.OAEP(padding.MGF1(sha256), sha256, label=None))
    oaep = {
        "hash_algorithm": {"algorithm": "sha256"},
        "mask_gen_algorithm": {"algorithm": "mgf1", "parameters": {"algorithm": "sha256"}},
    }
    return cms.KeyTransRecipientInfo(
        {
            "version": "v0",
            "rid": cms.RecipientIdentifier("issuer_and_serial_number", who),
            "key_encryption_algorithm": {
                "algorithm": "rsaes_oaep",
                "parameters": algos.RSAESOAEPParams(oaep),
            },
            "encrypted_key": encrypted,
        }
    )


def _wrap_algorithm() -> Any:
    return algos.EncryptionAlgorithm({"algorithm": AES256_WRAP})


def wrapping_info() -> bytes:
    """The KDF's shared info, DER: which algorithm the derived key is for, and how long it is."""
    info = {"key_info": _wrap_algorithm(), "supp_pub_info": (KEY_LENGTH * 8).to_bytes(4)}
    return bytes(_EccCmsSharedInfo(info).dump())


def _by_ecdh(key: ec.EllipticCurvePublicKey, who: Any, content_key: bytes) -> Any:
    ephemeral = ec.generate_private_key(key.curve)
    shared = ephemeral.exchange(ec.ECDH(), key)
    wrap_algorithm = _wrap_algorithm()
    wrapping_key = X963KDF(hashes.SHA256(), KEY_LENGTH, wrapping_info()).derive(shared)
    public = keys.PublicKeyInfo.load(
        ephemeral.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    recipient = cms.RecipientEncryptedKey(
        {
            "rid": cms.KeyAgreementRecipientIdentifier("issuer_and_serial_number", who),
            "encrypted_key": aes_key_wrap(wrapping_key, content_key),
        }
    )
    return cms.KeyAgreeRecipientInfo(
        {
            "version": "v3",
            "originator": cms.OriginatorIdentifierOrKey("originator_key", public),
            "key_encryption_algorithm": {"algorithm": ECDH_SHA256_KDF, "parameters": wrap_algorithm},
            "recipient_encrypted_keys": [recipient],
        }
    )
