"""`hal.interfaces.KeyPlace` in a TPM: a signing key without auth, child of the SRK, at 0x81020000.

Child of the SRK, not a primary: each `make_key` gives a fresh random key that nobody can derive again from a template,
and owner auth is needed for EvictControl alone. Certificates and who may ask for them must not come in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from drivers.tpm import public, sessions, templates
from drivers.tpm.context import Tpm
from drivers.tpm.tss import TPMA_OBJECT, tpm_ecc_private_key, tpm_rsa_private_key
from hal.call import Call
from hal.errors import CredentialError, KeyConflict, ProtocolViolation, TpmError, quote
from hal.secret import Secret
from hal.types import DeviceKey, KeyProtection, KeyType


class TpmKeyPlace:
    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm

    @property
    def protection(self) -> KeyProtection:
        return KeyProtection.TPM

    def key(self, call: Call) -> DeviceKey | None:
        with self._tpm.use(call, "reading the device key"):
            area = self._tpm.read_public(templates.DEVICE_KEY_HANDLE)
            return None if area is None else public.device_key(area)

    def make_key(self, call: Call, key_type: KeyType, owner: Secret) -> DeviceKey:
        """See `hal.interfaces`. With an owner auth, Ownership has to have used it with an EK in this visit before."""
        with self._tpm.use(call, "making the device key") as esapi:
            if self._tpm.read_public(templates.DEVICE_KEY_HANDLE) is not None:
                raise KeyConflict(f"there is a key at 0x{templates.DEVICE_KEY_HANDLE:08x} already")
            if self._tpm.read_public(templates.SRK_HANDLE) is None:
                raise TpmError(
                    f"there is no SRK at 0x{templates.SRK_HANDLE:08x} to make a device key under",
                    hint="The recipe's tpm-ownership step has to come before this one.",
                )
            call.progress(0, None)
            with self._tpm.persistent(templates.SRK_HANDLE) as srk:
                private, area, _, _, _ = esapi.create(srk, None, templates.device_key(key_type))
                loaded = esapi.load(srk, private, area)
            with (
                self._tpm.flushing(loaded),
                sessions.owner(self._tpm, owner) as (item, session),
            ):
                esapi.tr_close(
                    esapi.evict_control(item, loaded, templates.DEVICE_KEY_HANDLE, session1=session)
                )
            return public.device_key(public.octets(area))

    def csr(self, call: Call, common_name: str) -> bytes:
        try:
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        except ValueError as error:
            raise CredentialError(f"{quote(common_name)} can't be a common name: {error}") from error
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        with self._tpm.use(call, "signing the certificate request"), self._private_key() as key:
            return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)

    def prove(self, call: Call, nonce: bytes) -> bytes:
        with self._tpm.use(call, "signing with the device key"), self._private_key() as key:
            if isinstance(key, tpm_rsa_private_key):
                return bytes(key.sign(nonce, padding.PKCS1v15(), hashes.SHA256()))
            return bytes(key.sign(nonce, ec.ECDSA(hashes.SHA256())))

    @contextlib.contextmanager
    def _private_key(self) -> Iterator[tpm_ecc_private_key | tpm_rsa_private_key]:
        """The device key as `cryptography` knows private keys; it stays in the TPM."""
        area = self._tpm.read_public(templates.DEVICE_KEY_HANDLE)
        if area is None:
            raise CredentialError(f"there is no key at 0x{templates.DEVICE_KEY_HANDLE:08x}")
        is_rsa = public.device_key(area).key_type in (KeyType.RSA2048, KeyType.RSA3072)
        kind = tpm_rsa_private_key if is_rsa else tpm_ecc_private_key
        with self._tpm.persistent(templates.DEVICE_KEY_HANDLE) as item:
            try:
                yield kind(self._tpm.connected(), item)
            except (ValueError, TypeError) as error:
                # The library reads the object again by itself: a device may have said something else this time,
                # or gives a signature of an algorithm that the key doesn't have.
                raise ProtocolViolation("what the TPM says of its device key doesn't hold") from error
        if not public.attributes(area) & TPMA_OBJECT.NODA:
            self._tpm.settle()  # an auth that dictionary-attack protection covers was used: no power cut counts a try
