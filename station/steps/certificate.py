"""`certificate`: the device has its key and its certificate, and shows that it can use them.

Issued here: the key is made in its place, certified, installed, read back. Other sources: see `certificate_sources`.

The key never leaves its place; the certificate is the same one again for a unit that comes back.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Final, Literal

from cryptography import x509
from msgspec import Meta, Struct

from hal.errors import (
    AlreadyOwned,
    CredentialError,
    KeyConflict,
    PossessionUnproven,
    ResidencyUnproven,
    quote,
)
from hal.interfaces import (
    CertificateStore,
    IdentityKeys,
    KeyAttestation,
    KeyDelivery,
    KeyPlace,
    Ownership,
)
from hal.secret import EMPTY, Secret
from hal.types import AkKind, Hierarchy, KeyType
from station.action import Action, Look, Need, Step, Trip
from station.messages import Facts
from station.messages.worker import DEVICE_KEY
from station.signature import spki, verify_signature
from station.steps.attest import prove_attestation_key
from station.steps.certificate_sources import Adopt, DeliveredKey, Draw, PresentKey
from station.steps.current_ek import current_ek
from station.steps.device_key import REGISTRATION_ID, check_chain, key_facts, place_of, present_key
from station.steps.tpm_auths import auth

NONCE_LENGTH: Final = 32
KEY_SECONDS: Final = 300.0
"""Old chips make keys for minutes."""
REASON_LENGTH: Final = 20
"""Characters of a reason that says something."""


class Options(Struct, frozen=True):
    profile: Annotated[str, Meta(max_length=64, description="a certificate profile's name")] = ""
    source: Annotated[
        Literal["issue", "pool", "preloaded", "device"],
        Meta(description="'issue', 'pool', 'preloaded' or 'device'"),
    ] = "issue"
    lot: Annotated[str, Meta(max_length=64, description="a lot of the pool, or a vendor's manifest")] = ""
    subject: Annotated[Literal["registration-id", "any"], Meta(description="'registration-id' or 'any'")] = (
        REGISTRATION_ID
    )
    place: Annotated[
        str, Meta(min_length=1, max_length=64, description="the role of the driver that keeps the key")
    ] = "tpm"
    install: (
        Annotated[str, Meta(min_length=1, max_length=64, description="a role, or an array of roles")]
        | Annotated[
            list[Annotated[str, Meta(min_length=1, max_length=64)]],
            Meta(min_length=1, max_length=4, description="a role, or an array of 1 to 4 roles"),
        ]
    ) = "link"
    key: Annotated[
        Literal["p256", "p384", "rsa2048", "rsa3072"],
        Meta(description="'p256', 'p384', 'rsa2048' or 'rsa3072'"),
    ] = "p256"
    key_from: Annotated[
        Literal["device", "token", "pool"], Meta(description="'device', 'token' or 'pool'")
    ] = "device"
    """Where the key pair is made. What is not made in the device comes to it sealed, from the token."""
    template: Annotated[Literal["hallmark", "tcg-idevid"], Meta(description="'hallmark' or 'tcg-idevid'")] = (
        "hallmark"
    )
    iak: bool = False
    """Whether the TPM gets the TCG's initial attestation key, which then certifies the device key."""
    override: (
        Annotated[
            str,
            Meta(
                min_length=REASON_LENGTH,
                max_length=400,
                description=f"a reason of {REASON_LENGTH} to 400 characters, which goes on every record",
            ),
        ]
        | None
    ) = None
    untrusted_ek: Annotated[Literal["refuse", "accept"], Meta(description="'refuse' or 'accept'")] = "refuse"
    """Whether a key in a TPM gets a certificate although nothing vouches for that TPM's EK."""

    @property
    def stores(self) -> tuple[str, ...]:
        """Roles of the drivers that keep the certificate, the first one first."""
        return (self.install,) if isinstance(self.install, str) else tuple(self.install)

    def __post_init__(self) -> None:
        if len(set(self.stores)) != len(self.stores):
            raise ValueError("`install` names a role twice")
        if self.template == "tcg-idevid" and self.key != "p256":
            raise ValueError("template 'tcg-idevid' makes P-256 keys (H-2); expected key = \"p256\"")
        if (self.template != "hallmark" or self.iak) and (self.place != "tpm" or self.source != "issue"):
            raise ValueError(
                "`template` and `iak` are for keys that are made in a TPM: place 'tpm', source 'issue'"
            )
        if (self.source == "issue") != bool(self.profile):
            raise ValueError("`profile` names the certificate profile of source 'issue', and of no other")
        if (self.source in ("pool", "preloaded")) != bool(self.lot):
            raise ValueError(
                "`lot` names the lot of source 'pool' or the manifest of 'preloaded', and of no other"
            )
        fitting = {"device": ("issue", "pool", "preloaded", "device"), "token": ("issue",), "pool": ("pool",)}
        if self.source not in fitting[self.key_from]:
            raise ValueError(
                "`key_from` 'token' goes with source 'issue', 'pool' with source 'pool'; else the key is the device's"
            )
        if self.key_from != "device" and self.place == "tpm":
            raise ValueError(
                "a TPM's key is made in it; expected another `place` for a key that is delivered"
            )
        if self.source == "issue" and self.subject != REGISTRATION_ID:
            raise ValueError("what is issued here is for the registration ID; expected no other `subject`")


class Key(Action):
    """The device has its one key, and it is the one on record."""

    name = "key"
    seconds = KEY_SECONDS

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
        ours = key.spki in (recorded, trip.facts.get("identity_spki")) or (
            recorded is None and trip.ours("certificate.key")
        )
        if not ours:
            raise KeyConflict("a key that this station did not make is in the key's place")
        return key_facts(trip, key)

    def apply(self, trip: Trip) -> None:
        if trip.options.template == "tcg-idevid":
            trip.need(IdentityKeys, trip.options.place).make_idevid(trip.call, _owner(trip))
        else:
            owner = _owner(trip) if trip.board.has(Ownership, trip.options.place) else EMPTY
            place_of(trip).make_key(trip.call, KeyType(trip.options.key), owner)

    def verify(self, trip: Trip) -> Facts:
        return key_facts(trip, present_key(trip))


def _owner(trip: Trip) -> Secret:
    """Owner auth, which making a key persistent in a TPM needs; EMPTY where there is no TPM."""
    if not trip.board.has(Ownership):
        return EMPTY
    ownership = trip.need(Ownership)
    owner = auth(trip, Hierarchy.OWNER, ownership.state(trip.call))
    # Proven before it is used: and it tells the driver to which EK its sessions are salted.
    if owner != EMPTY and not ownership.proves(trip.call, current_ek(trip), Hierarchy.OWNER, owner):
        raise AlreadyOwned("owner auth is set, and not to the value on record")
    return owner


class InitialAttestationKey(Action):
    """The TPM has the TCG's IAK at its handle. It has no certificate of its own: the transcript names it."""

    name = "iak"
    seconds = KEY_SECONDS

    def probe(self, trip: Trip) -> Facts | None:
        there = trip.need(IdentityKeys, trip.options.place).iak(trip.call)
        if there is None:
            return None
        recorded = trip.recorded("certificate.iak").get("iak_public")
        if there != recorded and (recorded is not None or not trip.ours("certificate.iak")):
            raise KeyConflict(
                "a key that this station did not make is in the initial attestation key's place"
            )
        return {"iak_public": there}

    def apply(self, trip: Trip) -> None:
        trip.need(IdentityKeys, trip.options.place).make_iak(trip.call, _owner(trip))


class Residency(Look):
    """The key lives in the TPM whose EK was verified, shown to the station in two ways: it activates a credential that
    was made for that EK and its Name, and the TPM's AK certifies it.
    """

    name = "residency"
    seconds = 120.0

    def probe(self, trip: Trip) -> Facts:
        key = present_key(trip)
        tpm, ek = trip.need(KeyAttestation, trip.options.place), current_ek(trip)
        if not key.resident or key.public is None:
            raise ResidencyUnproven(
                "the key's attributes do not say that it was made in this TPM and can't leave it"
            )
        ak = prove_attestation_key(trip, AkKind.IAK) if trip.options.iak else trip.octets("ak_public")
        credential, nonce = trip.desk.credential(DEVICE_KEY, ek.public, key.public, None)
        secret = tpm.activate(trip.call, ek, key.public, credential)
        trip.desk.proven(secret, tpm.certify(trip.call, ak, key.public, nonce))
        return {"key_attested_by": ak}


class Issue(Action):
    """The unit has its certificate, from the ledger when it had one before."""

    name = "issue"
    seconds = 120.0

    def probe(self, trip: Trip) -> Facts | None:
        recorded = trip.recorded("certificate.issue").get("certificate_chain")
        chain = recorded or trip.facts.get("certificate_chain")
        if not isinstance(chain, list) or not chain:
            return None
        certificates = [der for der in chain if isinstance(der, bytes)]
        check_chain(trip, certificates)
        return {"certificate_chain": certificates}

    def apply(self, trip: Trip) -> None:
        csr = place_of(trip).csr(trip.call, trip.text("registration_id"))
        _check_csr(csr, trip.octets("key_spki"), trip.text("registration_id"))
        trip.facts["certificate_chain"] = list(trip.desk.issue(trip.options.profile, csr))


def _check_csr(csr: bytes, expected: bytes, registration_id: str) -> None:
    """The device signed it, with the key we saw, for the name we gave. The signer checks again for itself."""
    try:
        request = x509.load_der_x509_csr(csr)
        valid = request.is_signature_valid
    except (ValueError, TypeError) as error:
        raise CredentialError(f"the certificate request can't be read: {quote(error)}") from error
    if not valid:
        raise PossessionUnproven("the certificate request's signature is wrong")
    if spki(request.public_key()) != expected:
        raise KeyConflict("the certificate request is for another key than the device's")
    names = [item.value for item in request.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    if names != [registration_id]:
        raise CredentialError("the certificate request names another subject than the registration ID")


class Install(Action):
    """The device has its chain in each place that the recipe names, read back octet by octet."""

    name = "install"
    seconds = 60.0

    def probe(self, trip: Trip) -> Facts | None:
        wanted = trip.octets_list("certificate_chain")
        for role in trip.options.stores:
            if list(trip.need(CertificateStore, role).installed(trip.call)) != wanted:
                return None
        return {
            "certificate_sha256": hashlib.sha256(wanted[0]).digest(),
            "certificate_roles": list(trip.options.stores),
        }

    def apply(self, trip: Trip) -> None:
        wanted = trip.octets_list("certificate_chain")
        for role in trip.options.stores:
            store = trip.need(CertificateStore, role)
            if list(store.installed(trip.call)) == wanted:
                continue
            if trip.board.has(Ownership, role):
                # NV of an owned TPM is written with the owner auth, which has to have held in this visit.
                _owner(trip)
            store.install(trip.call, wanted)


class Prove(Look):
    """The device can use the key of its certificate: it signs a nonce that it could not know."""

    name = "prove"

    def probe(self, trip: Trip) -> Facts:
        leaf = x509.load_der_x509_certificate(trip.octets_list("certificate_chain")[0])
        nonce = secrets.token_bytes(NONCE_LENGTH)
        signature = place_of(trip).prove(trip.call, nonce)
        verify_signature(leaf.public_key(), signature, nonce)
        return {"possession_nonce": nonce, "possession_signature": signature}


def _actions(options: Options) -> tuple[Action, ...]:
    resident: tuple[Action, ...] = (Residency(),) if options.place == "tpm" else ()
    match options.source:
        case "issue":
            iak: tuple[Action, ...] = (InitialAttestationKey(),) if options.iak else ()
            key = DeliveredKey() if options.key_from == "token" else Key()
            return (key, *iak, *resident, Issue(), Install(), Prove())
        case "pool" if options.key_from == "pool":
            return (Draw(), DeliveredKey(), Install(), Prove())
        case "pool":
            return (PresentKey(), *resident, Draw(), Install(), Prove())
        case _:
            return (PresentKey(), *resident, Adopt(), Prove())


def _needs(options: Options) -> tuple[Need, ...]:
    needs: list[Need] = [(KeyPlace, options.place), *((CertificateStore, role) for role in options.stores)]
    if options.iak or options.template != "hallmark":
        needs.append((IdentityKeys, options.place))
    if options.key_from != "device":
        needs.append((KeyDelivery, options.place))
    if options.place == "tpm":
        needs.append((KeyAttestation, "tpm"))
    return tuple(needs)


STEP = Step(
    use="certificate",
    summary="make the key, certify it, install the certificate, prove possession",
    options=Options,
    actions=_actions,
    needs=_needs,
    requires=lambda options: frozenset(
        {"registration_id", "unit"}
        | ({"ek_public", "ek_name", "ak_public"} if options.place == "tpm" else set())
    ),
    gives=lambda _options: frozenset({"certificate_chain", "key_spki"}),
)
