"""`key-identity`: for boards without a TPM: the board's own key is what its unit is known by.

Weaker than an EK: the key is only as safe as the place that keeps it, and the record says which place that is.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Annotated, Literal

from cryptography.hazmat.primitives import serialization
from msgspec import Meta, Struct

from hal.interfaces import DeviceIdentity, KeyPlace
from hal.secret import EMPTY
from hal.types import DeviceKey, KeyType
from station.action import Action, Look, Step, Trip
from station.messages import Facts
from station.signature import verify_signature


class Options(Struct, frozen=True):
    place: Annotated[
        str, Meta(min_length=1, max_length=64, description="the role of the driver that keeps the key")
    ] = "link"
    key: Annotated[Literal["p256", "p384", "rsa2048", "rsa3072"], Meta(description="a key type")] = "p256"


class Key(Action):
    """The board has a key. Making one where there is none can be repeated: it replaces nothing."""

    name = "key"
    seconds = 300.0
    repeatable = True

    def probe(self, trip: Trip) -> Facts | None:
        key = trip.need(KeyPlace, trip.options.place).key(trip.call)
        return None if key is None else _facts(key)

    def apply(self, trip: Trip) -> None:
        trip.need(KeyPlace, trip.options.place).make_key(trip.call, KeyType(trip.options.key), EMPTY)


def _facts(key: DeviceKey) -> Facts:
    digest = hashlib.sha256(key.spki).digest()
    name = base64.b32encode(digest).decode("ascii").rstrip("=").lower()
    return {"identity_spki": key.spki, "registration_id": name}


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


STEP = Step(
    use="key-identity",
    summary="for boards without a TPM: the board's own key is its identity",
    options=Options,
    actions=lambda _options: (Key(), Possession(), Join()),
    needs=lambda options: ((KeyPlace, options.place),),
    gives=lambda _options: frozenset({"registration_id", "unit", "identity_spki"}),
)
