"""Everything that calls an element's PKCS#11 module. All of it runs in the one thread of `owner`, and nowhere else.

The element is the device under test: it may be missing, refuse, or hold a key that can be read out of it. A PIN
is given to it once for each opening, and never when it says that a wrong one was given before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import pkcs11
from asn1crypto import x509 as asn1_x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pkcs11 import Attribute, CertificateType, Mechanism, ObjectClass, PKCS11Error

from drivers.pkcs11 import keys, objects, tokens
from hal.errors import (
    CredentialError,
    DeviceBusy,
    PinRejected,
    PossessionUnproven,
    ProtocolViolation,
    TokenError,
    quote,
)
from hal.secret import Secret
from hal.types import KeyType, PinTries

T = TypeVar("T")
CERTIFICATE_LIMIT: Final = 16384
"""Octets of one certificate that is believed."""
ISSUERS_LIMIT: Final = 7
BARRED: Final = frozenset({PinTries.LOW, PinTries.FINAL, PinTries.LOCKED})


class ElementSession:
    """One element, found by its token's label. Connects when first asked, and again after a failure."""

    def __init__(self, module: str, token: str, key: str, certificate: str, pin: Secret | None) -> None:
        self._module, self._token, self._key, self._certificate, self._pin = (
            module,
            token,
            key,
            certificate,
            pin,
        )
        self._library: Any = None
        self._session: Any = None

    def guarded(self, work: Callable[[], T]) -> T:
        """`work()` with the module's errors as ours. After one of the module's everything is initialised anew."""
        try:
            return work()
        except PKCS11Error as error:
            self.close()
            # Not `from error`: its frames hold the library's objects, which have to be freed in this thread.
            raise ProtocolViolation(
                f"the element {quote(self._token)} does not do what it was asked: {tokens.name_of(error)}"
            ) from None
        except PinRejected:
            raise
        except TokenError as error:  # of the rooms that the CA token's driver shares
            raise CredentialError(f"the element {quote(self._token)}: {error}") from None

    def public_key(self) -> bytes | None:
        """DER SubjectPublicKeyInfo; None without a key. CredentialError for a private key that could be read out."""
        found = self._sure(self._pair)
        return None if found is None else keys.spki(found[1])

    def make_key(self, key_type: KeyType) -> bytes:
        return objects.make_key_pair(self._connected(), self._key, key_type)

    def sign(self, data: bytes) -> bytes:
        """With SHA-256, whatever the key: ECDSA as DER, RSA as PKCS#1 v1.5. Checked before it is given out."""
        found = self._sure(self._pair)
        if found is None:
            raise CredentialError("there is no key in the element to sign with")
        private, public = found
        if isinstance(public, rsa.RSAPublicKey):
            signature = bytes(private.sign(keys.to_be_signed(public, data), mechanism=Mechanism.RSA_PKCS))
            keys.check_signature(public, signature, data)
            return signature
        digest = hashlib.sha256(data).digest()
        signature = keys.from_token(public, bytes(private.sign(digest, mechanism=Mechanism.ECDSA)))
        try:
            public.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise PossessionUnproven("the element's private key does not go with its public key") from None
        return signature

    def certificates(self) -> list[bytes]:
        """DER, leaf first; none without a leaf. Its issuers are labelled as the leaf is, with -issuer-1 and so on."""
        return self._sure(self._chain)

    def _chain(self) -> list[bytes]:
        leaves = self._stored(self._certificate)
        if not leaves:
            return []
        if len(leaves) > 1:
            raise CredentialError(
                f"the element has {len(leaves)} certificates labelled {quote(self._certificate)}"
            )
        chain = [_value(leaves[0])]
        for number in range(1, ISSUERS_LIMIT + 1):
            issuers = self._stored(self._issuer(number))
            if len(issuers) != 1:
                break
            chain.append(_value(issuers[0]))
        return chain

    def replace_certificates(self, chain: Sequence[bytes]) -> None:
        """The old leaf goes first and the new one comes last: what was cut off in between shows no certificate."""
        if self.certificates() == list(chain):
            return
        for label in (self._certificate, *(self._issuer(number) for number in range(1, ISSUERS_LIMIT + 1))):
            for old in self._stored(label):
                old.destroy()
        identity = self._key_id()
        for number, issuer in enumerate(chain[1:], 1):
            self._store(self._issuer(number), issuer, b"")
        self._store(self._certificate, chain[0], identity)

    def close(self) -> None:
        """Logs out and finalises the module, which needs no answer from the element."""
        self._session = None
        if self._library is not None and self._library.initialized:
            self._library.finalize()

    def _sure(self, look: Callable[[], T]) -> T:
        """An old session of an element that went away may show nothing at all, without an error: looked at anew."""
        was_connected = self._session is not None
        found = look()
        if found or not was_connected:
            return found
        self.close()
        return look()

    # --- connecting

    def _connected(self) -> Any:
        if self._session is None:
            self._session = self._open(self._find())
        return self._session

    def _find(self) -> Any:
        if self._library is None:
            self._library = pkcs11.lib(self._module)
        if not self._library.initialized:
            self._library.initialize()
        found = tokens.labelled(self._library, self._token)
        if len(found) != 1:
            self.close()  # modules list tokens once, at C_Initialize
            how_many = "no element is" if not found else f"{len(found)} elements are"
            raise DeviceBusy(
                f"{how_many} labelled {quote(self._token)}",
                hint="Check how the board sits in its fixture; an engineer checks the element's label in the recipe.",
            )
        return found[0]

    def _open(self, token: Any) -> Any:
        if self._pin is None:
            return token.open(rw=True)
        # A public session first: what fails here has nothing to do with the PIN, and the token hasn't seen it.
        token.open(rw=True)
        hint = "An engineer corrects the credential of the element's PIN; wrong ones lock elements for good."
        if tokens.tries(token) in BARRED:
            self.close()
            raise PinRejected(
                "the element says that a wrong PIN was given, and was not given another", hint=hint
            )
        try:
            return token.open(rw=True, user_pin=self._pin.reveal().decode("utf-8"))
        except tokens.REFUSALS as error:
            self.close()
            # Not `from error`: frames hold the PIN.
            raise PinRejected(f"the element refuses the PIN: {tokens.name_of(error)}", hint=hint) from None

    # --- objects

    def _pair(self) -> tuple[Any, keys.PublicKey] | None:
        private = self._one(ObjectClass.PRIVATE_KEY)
        public = self._one(ObjectClass.PUBLIC_KEY)
        if private is None and public is None:
            return None
        if private is None or public is None:
            missing = "private" if private is None else "public"
            raise CredentialError(
                f"the element has no {missing} key labelled {quote(self._key)}, only the other"
            )
        if private[Attribute.SENSITIVE] is not True or private[Attribute.EXTRACTABLE] is not False:
            raise CredentialError(
                "the element's private key can be read out of it (CKA_SENSITIVE, CKA_EXTRACTABLE)",
                hint="Set the board aside: its key was not made as a key for life.",
            )
        return private, objects.public_key(public)

    def _one(self, kind: ObjectClass) -> Any:
        found = objects.find(self._connected(), self._key, kind)
        if len(found) > 1:
            raise CredentialError(
                f"the element has {len(found)} keys of one kind labelled {quote(self._key)}"
            )
        return found[0] if found else None

    def _key_id(self) -> bytes:
        private = self._one(ObjectClass.PRIVATE_KEY)
        return b"" if private is None else bytes(private[Attribute.ID])

    def _stored(self, label: str) -> list[Any]:
        return objects.find(self._connected(), label, ObjectClass.CERTIFICATE)

    def _issuer(self, number: int) -> str:
        return f"{self._certificate}-issuer-{number}"

    def _store(self, label: str, der: bytes, identity: bytes) -> None:
        """CKO_CERTIFICATE of type X.509 (PKCS#11 v2.40, 4.6.3)."""
        certificate = asn1_x509.Certificate.load(der, strict=True)
        self._connected().create_object(
            {
                Attribute.CLASS: ObjectClass.CERTIFICATE,
                Attribute.CERTIFICATE_TYPE: CertificateType.X_509,
                Attribute.TOKEN: True,
                Attribute.PRIVATE: False,
                Attribute.LABEL: label,
                Attribute.ID: identity,
                Attribute.SUBJECT: certificate.subject.dump(),
                Attribute.ISSUER: certificate.issuer.dump(),
                Attribute.SERIAL_NUMBER: certificate["tbs_certificate"]["serial_number"].dump(),
                Attribute.VALUE: der,
            }
        )


def _value(certificate: Any) -> bytes:
    value = bytes(certificate[Attribute.VALUE])
    if not 0 < len(value) <= CERTIFICATE_LIMIT:
        raise ProtocolViolation(f"the element shows a certificate of {len(value)} octets")
    return value
