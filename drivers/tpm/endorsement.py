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
from drivers.tpm.failures import (
    RC_ASYMMETRIC,
    RC_CURVE,
    RC_HASH,
    RC_INTEGRITY,
    RC_KEY_SIZE,
    RC_SYMMETRIC,
    RC_VALUE,
    base,
    described,
    from_tpm,
)
from drivers.tpm.tss import ESYS_TR, TPM2_SE, TPMA_OBJECT, TSS2_Exception, make_credential
from hal.call import Call
from hal.errors import EkMismatch, ResidencyUnproven, TpmError, quote
from hal.types import (
    DeviceKey,
    EkCertificate,
    EkOrigin,
    EndorsementKey,
    EndorsementReport,
    ResidencyProof,
    TpmDescription,
)

CHALLENGE_LENGTH: Final = 32
"""Octets of the secret in a credential; at most the digest size of the EK's name algorithm."""
MOST_KEYS: Final = 16
MOST_CHAIN_INDEXES: Final = 16
UNKNOWN_ALGORITHM: Final = frozenset({RC_VALUE, RC_CURVE, RC_KEY_SIZE, RC_SYMMETRIC, RC_HASH, RC_ASYMMETRIC})
"""What a TPM may answer to CreatePrimary for a template with algorithms or sizes that it doesn't have."""

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
        self._burnt_in: tuple[tuple[EkCertificate, ...], tuple[bytes, ...]] | None = None
        """What the maker put into NV, certificates and chain: large, and the same for the whole visit."""
        self._derived: dict[str, EndorsementKey | None] = {}
        """By template, once a visit; None where the TPM doesn't know its algorithms."""

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

    def persisted(self, call: Call) -> EndorsementKey | None:
        with self._tpm.use(call, f"reading the key at 0x{templates.EK_HANDLE:08x}"):
            return self._at(templates.EK_HANDLE)

    def endorsements(self, call: Call) -> EndorsementReport:
        with self._tpm.use(call, "reading the EKs"):
            handles = self._tpm.handles(templates.EK_HANDLES.start, templates.EK_HANDLES.stop - 1)
            there = [key for key in map(self._at, handles[:MOST_KEYS]) if key is not None]
            if self._burnt_in is None:
                self._burnt_in = self._certificates(call), self._chain()
        found, chain = self._burnt_in
        keys = [*there, *(key for key in self._derived.values() if key is not None)]
        return EndorsementReport(
            keys=tuple(replace(key, certificate=_certificate_of(key, found)) for key in keys),
            certificates=found,
            chain=chain,
            derived=tuple(self._derived),
        )

    def derive(self, call: Call, template: str) -> EndorsementReport:
        if template not in self._derived:
            if template not in (templates.EMPTY_UNIQUE, *templates.EK_TEMPLATES.values()):
                raise TpmError(f"there is no EK template {quote(template)}")
            with self._tpm.use(call, f"deriving the EK of template {template}"):
                call.progress(0, None)
                self._derived[template] = self._make(template)
        return self.endorsements(call)

    def persist(self, call: Call, ek: EndorsementKey, evict: EndorsementKey | None = None) -> EndorsementKey:
        """Needs an empty owner auth, as it is before ownership is taken. See `hal.interfaces`."""
        handle = templates.EK_HANDLE
        with self._tpm.use(call, "persisting the EK") as esapi:
            there = self._tpm.read_public(handle)
            if there == ek.public:
                return replace(ek, handle=handle)
            if there is not None and (evict is None or there != evict.public):
                raise EkMismatch(f"another key than the chosen EK is at 0x{handle:08x}")
            # Loaded before anything is evicted: a TPM that can't make the right one keeps the one that it has.
            with sessions.endorsement_key(self._tpm, replace(ek, handle=None)) as item:
                if there is not None:
                    self._tpm.evict(handle)
                kept = esapi.evict_control(ESYS_TR.OWNER, item, handle)
                esapi.tr_close(kept)
            return replace(ek, handle=handle)

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
            sessions.endorsement_primary(self._tpm, templates.attestation_key()) as (item, area),
        ):
            return self._proof(ek, item, area)

    # --- keys and certificates ----------------------------------------------------------------------------------

    def _at(self, handle: int) -> EndorsementKey | None:
        """The key at a persistent handle; None when there is none that can be read."""
        area = self._tpm.read_public(handle)
        if area is None or not public.is_supported(area):
            return None
        return EndorsementKey(
            public=area,
            name=public.name(area),
            origin=EkOrigin.PERSISTENT,
            template=_template_of(area),
            handle=handle,
        )

    def _make(self, template: str) -> EndorsementKey | None:
        """The EK of that template; None when the TPM doesn't know its algorithms."""
        origin = EkOrigin.EMPTY_UNIQUE if template == templates.EMPTY_UNIQUE else EkOrigin.TEMPLATE
        try:
            with sessions.derived_ek(self._tpm, template) as (_, made):
                return EndorsementKey(public=made, name=public.name(made), origin=origin, template=template)
        except TSS2_Exception as error:
            if from_tpm(error.rc) and base(error.rc) in UNKNOWN_ALGORITHM:
                return None
            raise

    def _certificates(self, call: Call) -> tuple[EkCertificate, ...]:
        """The certificates at the indexes of EK templates, stripped."""
        there = self._tpm.handles(min(templates.EK_TEMPLATES), max(templates.EK_TEMPLATES))
        wanted = [(index, name) for index, name in templates.EK_TEMPLATES.items() if index in there]
        found: list[EkCertificate] = []
        for at, (index, template) in enumerate(wanted):
            call.progress(at, len(wanted))
            content = nv.read(self._tpm, index)
            der = certificates.stripped(content) if content else None
            if der is not None:
                found.append(EkCertificate(index, template, der))
        return tuple(found)

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
        """What uses the EK: its empty auth where its template allows that, else PolicySecret(ENDORSEMENT).

        With the endorsement auth that Ownership has set or proven in this visit; before, it is taken to be empty.
        """
        if public.attributes(ek.public) & TPMA_OBJECT.USERWITHAUTH:
            yield ESYS_TR.PASSWORD
            return
        with sessions.policy(self._tpm, TPM2_SE.POLICY) as session:
            with sessions.endorsement(self._tpm) as (endorsement, authorising):
                self._tpm.connected().policy_secret(endorsement, session, expiration=0, session1=authorising)
            yield session


def _certificate_of(key: EndorsementKey, found: Iterable[EkCertificate]) -> bytes | None:
    spki = public.spki(key.public)
    return next((item.certificate for item in found if certificates.key_of(item.certificate) == spki), None)


def _template_of(area: bytes) -> str:
    """The name of the EK template that `area` was made from, "?" when it is none."""
    for name in templates.EK_TEMPLATES.values():
        if public.same_template(area, templates.ek(name, lambda _: None)):
            return name
    return "?"
