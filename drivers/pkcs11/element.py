"""A key element on the board's side over PKCS#11: `KeyPlace` and `CertificateStore`, called from any thread.

The key is made in the element and never leaves it; requests are signed there. What runs in the module's thread is in
`element_session`. Whose certificate it is, and whether it may be, is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from asn1crypto import csr as asn1_csr
from asn1crypto import keys as asn1_keys
from asn1crypto import x509 as asn1_x509
from asn1crypto.core import Null
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from drivers.pkcs11.element_session import ElementSession
from drivers.pkcs11.owner import ModuleThread
from hal.call import Call
from hal.errors import CredentialError, DeviceRefused, KeyConflict, quote
from hal.secret import Secret
from hal.types import DeviceKey, KeyProtection, KeyType

T = TypeVar("T")
COMMON_NAME_LIMIT: Final = 64
"""Characters: ub-common-name of RFC 5280, A.1."""
CHAIN_LIMIT: Final = 8
_CURVES: Final = {"secp256r1": KeyType.P256, "secp384r1": KeyType.P384}
_RSA_SIZES: Final = {2048: KeyType.RSA2048, 3072: KeyType.RSA3072}


class Pkcs11Element:
    def __init__(self, thread: ModuleThread, session: ElementSession) -> None:
        self._thread, self._session = thread, session

    @property
    def protection(self) -> KeyProtection:
        return KeyProtection.ELEMENT

    # --- KeyPlace

    def key(self, call: Call) -> DeviceKey | None:
        spki = self._run(call, self._session.public_key)
        return None if spki is None else _device_key(spki)

    def make_key(self, call: Call, key_type: KeyType, owner: Secret) -> DeviceKey:
        del owner  # there is no TPM hierarchy to authorise for

        def make() -> bytes:
            if self._session.public_key() is not None:
                raise KeyConflict("the element has a key of that label already, and doesn't replace it")
            return self._session.make_key(key_type)

        return _device_key(self._run(call, make))

    def csr(self, call: Call, common_name: str) -> bytes:
        if not 0 < len(common_name) <= COMMON_NAME_LIMIT:
            raise CredentialError(
                f"{quote(common_name)} can't be a common name: 1 to {COMMON_NAME_LIMIT} characters"
            )
        return self._run(call, lambda: self._request(common_name))

    def prove(self, call: Call, nonce: bytes) -> bytes:
        return self._run(call, lambda: self._session.sign(nonce))

    def _request(self, common_name: str) -> bytes:
        """CertificationRequest (RFC 2986, 4), built here: `cryptography` signs with keys that it holds."""
        spki = self._session.public_key()
        if spki is None:
            raise CredentialError("there is no key in the element to sign a request with")
        info = asn1_csr.CertificationRequestInfo(
            {
                "version": "v1",
                "subject": asn1_x509.Name.build({"common_name": common_name}),
                "subject_pk_info": asn1_keys.PublicKeyInfo.load(spki, strict=True),
                "attributes": [],
            }
        )
        is_rsa = isinstance(serialization.load_der_public_key(spki), rsa.RSAPublicKey)
        algorithm = (
            {"algorithm": "sha256_rsa", "parameters": Null()} if is_rsa else {"algorithm": "sha256_ecdsa"}
        )
        request = asn1_csr.CertificationRequest(
            {
                "certification_request_info": info,
                "signature_algorithm": algorithm,
                "signature": self._session.sign(info.dump()),
            }
        )
        return bytes(request.dump())

    # --- CertificateStore

    def install(self, call: Call, chain: Sequence[bytes]) -> None:
        if not 0 < len(chain) <= CHAIN_LIMIT:
            raise DeviceRefused(f"{len(chain)} certificates can't be installed; 1 to {CHAIN_LIMIT} can")
        try:
            for der in chain:
                x509.load_der_x509_certificate(der)
        except ValueError as error:
            raise CredentialError(f"what is to be installed is no certificate: {quote(error)}") from error
        self._run(call, lambda: self._session.replace_certificates(chain))

    def installed(self, call: Call) -> Sequence[bytes]:
        return self._run(call, self._session.certificates)

    def _run(self, call: Call, work: Callable[[], T]) -> T:
        return self._thread.run(call, lambda: self._session.guarded(work))


def _device_key(spki: bytes) -> DeviceKey:
    public = serialization.load_der_public_key(spki)
    key_type: KeyType | None = None
    if isinstance(public, ec.EllipticCurvePublicKey):
        key_type = _CURVES.get(public.curve.name)
    elif isinstance(public, rsa.RSAPublicKey):
        key_type = _RSA_SIZES.get(public.key_size)
    if key_type is None:
        raise CredentialError("the element's key is of none of the known types")
    return DeviceKey(spki=spki, key_type=key_type)
