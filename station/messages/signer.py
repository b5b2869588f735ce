"""Between the signer and those who ask it: the station, and commands."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from station.messages.basics import Blob, Issued, Name, Ok, Text
from station.messages.ca import CaAsked, CaGeneration, CaSays
from station.wire import Problem

KEPT_LIMIT: Final = 1000
"""Units in one `Kept` or `ForgetKeys`."""


class SignerStatus(Struct, frozen=True, tag="signer-status"):
    """Reply `SignerState`."""


class SignerState(Struct, frozen=True, tag="signer-state"):
    """The token and the CA as the signer sees them now. `condition` is a `hal.types.TokenCondition`."""

    condition: str
    label: str
    problem: str
    hint: str
    subject: str
    not_after: str
    issued: int
    pending: int
    """Intents in the ledger without a signature yet."""
    chain: list[Blob]
    """Issuing CA first, DER; empty when no CA certificate is installed."""
    issuers: list[Blob] = []
    """Every issuing CA's certificate there ever was, DER."""
    generations: list[CaGeneration] = []


class CheckToken(Struct, frozen=True, tag="check-token"):
    """A canary signature now; reply `SignerState` or the token's Problem. Asked before each unit."""


class SignRequest(Struct, frozen=True, tag="sign-request"):
    """A certificate for one unit's key. Reply `Issued`. Asking again for the same unit and key gives the same bytes."""

    unit: Name
    registration_id: Name
    profile: Name
    csr: Blob
    configuration: Blob = b""
    """SHA-256 of the signed set that the station runs with; empty on a bench. The signer's own has to be the same."""
    attestation: Blob = b""
    """What was proven of the key (JSON of `station.attestation.Transcript`); empty where its place can't prove."""
    sku: Text = ""
    recipe: Blob = b""
    """SHA-256 of the recipe's file: what the work order has to permit."""
    order: Blob = b""
    order_signature: Blob = b""
    """The signed work order that it is for, as it was imported; empty without one."""


class OrderCounts(Struct, frozen=True, tag="order-counts"):
    """How far a work order is used up. Reply `OrderState`, also for an order that the signer has never seen."""

    work_order: Name


class OrderState(Struct, frozen=True, tag="order-state"):
    """`signed`: certificates of this order, all there ever were; `pending`: intents without one yet."""

    work_order: Name
    signed: int
    pending: int
    given_back: int
    """Of both: scrapped since."""


class GiveBack(Struct, frozen=True, tag="give-back"):
    """A unit is scrapped: its certificate counts no more against its order. Reply `GivenBack`, the same each time.

    `serial`: the certificate's, in hex; it has to be the one in the ledger, and revoked.
    """

    unit: Name
    serial: Name
    reason: Text
    by: Text


class GivenBack(Struct, frozen=True, tag="given-back"):
    """`proof`: what the ledger says now, in words for the unit's record."""

    proof: Text


WrapKey = Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,95})?\Z")]
"""A key for secrets of one work order or day. The signer puts its own prefix before it: no other label can be named.
Empty: the one key of older releases."""


class WrapSecret(Struct, frozen=True, tag="wrap-secret"):
    """Reply `Wrapped`. Makes the key on first use."""

    context: Blob
    plain: Blob
    key: WrapKey = ""

    def __repr__(self) -> str:
        return "WrapSecret(…)"


class UnwrapSecret(Struct, frozen=True, tag="unwrap-secret"):
    """Reply `Unwrapped`."""

    context: Blob
    wrapped: Blob
    key: WrapKey = ""


class DestroyWrapKey(Struct, frozen=True, tag="destroy-wrap-key"):
    """Nothing that it has wrapped is needed any more. Reply `Ok`, also when it isn't there."""

    key: WrapKey


class AuditHead(Struct, frozen=True, tag="audit-head"):
    """What the signer signed last of an audit trail, and its key. Reply `TrailHead`."""


class TrailHead(Struct, frozen=True, tag="trail-head"):
    """`origin` is empty while no trail has a checkpoint. `key`: DER SubjectPublicKeyInfo of the token's audit key."""

    origin: str
    size: int
    key: Blob


class SignCheckpoint(Struct, frozen=True, tag="sign-checkpoint"):
    """A signature over the trail's head; `proof`: RFC 6962 consistency from what was signed last (`AuditHead`).

    Reply `SignedCheckpoint`; asking again for the same head gives the same octets.
    """

    origin: Name
    size: int
    root: Blob
    proof: list[Blob]


class SignedCheckpoint(Struct, frozen=True, tag="signed-checkpoint"):
    """`note`: C2SP signed note; `key`: DER SubjectPublicKeyInfo of the key that signed it."""

    note: Blob
    key: Blob


class Wrapped(Struct, frozen=True, tag="wrapped"):
    wrapped: Blob


class Unwrapped(Struct, frozen=True, tag="unwrapped"):
    plain: Blob

    def __repr__(self) -> str:
        return "Unwrapped(…)"


class SealKey(Struct, frozen=True, tag="seal-key"):
    """The unit's own key, sealed to its board's transport key. Reply `KeyForBoard`.

    The first request makes or derives it, durably; each later one seals the same key again, until it is forgotten.
    """

    unit: Name
    registration_id: Name
    purpose: Name
    """A `hal.types.KeyPurpose`."""
    transport: Blob
    """The board's transport key: an uncompressed point of P-256, 65 octets."""
    group: str = ""
    """The label of the group key that a symmetric key is derived from; empty: it is random."""
    key_type: str = ""
    """A `hal.types.KeyType`, for a private key."""
    identity: Blob = b""
    """SubjectPublicKeyInfo (DER) of the board's own key, which the unit's ID comes of; empty: nobody vouches."""
    challenge: Blob = b""
    signature: Blob = b""
    """By `identity` over challenge and transport key (`hal.types.transport_message`). A key that was once sealed to a
    transport key that was vouched for is never sealed to another.
    """


class SealWrapped(Struct, frozen=True, tag="seal-wrapped"):
    """A private key (PKCS#8) that `WrapSecret` wrapped under `context`, sealed to the board. Reply `KeyForBoard`."""

    registration_id: Name
    transport: Blob
    context: Blob
    wrapped: Blob
    key: WrapKey = ""


class KeyForBoard(Struct, frozen=True, tag="key-for-board"):
    """Ciphertext only: `encapsulated` and `ciphertext` of a `hal.types.SealedKey`.

    `upload`: a random symmetric key sealed to the uploader, the same octets each time. `spki`: a private key's public
    part, DER. Empty where there is none.
    """

    encapsulated: Blob
    ciphertext: Blob
    upload: Blob = b""
    spki: Blob = b""


class CheckKey(Struct, frozen=True, tag="check-key"):
    """Whether the board has the unit's symmetric key: `mac` is `KeyDelivery.prove_secret`'s over `nonce`.

    Reply `Ok`, or a Problem: PossessionUnproven; KeyMissing where the signer knows of no such key.
    """

    unit: Name
    nonce: Blob
    mac: Blob


class ForgetKeys(Struct, frozen=True, tag="forget-keys"):
    """The board has them for good: what the signer kept to deliver them again is deleted. Reply `Ok`."""

    units: Annotated[list[Name], Meta(max_length=KEPT_LIMIT)]


class KeptKeys(Struct, frozen=True, tag="kept-keys"):
    """Reply `Kept`: units whose keys the signer could still deliver, oldest first."""


class ImportGroupKey(Struct, frozen=True, tag="import-group-key"):
    """A group key of 32 to 64 octets into the token. Reply `GroupKey`. For root and the signer's own user."""

    label: Name
    key: Blob

    def __repr__(self) -> str:
        return f"ImportGroupKey({self.label!r}, …)"


class CheckGroupKey(Struct, frozen=True, tag="check-group-key"):
    """Reply `GroupKey`, or KeyMissing. For root and the signer's own user."""

    label: Name


class GroupKey(Struct, frozen=True, tag="group-key"):
    """`check`: 8 hexadecimal digits that stations with the same key have in common; they tell nothing of it."""

    label: Name
    check: Name


class Kept(Struct, frozen=True, tag="kept"):
    units: list[Name]


ToSigner = (
    SignerStatus
    | CheckToken
    | SignRequest
    | OrderCounts
    | GiveBack
    | WrapSecret
    | UnwrapSecret
    | DestroyWrapKey
    | SealKey
    | SealWrapped
    | CheckKey
    | ForgetKeys
    | KeptKeys
    | ImportGroupKey
    | CheckGroupKey
    | AuditHead
    | SignCheckpoint
    | CaAsked
)
FromSigner = (
    SignerState
    | Issued
    | OrderState
    | GivenBack
    | Wrapped
    | Unwrapped
    | KeyForBoard
    | Kept
    | GroupKey
    | TrailHead
    | SignedCheckpoint
    | Ok
    | CaSays
    | Problem
)
