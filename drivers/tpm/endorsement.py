"""`hal.interfaces.EndorsementIdentity`: which EKs a TPM has, and which certificates belong to them.

Whether an EK is to be trusted, and which one a unit is enrolled with, is the station's to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from drivers.tpm import certificates, nv, public, sessions, templates
from drivers.tpm.codec import Property
from drivers.tpm.context import Tpm
from drivers.tpm.failures import (
    RC_ASYMMETRIC,
    RC_CURVE,
    RC_HASH,
    RC_KEY_SIZE,
    RC_SYMMETRIC,
    RC_VALUE,
    base,
    from_tpm,
)
from drivers.tpm.tss import ESYS_TR, TSS2_Exception
from hal.call import Call
from hal.errors import EkMismatch, TpmError, quote
from hal.types import (
    EkCertificate,
    EkOrigin,
    EndorsementKey,
    EndorsementReport,
    TpmDescription,
)

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


def _certificate_of(key: EndorsementKey, found: Iterable[EkCertificate]) -> bytes | None:
    spki = public.spki(key.public)
    return next((item.certificate for item in found if certificates.key_of(item.certificate) == spki), None)


def _template_of(area: bytes) -> str:
    """The name of the EK template that `area` was made from, "?" when it is none."""
    for name in templates.EK_TEMPLATES.values():
        if public.same_template(area, templates.ek(name, lambda _: None)):
            return name
    return "?"
