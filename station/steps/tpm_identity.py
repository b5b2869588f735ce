"""`tpm-identity`: which TPM this is, proven; the visit joins its unit here.

The order matters: an EK is believed when its certificate's chain holds and the TPM has shown that it owns that EK
(an AK activated against it). Only then may the EK Name open a unit's record.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from hal.errors import EkMismatch, EkUntrusted, HallmarkError, SoftwareTpmRefused, quote
from hal.interfaces import DeviceIdentity, EndorsementIdentity
from hal.types import EkOrigin, EndorsementKey, EndorsementReport
from station.action import Action, Look, Need, Step, Trip
from station.ek_certificate import verify_ek_certificate
from station.messages import Facts

EK_HANDLE: Final = 0x81010001
"""Where readers look first (TCG TPM v2.0 Provisioning Guidance, 7.8)."""
ALGORITHM: Final = slice(2, 4)
"""Where a TPM2B_PUBLIC has its algorithm, behind its size (TPM 2.0 Part 2, 12.2.4)."""
TPM_ALG_RSA: Final = b"\x00\x01"
DERIVE_SECONDS: Final = 120.0
"""A CreatePrimary of an RSA key takes up to tens of seconds on real chips."""


class Options(Struct, frozen=True):
    ek_certificate: Annotated[
        Literal["required", "if-present", "none"],
        Meta(description="'required', 'if-present' or 'none'"),
    ] = "required"
    registration_id: Annotated[
        Literal["ek-base32", "ek-hex"], Meta(description="'ek-base32' or 'ek-hex'")
    ] = "ek-base32"


def registration_id(ek_public: bytes, convention: str) -> str:
    """From SHA-256 over TPM2B_PUBLIC: `ek-base32` as the Azure SDKs (52 characters), `ek-hex` as IoT Edge (64)."""
    digest = hashlib.sha256(ek_public).digest()
    if convention == "ek-hex":
        return digest.hex()
    return base64.b32encode(digest).decode("ascii").rstrip("=").lower()


class EndorsementKeyLook(Look):
    """The EK and its certificate, checked against the trust store."""

    name = "endorsement-key"
    seconds = DERIVE_SECONDS

    def probe(self, trip: Trip) -> Facts:
        tpm = trip.need(EndorsementIdentity)
        about = tpm.describe(trip.call)
        if about.software and not trip.about.bench:
            raise SoftwareTpmRefused(f"this board's TPM is a software TPM ({quote(about.vendor)})")
        report = tpm.endorsements(trip.call)
        ek = _choose(report, trip.options.ek_certificate)
        anchor = None
        if ek.certificate is not None and trip.options.ek_certificate != "none":
            anchor = verify_ek_certificate(ek.certificate, report.chain, trip.about.trust)
        return {
            "ek_public": ek.public,
            "ek_name": ek.name,
            "ek_certificate": ek.certificate,
            "ek_template": ek.template,
            "ek_origin": ek.origin.value,
            "ek_handle": ek.handle,
            "ek_trust": "certificate" if anchor else "none",
            "ek_anchor": anchor,
            "registration_id": registration_id(ek.public, trip.options.registration_id),
            "tpm": f"{about.manufacturer} {about.vendor} {about.firmware}",
            "tpm_software": about.software,
        }


def _choose(report: EndorsementReport, policy: str) -> EndorsementKey:
    """The one EK to enroll: RSA-2048 by the TCG template, with a certificate where the policy asks for one."""
    usable = [key for key in report.keys if key.public[ALGORITHM] == TPM_ALG_RSA]
    persisted = [key for key in usable if key.handle == EK_HANDLE]
    certified = [key for key in usable if key.certificate is not None]
    if policy == "required" and not certified:
        why = (
            "its certificate in NV belongs to another key"
            if report.stray_certificates
            else "it has no EK certificate"
        )
        error: type[HallmarkError] = EkMismatch if report.stray_certificates else EkUntrusted
        raise error(f"the TPM's endorsement key can't be trusted: {why}")
    if persisted and certified and persisted[0].name not in {key.name for key in certified}:
        raise EkMismatch(
            f"the key at {EK_HANDLE:#x} is not the one that the EK certificate names",
            hint="Set the board aside: somebody persisted another key there; an engineer evicts it.",
        )
    for candidates in (certified, persisted, usable):
        if candidates:
            return candidates[0]
    raise EkUntrusted("the TPM offers no RSA-2048 endorsement key")


def current_ek(trip: Trip) -> EndorsementKey:
    """The EK that this visit has verified, for sessions salted to it."""
    handle = trip.facts.get("ek_handle")
    return EndorsementKey(
        public=trip.octets("ek_public"),
        name=trip.octets("ek_name"),
        origin=EkOrigin(trip.text("ek_origin")),
        template=trip.text("ek_template"),
        handle=handle if isinstance(handle, int) else None,
    )


class AttestationKeyLook(Look):
    """The TPM that answers owns that EK: a credential made for it and for a fresh AK is activated."""

    name = "attestation-key"
    seconds = DERIVE_SECONDS

    def probe(self, trip: Trip) -> Facts:
        proof = trip.need(EndorsementIdentity).prove_attestation_key(trip.call, current_ek(trip))
        if proof.ek_name != trip.octets("ek_name"):
            raise EkMismatch("the residency proof is for another endorsement key")
        return {"ak_name": proof.key_name, "ak_public": proof.key_public, "ak_secret": proof.secret}


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
        trip.unit = trip.desk.join("ek-name", name.hex(), trip.text("registration_id"), claims)
        return facts


class PersistEk(Action):
    """The EK is where field clients look for it."""

    name = "persist-ek"
    seconds = DERIVE_SECONDS

    def probe(self, trip: Trip) -> Facts | None:
        return {"ek_handle": EK_HANDLE} if _at_handle(trip) else None

    def apply(self, trip: Trip) -> None:
        report = trip.need(EndorsementIdentity).endorsements(trip.call)
        ek = next((key for key in report.keys if key.name == trip.octets("ek_name")), None)
        if ek is None:
            raise EkMismatch("the endorsement key is not there any more")
        trip.need(EndorsementIdentity).persist(trip.call, ek)


def _at_handle(trip: Trip) -> bool:
    report = trip.need(EndorsementIdentity).endorsements(trip.call)
    return any(key.handle == EK_HANDLE and key.name == trip.octets("ek_name") for key in report.keys)


def _needs(_options: Options) -> tuple[Need, ...]:
    return ((EndorsementIdentity, None),)


STEP = Step(
    use="tpm-identity",
    summary="read the EK and its certificate, prove residency, join the unit",
    options=Options,
    actions=lambda _options: (EndorsementKeyLook(), AttestationKeyLook(), Join(), PersistEk()),
    needs=_needs,
    gives=lambda _options: frozenset({"ek_public", "ek_name", "registration_id", "unit"}),
)
