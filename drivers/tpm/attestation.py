"""`hal.interfaces.KeyAttestation`: what this TPM shows of its keys, by ActivateCredential and by Certify.

Challenges are made elsewhere, and answers judged elsewhere: nothing in here decides whether a key is to be believed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from drivers.tpm import public, sessions, templates
from drivers.tpm.context import Tpm
from drivers.tpm.failures import RC_INTEGRITY, RC_VALUE, base, described, from_tpm
from drivers.tpm.tss import (
    ESYS_TR,
    TPM2_CC,
    TPM2B_DATA,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPMA_OBJECT,
    TPMT_SIG_SCHEME,
    TSS2_Exception,
)
from hal.call import Call
from hal.errors import ProtocolViolation, ResidencyUnproven, TpmError
from hal.types import AkKind, Certified, Credential, EndorsementKey

BY_HANDLE = (templates.DEVICE_KEY_HANDLE, templates.IAK_HANDLE)


class Attesting:
    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm

    def attestation_key(self, call: Call, kind: AkKind) -> bytes:
        with self._tpm.use(call, "making the attestation key"):
            if kind is AkKind.IAK:
                area = self._tpm.read_public(templates.IAK_HANDLE)
                if area is None:
                    raise TpmError(f"there is no IAK at 0x{templates.IAK_HANDLE:08x}")
                return area
            with self._ak() as (_, area):
                return area

    def activate(self, call: Call, ek: EndorsementKey, public_: bytes, credential: Credential) -> bytes:
        with self._tpm.use(call, "activating a credential"):
            id_object = _unmarshalled(TPM2B_ID_OBJECT, credential.id_object)
            encrypted = _unmarshalled(TPM2B_ENCRYPTED_SECRET, credential.encrypted_secret)
            with (
                self._object(public_) as item,
                sessions.endorsement_key(self._tpm, ek) as key,
                sessions.administering(self._tpm, public_, TPM2_CC.ActivateCredential) as first,
                sessions.using_ek(self._tpm, ek) as second,
            ):
                try:
                    answer = self._tpm.connected().activate_credential(
                        item, key, id_object, encrypted, session1=first, session2=second
                    )
                except TSS2_Exception as error:
                    if from_tpm(error.rc) and base(error.rc) in (RC_INTEGRITY, RC_VALUE):
                        raise ResidencyUnproven(
                            f"the TPM could not open a credential for its EK and this key: {described(error.rc)}",
                            rc=int(error.rc),
                        ) from error
                    raise
            self._settle(public_)
            return bytes(answer)

    def certify(self, call: Call, ak: bytes, public_: bytes, qualifying: bytes) -> Certified:
        with self._tpm.use(call, "certifying a key"):
            with (
                self._object(public_) as item,
                self._object(ak) as signer,
                sessions.administering(self._tpm, public_, TPM2_CC.Certify) as session,
            ):
                attest, signature = self._tpm.connected().certify(
                    item,
                    signer,
                    TPM2B_DATA(buffer=qualifying),
                    TPMT_SIG_SCHEME(scheme=templates.ALG_NULL),
                    session1=session,
                    session2=ESYS_TR.PASSWORD,
                )
            self._settle(public_, ak)
            return Certified(bytes(attest), bytes(signature.marshal()))

    # --- parts --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _ak(self) -> Iterator[tuple[ESYS_TR, bytes]]:
        with sessions.endorsement_primary(self._tpm, templates.attestation_key(), "AK") as made:
            yield made

    @contextlib.contextmanager
    def _object(self, area: bytes) -> Iterator[ESYS_TR]:
        """The object of that public area; ResidencyUnproven when there is none in this TPM's places."""
        handle = next((item for item in BY_HANDLE if self._tpm.read_public(item) == area), None)
        if handle is not None:
            with self._tpm.persistent(handle) as item:
                yield item
            return
        if public.same_template(area, templates.attestation_key()):
            with self._ak() as (item, made):
                if made == area:
                    yield item
                    return
        raise ResidencyUnproven("the key that was read before is not in the TPM any more")

    def _settle(self, *areas: bytes) -> None:
        """After an auth that dictionary-attack protection covers was used: a power cut then counts no try."""
        if any(not public.attributes(area) & TPMA_OBJECT.NODA for area in areas):
            self._tpm.settle()


def _unmarshalled(
    kind: type[TPM2B_ID_OBJECT] | type[TPM2B_ENCRYPTED_SECRET], octets: bytes
) -> TPM2B_ID_OBJECT | TPM2B_ENCRYPTED_SECRET:
    try:
        made, used = kind.unmarshal(octets)
    except TSS2_Exception as error:
        raise ProtocolViolation("a credential that can't be read") from error
    if used != len(octets):
        raise ProtocolViolation("a credential with octets behind it")
    return made
