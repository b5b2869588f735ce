"""`hal.interfaces.IdentityKeys`: the TCG's IDevID and IAK ("TPM 2.0 Keys for Device Identity and Attestation").

Primary keys of the endorsement hierarchy (its 7.3, "recoverable" keys): after a Clear the same key comes back from the
template. Templates and policies are in `templates`; certificates, and what the keys prove, must not come in.
"""

from __future__ import annotations

from drivers.tpm import public, sessions, templates
from drivers.tpm.context import Tpm
from drivers.tpm.tss import TPM2B_PUBLIC
from hal.call import Call
from hal.errors import KeyConflict
from hal.secret import Secret
from hal.types import DeviceKey


class TcgKeys:
    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm

    def make_idevid(self, call: Call, owner: Secret) -> DeviceKey:
        with self._tpm.use(call, "making the IDevID key"):
            if self._tpm.read_public(templates.DEVICE_KEY_HANDLE) is not None:
                raise KeyConflict(f"there is a key at 0x{templates.DEVICE_KEY_HANDLE:08x} already")
            area = self._persisted(call, templates.idevid(), templates.DEVICE_KEY_HANDLE, owner)
            return public.device_key(area)

    def iak(self, call: Call) -> bytes | None:
        with self._tpm.use(call, "reading the IAK"):
            return self._tpm.read_public(templates.IAK_HANDLE)

    def make_iak(self, call: Call, owner: Secret) -> bytes:
        with self._tpm.use(call, "making the IAK"):
            there = self._tpm.read_public(templates.IAK_HANDLE)
            if there is not None:
                raise KeyConflict(f"there is a key at 0x{templates.IAK_HANDLE:08x} already")
            return self._persisted(call, templates.iak(), templates.IAK_HANDLE, owner)

    def _persisted(self, call: Call, template: TPM2B_PUBLIC, handle: int, owner: Secret) -> bytes:
        call.progress(0, None)
        esapi = self._tpm.connected()
        with (
            sessions.endorsement_primary(self._tpm, template, f"0x{handle:08x}") as (made, area),
            sessions.owner(self._tpm, owner) as (item, session),
        ):
            esapi.tr_close(esapi.evict_control(item, made, handle, session1=session))
        return area
