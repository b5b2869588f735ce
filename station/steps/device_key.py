"""What the certificate step's actions share: the key in its place, and a chain that fits it. No action here."""

from __future__ import annotations

import itertools
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from hal.errors import CredentialError, KeyConflict
from hal.interfaces import KeyPlace
from hal.types import DeviceKey
from station.action import Trip
from station.messages import Facts
from station.protection import check_lifetime
from station.signature import spki

REGISTRATION_ID: Final = "registration-id"
"""Of the option `subject`: the certificate's common name has to be the unit's registration ID."""


def place_of(trip: Trip) -> KeyPlace:
    return trip.need(KeyPlace, trip.options.place)


def present_key(trip: Trip) -> DeviceKey:
    key = place_of(trip).key(trip.call)
    if key is None:
        raise KeyConflict("the device's key is gone")
    return key


def key_facts(trip: Trip, key: DeviceKey) -> Facts:
    return {
        "key_place": trip.options.place,
        "key_protection": place_of(trip).protection.value,
        "key_override": trip.options.override,
        "key_spki": key.spki,
        "key_name": key.name,
        "key_public": key.public,
        "key_resident": key.resident,
    }


def check_chain(trip: Trip, chain: list[bytes]) -> None:
    """Leaf for this key and, where the recipe wants that, this registration ID; each link is signed by the next.

    One that was issued here leads to a CA that this station has had; where others lead, the station has judged.
    """
    certificates = [x509.load_der_x509_certificate(der) for der in chain]
    leaf = certificates[0]
    check_lifetime(leaf, place_of(trip).protection, trip.about.long_lived_days, trip.options.override)
    if spki(leaf.public_key()) != trip.octets("key_spki"):
        raise KeyConflict("the certificate on record is for another key than the device's")
    names = [item.value for item in leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    if trip.options.subject == REGISTRATION_ID and names != [trip.text("registration_id")]:
        raise CredentialError("the certificate on record names another registration ID")
    ours = trip.options.source == "issue"
    if ours and chain[1:] and trip.about.issuers and chain[1] not in trip.about.issuers:
        raise CredentialError(
            "the certificate on record was issued by none of the CAs that this station has had",
            hint="An engineer decides whether this unit keeps its certificate.",
        )
    try:
        for child, parent in itertools.pairwise(certificates):
            child.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CredentialError("the certificate's chain does not hold") from error
