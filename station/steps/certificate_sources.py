"""The certificate step where nothing is issued here: keys that are in the device already, certificates from elsewhere.

The station judges them and makes whose they are durable; these actions only carry them between device and station.
"""

from __future__ import annotations

import hashlib

from hal.errors import CredentialError, KeyConflict
from hal.interfaces import CertificateStore, KeyDelivery
from hal.types import KeyPurpose
from station.action import Action, Look, Trip
from station.foreign import read_leaf
from station.messages import Facts
from station.steps.device_key import check_chain, key_facts, place_of


class PresentKey(Look):
    """The key is in the device already, made by itself or by its element's vendor, and is the one on record."""

    name = "key"

    def probe(self, trip: Trip) -> Facts:
        key = place_of(trip).key(trip.call)
        if key is None:
            raise KeyConflict(
                "there is no key in the device, where this recipe's certificates are for keys that are there already",
                hint="Set the board aside: it was not prepared as this recipe expects.",
            )
        recorded = trip.recorded("certificate.key").get("key_spki")
        if recorded not in (None, key.spki):
            raise KeyConflict("another key than the recorded one is in the key's place")
        return key_facts(trip, key)


class Draw(Action):
    """The unit has its certificate from the recipe's lot: its own for good before the device gets it."""

    name = "draw"

    def probe(self, trip: Trip) -> Facts | None:
        chain = trip.recorded("certificate.draw").get("certificate_chain") or trip.facts.get(
            "certificate_chain"
        )
        if not isinstance(chain, list) or not chain:
            return None
        certificates = [der for der in chain if isinstance(der, bytes)]
        if trip.options.key_from == "pool":
            trip.facts["key_spki"] = read_leaf(certificates[0]).spki
        check_chain(trip, certificates)
        return {"certificate_chain": certificates, "certificate_source": f"pool:{trip.options.lot}"}

    def apply(self, trip: Trip) -> None:
        key = b"" if trip.options.key_from == "pool" else trip.octets("key_spki")
        trip.facts["certificate_chain"] = list(trip.desk.draw(key))


class DeliveredKey(Action):
    """The device has the private key that was made for it elsewhere: in the CA token, or with the pool's certificate.

    It crosses the link sealed to a key that the device makes for this one delivery.
    """

    name = "key"
    seconds = 120.0

    def probe(self, trip: Trip) -> Facts | None:
        key = place_of(trip).key(trip.call)
        recorded = trip.recorded("certificate.key").get("key_spki")
        if key is None:
            if recorded is not None:
                raise KeyConflict(
                    "the key that this unit's certificate names is gone from the device",
                    hint="Set the board aside: its key was erased; an engineer decides on a new identity.",
                )
            return None
        if trip.options.key_from == "pool":
            ours = key.spki == trip.facts.get("key_spki")
        else:
            ours = key.spki == recorded or (recorded is None and trip.ours("certificate.key"))
        if not ours:
            raise KeyConflict("a key that this station did not deliver is in the key's place")
        return key_facts(trip, key)

    def apply(self, trip: Trip) -> None:
        board = trip.need(KeyDelivery, trip.options.place)
        transport = board.transport_key(trip.call, trip.desk.challenge())
        delivered = trip.desk.deliver_key(KeyPurpose.PRIVATE, transport, b"")
        if board.install_key(trip.call, delivered.sealed) != delivered.spki:
            raise KeyConflict("the device has another key now than the one that it was given")


class Adopt(Look):
    """The certificate that the device came with is the unit's, and is on record."""

    name = "adopt"

    def probe(self, trip: Trip) -> Facts:
        chain = list(trip.need(CertificateStore, trip.options.stores[0]).installed(trip.call))
        if not chain:
            raise CredentialError(
                "the device holds no certificate, where this recipe expects one that it came with",
                hint="Set the board aside: its element was not loaded, or its firmware did not make one.",
            )
        check_chain(trip, chain)
        trip.desk.adopt(chain)
        lot = trip.options.lot
        return {
            "certificate_chain": chain,
            "certificate_source": f"{trip.options.source}:{lot}" if lot else trip.options.source,
            "certificate_sha256": hashlib.sha256(chain[0]).digest(),
            "certificate_roles": list(trip.options.stores[:1]),
        }
