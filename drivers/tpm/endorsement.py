"""`hal.interfaces.EndorsementIdentity`: which EKs a TPM has, which certificates belong to them, and proofs by them.

Whether an EK is to be trusted, and which one a unit is enrolled with, is the station's to say.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from drivers.tpm import certificates, nv, public, sessions, templates
from drivers.tpm.codec import Property
from drivers.tpm.context import Tpm
from drivers.tpm.failures import RC_INTEGRITY, RC_VALUE, base, described, from_tpm
from drivers.tpm.tss import ESYS_TR, TPM2_SE, TPMA_OBJECT, TSS2_Exception, make_credential
from hal.call import Call
from hal.errors import EkMismatch, ResidencyUnproven
from hal.secret import EMPTY
from hal.types import (
    DeviceKey,
    EkOrigin,
    EndorsementKey,
    EndorsementReport,
    Hierarchy,
    ResidencyProof,
    TpmDescription,
)

CHALLENGE_LENGTH: Final = 32
"""Octets of the secret in a credential; at most the digest size of the EK's name algorithm."""
MOST_KEYS: Final = 16
MOST_CHAIN_INDEXES: Final = 16

SOFTWARE: Final = (("IBM", "SW   TPM"), ("MSFT", "xCG fTPM"), ("GOOG", "vTPM"), ("VMW", "VMware TPM"))
"""Manufacturer and vendor string of software TPMs: libtpms and IBM's simulator (VendorString.h), Microsoft's reference
code and Hyper-V, Google's and VMware's virtual TPMs. A claim of the TPM: what proves a TPM is its EK certificate."""


def text(words: list[int]) -> str:
    """Property values of four ASCII characters each; what isn't printable is left out."""
    octets = b"".join(word.to_bytes(4, "big") for word in words)
    return "".join(chr(octet) for octet in octets if 0x20 <= octet < 0x7F).strip()


class Endorsements:
    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm
        self._burnt_in: tuple[dict[int, bytes], tuple[bytes, ...]] | None = None
        """What the maker put into NV, certificates and chain: large, and the same for the whole visit."""

    def describe(self, call: Call) -> TpmDescription:
        with self._tpm.use(call, "describing the TPM"):
            found = self._tpm.properties(Property.REVISION, Property.FIRMWARE_VERSION_2)
        maker = text([found.get(Property.MANUFACTURER, 0)])
        vendor = text(
            [found.get(at, 0) for at in range(Property.VENDOR_STRING_1, Property.VENDOR_STRING_4 + 1)]
        )
        first, second = found.get(Property.FIRMWARE_VERSION_1, 0), found.get(Property.FIRMWARE_VERSION_2, 0)
        revision = found.get(Property.REVISION, 0)
        return TpmDescription(
            manufacturer=maker,
            vendor=vendor,
            firmware=f"{first >> 16}.{first & 0xFFFF}.{second >> 16}.{second & 0xFFFF}",
            revision=f"{revision // 100}.{revision % 100:02d}",
            software=any(maker == one and vendor.startswith(other) for one, other in SOFTWARE),
        )

    def endorsements(self, call: Call) -> EndorsementReport:
        """Persistent EKs, then those derived for certificates that match none of them, or when there is none at all."""
        with self._tpm.use(call, "reading the EKs"):
            keys = list(self._persistent())
            if self._burnt_in is None:
                self._burnt_in = self._certificates(), self._chain()
            found, chain = self._burnt_in
            wanted = [
                templates.EK_TEMPLATES[index] for index, der in found.items() if not _belongs(der, keys)
            ]
            if not any(key.handle == templates.EK_HANDLE for key in keys) and "L-1" not in wanted:
                wanted.append("L-1")
            for at, template in enumerate(wanted):
                call.progress(at, len(wanted))
                derived = self._derived(template)
                if derived is not None and all(derived.name != key.name for key in keys):
                    keys.append(derived)
        named = [replace(key, certificate=_certificate_of(key, found.values())) for key in keys]
        matched = {key.certificate for key in named}
        return EndorsementReport(
            keys=tuple(named),
            stray_certificates=tuple(der for der in found.values() if der not in matched),
            chain=chain,
        )

    def persist(self, call: Call, ek: EndorsementKey) -> EndorsementKey:
        """Needs an empty owner auth, as it is before ownership is taken. See `hal.interfaces`."""
        with self._tpm.use(call, "persisting the EK") as esapi:
            there = self._tpm.read_public(templates.EK_HANDLE)
            if there is not None:
                if there != ek.public:
                    raise EkMismatch(f"another key than the chosen EK is at 0x{templates.EK_HANDLE:08x}")
                return replace(ek, handle=templates.EK_HANDLE)
            with sessions.endorsement_key(self._tpm, replace(ek, handle=None)) as item:
                kept = esapi.evict_control(ESYS_TR.OWNER, item, templates.EK_HANDLE)
                esapi.tr_close(kept)
            return replace(ek, handle=templates.EK_HANDLE)

    def prove_resident(self, call: Call, ek: EndorsementKey, key: DeviceKey) -> ResidencyProof:
        with self._tpm.use(call, "proving that the device key is in the TPM"):
            there = self._tpm.read_public(templates.DEVICE_KEY_HANDLE)
            if there is None or there != key.public:
                raise ResidencyUnproven("the key at 0x81020000 is not the one that was read before")
            with self._tpm.persistent(templates.DEVICE_KEY_HANDLE) as item:
                return self._proof(ek, item, there)

    def prove_attestation_key(self, call: Call, ek: EndorsementKey) -> ResidencyProof:
        with (
            self._tpm.use(call, "proving that the TPM has its EK"),
            self._tpm.primary(Hierarchy.ENDORSEMENT, templates.attestation_key()) as (item, area),
        ):
            return self._proof(ek, item, area)

    # --- keys and certificates ----------------------------------------------------------------------------------

    def _persistent(self) -> Iterator[EndorsementKey]:
        handles = self._tpm.handles(templates.EK_HANDLES.start, templates.EK_HANDLES.stop - 1)
        for handle in handles[:MOST_KEYS]:
            area = self._tpm.read_public(handle)
            if area is None or not public.is_supported(area):
                continue
            yield EndorsementKey(
                public=area,
                name=public.name(area),
                origin=EkOrigin.PERSISTENT,
                template=_template_of(area),
                handle=handle,
            )

    def _derived(self, template: str) -> EndorsementKey | None:
        """The EK of that template; None when the TPM doesn't know its algorithms."""
        area = templates.ek(template, lambda index: nv.read(self._tpm, index))
        try:
            with self._tpm.primary(Hierarchy.ENDORSEMENT, area) as (_, made):
                return EndorsementKey(
                    public=made, name=public.name(made), origin=EkOrigin.TEMPLATE, template=template
                )
        except TSS2_Exception as error:
            if from_tpm(error.rc) and base(error.rc) == RC_VALUE:
                return None
            raise

    def _certificates(self) -> dict[int, bytes]:
        """Certificates by NV index, stripped."""
        there = self._tpm.handles(min(templates.EK_TEMPLATES), max(templates.EK_TEMPLATES))
        found: dict[int, bytes] = {}
        for index in templates.EK_TEMPLATES:
            content = nv.read(self._tpm, index) if index in there else None
            der = certificates.stripped(content) if content else None
            if der is not None:
                found[index] = der
        return found

    def _chain(self) -> tuple[bytes, ...]:
        indexes = templates.EK_CHAIN_INDEXES
        there = self._tpm.handles(indexes.start, indexes.stop - 1)[:MOST_CHAIN_INDEXES]
        return tuple(certificates.each(b"".join(nv.read(self._tpm, index) or b"" for index in there)))

    # --- MakeCredential, ActivateCredential ---------------------------------------------------------------------

    def _proof(self, ek: EndorsementKey, item: ESYS_TR, area: bytes) -> ResidencyProof:
        """Part 1, 24: the credential is made here, for exactly this EK and this Name; only that TPM can open it."""
        if not public.is_resident(area):
            raise ResidencyUnproven(
                "the key may have come from outside: fixedTPM, fixedParent, sensitiveDataOrigin"
            )
        challenge, name = secrets.token_bytes(CHALLENGE_LENGTH), public.name(area)
        id_object, encrypted = make_credential(public.parsed(ek.public), challenge, name)
        with sessions.endorsement_key(self._tpm, ek) as key, self._ek_session(ek) as session:
            try:
                answer = self._tpm.connected().activate_credential(
                    item, key, id_object, encrypted, session1=ESYS_TR.PASSWORD, session2=session
                )
            except TSS2_Exception as error:
                if from_tpm(error.rc) and base(error.rc) in (RC_INTEGRITY, RC_VALUE):
                    raise ResidencyUnproven(
                        f"the TPM could not open a credential for its EK and this key: {described(error.rc)}",
                        rc=int(error.rc),
                    ) from error
                raise
        secret = bytes(answer)
        if not hmac.compare_digest(secret, challenge):
            raise ResidencyUnproven("the TPM gave back another secret than the one in the credential")
        return ResidencyProof(
            ek_name=ek.name,
            key_name=name,
            key_public=area,
            id_object=bytes(id_object.marshal()),
            encrypted_secret=bytes(encrypted.marshal()),
            secret=secret,
        )

    @contextlib.contextmanager
    def _ek_session(self, ek: EndorsementKey) -> Iterator[ESYS_TR]:
        """What uses the EK: its empty auth where its template allows that, else PolicySecret(ENDORSEMENT)."""
        if public.attributes(ek.public) & TPMA_OBJECT.USERWITHAUTH:
            yield ESYS_TR.PASSWORD
            return
        with sessions.policy(self._tpm, TPM2_SE.POLICY) as session:
            with sessions.authorised(self._tpm, Hierarchy.ENDORSEMENT, EMPTY) as endorsement:
                self._tpm.connected().policy_secret(endorsement, session, expiration=0)
            yield session


def _belongs(der: bytes, keys: list[EndorsementKey]) -> bool:
    wanted = certificates.key_of(der)
    return any(public.spki(key.public) == wanted for key in keys)


def _certificate_of(key: EndorsementKey, found: Iterable[bytes]) -> bytes | None:
    spki = public.spki(key.public)
    return next((der for der in found if certificates.key_of(der) == spki), None)


def _template_of(area: bytes) -> str:
    """The name of the EK template that `area` was made from, "?" when it is none."""
    for name in templates.EK_TEMPLATES.values():
        if public.same_template(area, templates.ek(name, lambda _: None)):
            return name
    return "?"
