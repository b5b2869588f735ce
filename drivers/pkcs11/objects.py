"""Objects in a token: found by label, made so that they never leave, read into keys.

As `session`, which alone calls it, this runs in the one thread that owns the module. Logins and losses are not its
matter.
"""

from __future__ import annotations

import contextlib
import secrets
from typing import Any, Final

import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11 import Attribute, MechanismFlag, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from drivers.pkcs11 import keys
from hal.errors import TokenError
from hal.secret import Secret
from hal.types import KeyType

KEY_ID_LENGTH: Final = 8
"""Octets of CKA_ID, random: it ties a private key to its public one for other programs; we go by label."""
AES_BITS: Final = 256
PROBE_BITS: Final = 64
_NOT_FOR_MAC_KEYS: Final = (
    Attribute.VERIFY,
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.DERIVE,
)
KINDS: Final = {
    ObjectClass.PRIVATE_KEY: "private key",
    ObjectClass.PUBLIC_KEY: "public key",
    ObjectClass.SECRET_KEY: "secret key",
    ObjectClass.CERTIFICATE: "certificate",
}


def find(session: Any, label: str, kind: ObjectClass) -> list[Any]:
    """All objects of this kind and label."""
    # A dead session shows here. Where a search on it failed, python-pkcs11's search object would call the module once
    # more when it is collected, in whichever thread that is. For the same reason the search is read to its end.
    with contextlib.suppress(pkcs11.RandomNoRNG):
        session.generate_random(PROBE_BITS)
    return list(session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: label}))


def public_key(found: Any) -> keys.PublicKey:
    """The key of a public key object."""
    if found.key_type is pkcs11.KeyType.RSA:
        return keys.rsa_public_key(found[Attribute.MODULUS], found[Attribute.PUBLIC_EXPONENT])
    return keys.ec_public_key(found[Attribute.EC_PARAMS], found[Attribute.EC_POINT])


def make_key_pair(session: Any, label: str, key_type: KeyType) -> bytes:
    """A key pair that only signs and never leaves; its SubjectPublicKeyInfo (DER)."""
    private = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.SIGN: True}
    public = {Attribute.VERIFY: True}
    common = {"id": secrets.token_bytes(KEY_ID_LENGTH), "label": label, "store": True}
    if key_type in keys.RSA_BITS:
        private |= {Attribute.DECRYPT: False, Attribute.UNWRAP: False}
        public |= {Attribute.ENCRYPT: False, Attribute.WRAP: False}
        made_public, made_private = session.generate_keypair(
            pkcs11.KeyType.RSA,
            keys.RSA_BITS[key_type],
            public_template=public,
            private_template=private,
            **common,
        )
    else:
        curve = {Attribute.EC_PARAMS: encode_named_curve_parameters(keys.CURVE_NAMES[key_type])}
        parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        made_public, made_private = parameters.generate_keypair(
            public_template=public, private_template=private | {Attribute.DERIVE: False}, **common
        )
    _must_stay_inside(made_private)
    return keys.spki(public_key(made_public))


def make_secret_key(session: Any, label: str) -> None:
    """An AES-256 key that encrypts and decrypts, and never leaves."""
    made = session.generate_key(
        pkcs11.KeyType.AES,
        AES_BITS,
        id=secrets.token_bytes(KEY_ID_LENGTH),
        label=label,
        store=True,
        capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
        template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
    )
    _must_stay_inside(made)


def import_mac_key(session: Any, label: str, key: Secret) -> None:
    """A generic secret for HMAC only, which can't be read out again."""
    made = session.create_object(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: pkcs11.KeyType.GENERIC_SECRET,
            Attribute.ID: secrets.token_bytes(KEY_ID_LENGTH),
            Attribute.LABEL: label,
            Attribute.TOKEN: True,
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.SIGN: True,
            **dict.fromkeys(_NOT_FOR_MAC_KEYS, False),
            Attribute.VALUE: key.reveal(),
        }
    )
    if made[Attribute.SENSITIVE] is not True or made[Attribute.EXTRACTABLE] is not False:
        made.destroy()
        message = "the token took a group key that may leave it; it was removed again"
        raise TokenError(message)


def make_exportable(session: Any, key_type: KeyType) -> Secret:
    """PKCS#8 (DER) of a key pair made as objects of this session only, and destroyed before this returns."""
    private = {Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True, Attribute.TOKEN: False}
    if key_type in keys.RSA_BITS:
        made_public, made_private = session.generate_keypair(
            pkcs11.KeyType.RSA, keys.RSA_BITS[key_type], store=False, private_template=private
        )
    else:
        curve = {Attribute.EC_PARAMS: encode_named_curve_parameters(keys.CURVE_NAMES[key_type])}
        parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        made_public, made_private = parameters.generate_keypair(store=False, private_template=private)
    try:
        found = public_key(made_public)
        if isinstance(found, ec.EllipticCurvePublicKey):
            return keys.ec_pkcs8(found, bytes(made_private[Attribute.VALUE]))
        return keys.rsa_pkcs8(
            found, bytes(made_private[Attribute.PRIME_1]), bytes(made_private[Attribute.PRIME_2])
        )
    finally:
        made_private.destroy()
        made_public.destroy()


def _must_stay_inside(key: Any) -> None:
    """The token's word that the key was made in it and never leaves (CKA_LOCAL and neighbours, PKCS#11 v2.40, 4.9)."""
    wanted = (Attribute.LOCAL, Attribute.ALWAYS_SENSITIVE, Attribute.NEVER_EXTRACTABLE)
    wrong = [attribute.name for attribute in wanted if key[attribute] is not True]
    if wrong:
        message = f"the token made a key that may leave it ({', '.join(wrong)} not set)"
        raise TokenError(message)
