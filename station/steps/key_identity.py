"""`key-identity`: for boards without a TPM: the board's own key is what its unit is known by.

Weaker than an EK: the key is only as safe as the place that keeps it, and the record says which place that is.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives import serialization
from msgspec import Meta, Struct

from hal.errors import CertificateUntrusted, KeyConflict, quote
from hal.interfaces import CertificateStore, DeviceIdentity, KeyPlace
from hal.secret import EMPTY
from hal.types import DeviceKey, KeyType
from station.action import Action, Look, Need, Step, Trip
from station.enrollment import RegistrationId
from station.foreign import read_leaf
from station.messages import Facts
from station.signature import verify_signature


class Options(Struct, frozen=True):
    place: Annotated[
        str, Meta(min_length=1, max_length=64, description="the role of the driver that keeps the key")
    ] = "link"
    key: Annotated[Literal["p256", "p384", "rsa2048", "rsa3072"], Meta(description="a key type")] = "p256"
    registration_id: Annotated[
        Literal["key", "certificate", "pool"], Meta(description="'key', 'certificate' or 'pool'")
    ] = "key"
    certificate: Annotated[
        str,
        Meta(min_length=1, max_length=64, description="the role of the driver that keeps the certificate"),
    ] = "link"


class Key(Action):
    """The board has a key. Making one where there is none can be repeated: it replaces nothing."""

    name = "key"
    seconds = 300.0
    repeatable = True

    def probe(self, trip: Trip) -> Facts | None:
        key = trip.need(KeyPlace, trip.options.place).key(trip.call)
        if key is None:
            if trip.options.registration_id != "key":
                raise KeyConflict(
                    "there is no key in the device, and its name is to come from that key's certificate",
                    hint="Set the board aside: it was not prepared as this recipe expects.",
                )
            return None
        return {"identity_spki": key.spki, "registration_id": _name(trip, key)}

    def apply(self, trip: Trip) -> None:
        trip.need(KeyPlace, trip.options.place).make_key(trip.call, KeyType(trip.options.key), EMPTY)


def _name(trip: Trip, key: DeviceKey) -> str:
    """The registration ID: of the key itself, or the common name that a certificate for this key has already."""
    match trip.options.registration_id:
        case "key":
            digest = hashlib.sha256(key.spki).digest()
            return base64.b32encode(digest).decode("ascii").rstrip("=").lower()
        case "pool":
            found = trip.desk.stock_name(key.spki)
        case _:
            found = _certified_name(trip, key)
    try:
        return msgspec.convert(found, RegistrationId)
    except msgspec.ValidationError as error:
        raise CertificateUntrusted(
            f"the common name {quote(found)} can't be a registration ID: {error}",
            hint="An engineer lets the registration ID come from the key instead.",
        ) from error


def _certified_name(trip: Trip, key: DeviceKey) -> str:
    chain = trip.need(CertificateStore, trip.options.certificate).installed(trip.call)
    if not chain:
        raise CertificateUntrusted("the device holds no certificate that its name could come from")
    leaf = read_leaf(chain[0])
    if leaf.spki != key.spki:
        raise KeyConflict("the device's certificate is for another key than the one in its place")
    return leaf.common_name


class Possession(Look):
    """The board can sign with it: a copied public key opens no record."""

    name = "possession"

    def probe(self, trip: Trip) -> Facts:
        nonce = secrets.token_bytes(32)
        signature = trip.need(KeyPlace, trip.options.place).prove(trip.call, nonce)
        verify_signature(serialization.load_der_public_key(trip.octets("identity_spki")), signature, nonce)
        return {"identity_nonce": nonce, "identity_signature": signature}


class Join(Look):
    """From here on the visit is this unit's."""

    name = "join"

    def probe(self, trip: Trip) -> Facts:
        claims: list[tuple[str, str]] = []
        facts: Facts = {
            "identity_place": trip.options.place,
            "identity_protection": trip.need(KeyPlace, trip.options.place).protection.value,
        }
        if trip.board.has(DeviceIdentity):
            board = trip.need(DeviceIdentity).identify(trip.call)
            claims = board.claims()
            facts |= {"board": board.board, "board_serial": board.serial, "board_firmware": board.firmware}
        digest = hashlib.sha256(trip.octets("identity_spki")).hexdigest()
        trip.unit = trip.desk.join("key", digest, trip.text("registration_id"), claims)
        return facts


def _needs(options: Options) -> tuple[Need, ...]:
    stored = ((CertificateStore, options.certificate),) if options.registration_id == "certificate" else ()
    return ((KeyPlace, options.place), *stored)


STEP = Step(
    use="key-identity",
    summary="for boards without a TPM: the board's own key is its identity",
    options=Options,
    actions=lambda _options: (Key(), Possession(), Join()),
    needs=_needs,
    gives=lambda _options: frozenset({"registration_id", "unit", "identity_spki"}),
)
