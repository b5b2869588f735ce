"""`symmetric-key`: the unit has a key of its own that a cloud shares with it: made in the token, sealed to the board.

What passes here is ciphertext and proofs: neither this process nor the station ever has the key. The board's proof is
checked by the signer. Which key a unit gets is decided by the recipe at the station's desk, not here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from hal.errors import KeyConflict
from hal.interfaces import KeyDelivery
from hal.types import KeyPurpose
from station.action import Action, Look, Need, Step, Trip
from station.messages import Facts
from station.shared_keys import looks_like_key

LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SHARED: Final = (
    "one and the same key would go to every unit: whoever opens one board could then be any of them"
)


class Options(Struct, frozen=True):
    keys: Annotated[
        Literal["individual", "group"],
        Meta(
            description="'individual' (random, uploaded) or 'group' (derived from a group key in the token)"
        ),
    ] = "individual"
    group_key: Annotated[str, Meta(description="a label in the CA token")] = ""
    # Its form is checked below, where nothing is quoted: it may be a key that somebody took for its label.
    board: Annotated[
        str, Meta(min_length=1, max_length=64, description="the role of the driver that takes the key")
    ] = "link"
    transport: Annotated[
        Literal["signed", "anonymous"],
        Meta(description="'signed' (by the key of key-identity) or 'anonymous'"),
    ] = "signed"
    # Said only to be refused with a reason: what people write who want a simple recipe.
    key: Any = msgspec.UNSET
    registration_id: Any = msgspec.UNSET

    def __post_init__(self) -> None:
        if self.key is not msgspec.UNSET:
            raise ValueError(
                f"`key` is refused: {SHARED}. Leave it out: each unit's key is made or derived in the token"
            )
        if self.registration_id is not msgspec.UNSET:
            raise ValueError(
                f"`registration_id` is refused: derived with a constant ID, {SHARED}. Leave it out: each unit's own"
                " registration ID is taken"
            )
        if self.group_key and (not LABEL.fullmatch(self.group_key) or looks_like_key(self.group_key)):
            raise ValueError(
                "`group_key` is the label that `hallmark ca group-key import` gave: letters, digits, dots and dashes,"
                " at most 64; not the key itself, which stays in the token"
            )
        if (self.keys == "group") != bool(self.group_key):
            raise ValueError(
                "`group_key` names the token's group key that keys = 'group' derives from, and goes with no other"
            )


class Deliver(Action):
    """The board has the unit's key, and has shown that it can use it."""

    name = "deliver"
    seconds = 120.0

    def probe(self, trip: Trip) -> Facts | None:
        """Done when the board has the key on record, and what has to be uploaded is there too."""
        if not _has_key(trip):
            return None
        upload = trip.facts.get("symmetric_sealed") or trip.recorded("symmetric-key.deliver").get(
            "symmetric_sealed"
        )
        if trip.options.keys == "individual" and not upload:
            return None  # delivered, but the answer was lost: the same key comes again
        return {
            "symmetric_sealed": upload,
            "symmetric_group": trip.options.group_key or None,
            "symmetric_keys": trip.options.keys,
            "symmetric_transport": trip.options.transport,
        }

    def apply(self, trip: Trip) -> None:
        board = _board(trip)
        identity = trip.octets("identity_spki") if trip.options.transport == "signed" else b""
        transport = board.transport_key(trip.call, trip.desk.challenge())
        delivered = trip.desk.deliver_key(KeyPurpose.SYMMETRIC, transport, identity)
        board.install_key(trip.call, delivered.sealed)
        trip.facts["symmetric_sealed"] = delivered.upload or None


def _board(trip: Trip) -> KeyDelivery:
    return trip.need(KeyDelivery, trip.options.board)


def _has_key(trip: Trip) -> bool:
    """Whether the board has the unit's key. Raises for any other key: PossessionUnproven, or KeyConflict."""
    nonce = trip.desk.challenge()
    mac = _board(trip).prove_secret(trip.call, nonce)
    if mac is None:
        return False
    if not trip.ours("symmetric-key.deliver"):
        raise KeyConflict("a symmetric key that this station did not deliver is in the board")
    trip.desk.prove_key(mac)
    return True


class Prove(Look):
    """It still has it, by a nonce that it could not know."""

    name = "prove"

    def probe(self, trip: Trip) -> Facts:
        if not _has_key(trip):
            raise KeyConflict("the board lost the symmetric key that it had just been given")
        return {"symmetric_proven": True}


def _needs(options: Options) -> tuple[Need, ...]:
    return ((KeyDelivery, options.board),)


STEP = Step(
    use="symmetric-key",
    summary="give the unit a symmetric key of its own, sealed from the token to the board",
    options=Options,
    actions=lambda _options: (Deliver(), Prove()),
    needs=_needs,
    requires=lambda options: frozenset(
        {"registration_id", "unit"} | ({"identity_spki"} if options.transport == "signed" else set())
    ),
    gives=lambda options: frozenset(
        {"symmetric_sealed" if options.keys == "individual" else "symmetric_group"}
    ),
)
