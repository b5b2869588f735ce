"""`tpm-identity`: which TPM this is, proven; the visit joins its unit here.

The order matters: an EK is believed when its certificate's chain holds and the TPM has shown that it owns that EK
(an AK activated against it). Only then may the EK Name open a unit's record.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from hal.errors import EkMismatch, SoftwareTpmRefused, quote
from hal.interfaces import DeviceIdentity, EndorsementIdentity, KeyAttestation
from hal.types import EndorsementReport
from station.action import Action, Look, Need, Step, Trip
from station.ek_choice import EK_HANDLE, Choice, Derive, Rules, choose
from station.messages import Facts
from station.steps.attest import prove_attestation_key
from station.steps.current_ek import current_ek
from station.steps.tpm_custody import Clear, LateAttestation, is_sealed, show_possession
from station.trust.policy import CrlPolicy, EkPolicy, EkTrust

DERIVE_SECONDS: Final = 120.0
"""A CreatePrimary of an RSA key takes up to tens of seconds on real chips."""


_OLDER: Final = {"required": EkTrust.CERTIFICATE, "if-present": EkTrust.IF_PRESENT, "none": EkTrust.NONE}


class Options(Struct, frozen=True):
    ek_trust: Annotated[
        Literal["certificate", "certificate-or-list", "list", "none"] | None,
        Meta(description="'certificate', 'certificate-or-list', 'list' or 'none'"),
    ] = None
    ek_certificate: Annotated[
        Literal["required", "if-present", "none"] | None,
        Meta(description="'required', 'if-present' or 'none'; the older spelling of ek_trust"),
    ] = None
    crl: Annotated[Literal["warn", "refuse", "off"], Meta(description="'warn', 'refuse' or 'off'")] = "warn"
    registration_id: Annotated[
        Literal["ek-base32", "ek-hex"], Meta(description="'ek-base32' or 'ek-hex'")
    ] = "ek-base32"
    ek: Annotated[Literal["rsa2048", "p256", "any"], Meta(description="'rsa2048', 'p256' or 'any'")] = (
        "rsa2048"
    )
    known: bool = False
    """The EK was judged in the pass that the recipe's `after` names: here its TPM only shows that it has it."""
    replace_persisted: bool = False
    """Whether another key at 0x81010001 is evicted for the right EK: whoever put it there loses it."""

    @property
    def rules(self) -> Rules:
        return Rules(self.ek, self.policy.certificate, self.replace_persisted)

    def __post_init__(self) -> None:
        if self.known and (self.ek_trust, self.ek_certificate) != (None, None):
            raise ValueError(
                "a known EK was judged in an earlier pass; expected no ek_trust or ek_certificate here"
            )
        if self.ek_trust is not None and self.ek_certificate is not None:
            raise ValueError(
                "ek_trust and ek_certificate say the same: expected one of them"
                f' (ek_certificate = "{self.ek_certificate}" is ek_trust = "{_OLDER[self.ek_certificate]}")'
            )

    @property
    def policy(self) -> EkPolicy:
        """What has to vouch for the EK, from either spelling: a certificate, unless the recipe says otherwise."""
        older = _OLDER[self.ek_certificate] if self.ek_certificate is not None else EkTrust.CERTIFICATE
        return EkPolicy(EkTrust(self.ek_trust) if self.ek_trust is not None else older, CrlPolicy(self.crl))


def registration_id(ek_public: bytes, convention: str) -> str:
    """From SHA-256 over TPM2B_PUBLIC: `ek-base32` as the Azure SDKs (52 characters), `ek-hex` as IoT Edge (64)."""
    digest = hashlib.sha256(ek_public).digest()
    if convention == "ek-hex":
        return digest.hex()
    return base64.b32encode(digest).decode("ascii").rstrip("=").lower()


class EndorsementKeyLook(Look):
    """The EK, its certificate, and the station's verdict on it: this process believes nothing by itself."""

    name = "endorsement-key"
    seconds = DERIVE_SECONDS

    def probe(self, trip: Trip) -> Facts:
        described = tpm_facts(trip)
        report, choice = reconciled(trip)
        ek = choice.ek
        vouched = trip.desk.judge_ek(ek, report.chain)
        return {
            "ek_public": ek.public,
            "ek_name": ek.name,
            "ek_certificate": ek.certificate,
            "ek_template": ek.template,
            "ek_origin": ek.origin.value,
            "ek_handle": ek.handle,
            **vouched,
            "ek_candidates": choice.lines(),
            "ek_evict": choice.evict.public if choice.evict else None,
            "registration_id": registration_id(ek.public, trip.options.registration_id),
            **described,
        }


def reconciled(trip: Trip) -> tuple[EndorsementReport, Choice]:
    """What the TPM says of its EKs, and which one is right: derives what the choice needs, and no more."""
    tpm = trip.need(EndorsementIdentity)
    report = tpm.endorsements(trip.call)
    while isinstance(found := choose(report, trip.options.rules), Derive):
        report = tpm.derive(trip.call, found.template)
    return report, found


class KnownEndorsementKeyLook(Look):
    """The EK that an earlier pass has judged, read at its handle: quick, since its certificate isn't asked for again.

    That the unit is known by it and has passed that pass is the station's to say, when the visit joins.
    """

    name = "known-endorsement-key"
    seconds = DERIVE_SECONDS

    def probe(self, trip: Trip) -> Facts:
        tpm = trip.need(EndorsementIdentity)
        described = tpm_facts(trip)
        ek = tpm.persisted(trip.call)
        if ek is None:
            ek = reconciled(trip)[1].ek
        return {
            "ek_public": ek.public,
            "ek_name": ek.name,
            "ek_template": ek.template,
            "ek_origin": ek.origin.value,
            "ek_handle": ek.handle,
            "registration_id": registration_id(ek.public, trip.options.registration_id),
            **described,
        }


def tpm_facts(trip: Trip) -> Facts:
    """What the TPM says it is; SoftwareTpmRefused for a software TPM outside bench mode, before anything else."""
    about = trip.need(EndorsementIdentity).describe(trip.call)
    if about.software and not trip.about.bench:
        raise SoftwareTpmRefused(f"this board's TPM is a software TPM ({quote(about.vendor)})")
    return {
        "tpm": f"{about.manufacturer} {about.vendor} {about.firmware}",
        "tpm_software": about.software,
    }


class AttestationKeyLook(Look):
    """The TPM that answers owns that EK: a credential that the station made for it and a fresh AK is activated."""

    name = "attestation-key"
    seconds = DERIVE_SECONDS

    def probe(self, trip: Trip) -> Facts:
        if is_sealed(trip):
            return show_possession(trip)
        return {"ak_public": prove_attestation_key(trip)}


class Join(Look):
    """From here on the visit is this unit's."""

    name = "join"

    def probe(self, trip: Trip) -> Facts:
        claims: list[tuple[str, str]] = []
        facts: Facts = {}
        if trip.board.has(DeviceIdentity):
            board = trip.need(DeviceIdentity).identify(trip.call)
            claims = board.claims()
            facts = {"board": board.board, "board_serial": board.serial, "board_firmware": board.firmware}
        name = trip.octets("ek_name")
        unproven = "ak_public" not in trip.facts
        trip.unit = trip.desk.join(
            "ek-name", name.hex(), trip.text("registration_id"), claims, unproven=unproven
        )
        return facts


class PersistEk(Action):
    """The EK is where field clients look for it; where the recipe says so, in the place of another key."""

    name = "persist-ek"
    seconds = DERIVE_SECONDS

    def probe(self, trip: Trip) -> Facts | None:
        there = trip.need(EndorsementIdentity).persisted(trip.call)
        if there is not None and there.name == trip.octets("ek_name"):
            return {"ek_handle": EK_HANDLE}
        wrong = trip.facts.get("ek_evict")
        if there is not None and (there.public != wrong or not trip.options.replace_persisted):
            raise EkMismatch(
                f"another key than the chosen EK is at {EK_HANDLE:#x}, and it wasn't there when this visit began"
            )
        return None

    def apply(self, trip: Trip) -> None:
        tpm = trip.need(EndorsementIdentity)
        there, wrong = tpm.persisted(trip.call), trip.facts.get("ek_evict")
        tpm.persist(
            trip.call, current_ek(trip), there if there is not None and there.public == wrong else None
        )

    def verify(self, trip: Trip) -> Facts:
        facts = super().verify(trip)
        wrong = trip.facts.get("ek_evict")
        return {**facts, "ek_evicted": wrong} if wrong is not None else facts


def _needs(_options: Options) -> tuple[Need, ...]:
    return ((EndorsementIdentity, None), (KeyAttestation, None))


STEP = Step(
    use="tpm-identity",
    summary="read the EK and its certificate, prove residency, join the unit",
    options=Options,
    actions=lambda options: (
        KnownEndorsementKeyLook() if options.known else EndorsementKeyLook(),
        AttestationKeyLook(),
        Join(),
        Clear(),
        LateAttestation(),
        PersistEk(),
    ),
    needs=_needs,
    gives=lambda _options: frozenset({"ek_public", "ek_name", "ak_public", "registration_id", "unit"}),
)
