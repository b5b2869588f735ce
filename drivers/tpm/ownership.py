"""`hal.interfaces.Ownership`: auth values, storage root key, dictionary-attack parameters.

Which auths are set, in which order and what is escrowed first, is the station's to say. Two things must never come in:
a guess at the lockout auth (one wrong try locks it) and disableClear (lockout auth can't undo it).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from drivers.tpm import public, sessions, templates
from drivers.tpm.codec import Property
from drivers.tpm.context import Tpm
from drivers.tpm.failures import RC_LOCKOUT, WRONG_AUTH, base, from_tpm
from drivers.tpm.tss import ESYS_TR, TPM2_SE, TSS2_Exception
from hal.call import Call
from hal.errors import AlreadyOwned, LockedOut, TpmError
from hal.secret import Secret
from hal.types import EndorsementKey, Hierarchy, LockoutPolicy, OwnershipState, SrkTemplate

# TPMA_PERMANENT: Part 2, 8.6.
AUTH_SET: Final = {Hierarchy.OWNER: 1 << 0, Hierarchy.ENDORSEMENT: 1 << 1, Hierarchy.LOCKOUT: 1 << 2}
DISABLE_CLEAR: Final = 1 << 8
IN_LOCKOUT: Final = 1 << 9
PH_ENABLE: Final = 1 << 0
"""TPMA_STARTUP_CLEAR: Part 2, 8.7."""


class Owning:
    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm
        self._lockout_failed = False

    def state(self, call: Call) -> OwnershipState:
        with self._tpm.use(call, "reading the ownership"):
            return self._state()

    def set_auth(
        self, call: Call, ek: EndorsementKey, hierarchy: Hierarchy, new: Secret, current: Secret
    ) -> None:
        """See `hal.interfaces`. What the TPM says of itself decides before anything is tried."""
        doing = f"setting the {hierarchy} auth"
        with self._tpm.use(call, doing) as esapi:
            state = self._state()
            is_set = hierarchy in state.auths_set
            if is_set and not len(current):
                raise AlreadyOwned(f"the TPM's {hierarchy} auth is set, and not by this call's knowledge")
            if not is_set and len(current):
                raise TpmError(f"the TPM's {hierarchy} auth is empty, although another one was expected")
            if hierarchy is Hierarchy.LOCKOUT:
                self._refuse_lockout(state)
            with (
                sessions.salted(self._tpm, ek) as session,
                sessions.authorised(self._tpm, hierarchy, current) as item,
                self._used(hierarchy),
            ):
                esapi.hierarchy_change_auth(item, new.reveal(), session1=session)
            if hierarchy is Hierarchy.OWNER:
                self._tpm.vouched = (ek, new)

    def make_srk(self, call: Call, ek: EndorsementKey, template: SrkTemplate, owner: Secret) -> bytes:
        with self._tpm.use(call, "making the SRK") as esapi:
            wanted = templates.srk(template)
            there = self._tpm.read_public(templates.SRK_HANDLE)
            if there is not None:
                if not public.same_template(there, wanted) or not self._srk_is_open():
                    raise AlreadyOwned(
                        f"another object than a {template} SRK without auth is at 0x{templates.SRK_HANDLE:08x}"
                    )
                return there
            call.progress(0, None)
            with (
                sessions.salted(self._tpm, ek) as session,
                sessions.authorised(self._tpm, Hierarchy.OWNER, owner) as item,
                self._tpm.primary(Hierarchy.OWNER, wanted, session) as (key, made),
            ):
                esapi.tr_close(esapi.evict_control(item, key, templates.SRK_HANDLE, session1=session))
            self._tpm.vouched = (ek, owner)
            return made

    def set_lockout_policy(
        self, call: Call, ek: EndorsementKey, policy: LockoutPolicy, lockout: Secret
    ) -> None:
        with self._tpm.use(call, "setting the lockout parameters") as esapi:
            state = self._state()
            if (Hierarchy.LOCKOUT in state.auths_set) != bool(len(lockout)):
                raise AlreadyOwned("the TPM's lockout auth is not the one that was given: it is not tried")
            self._refuse_lockout(state)
            with (
                sessions.salted(self._tpm, ek) as session,
                sessions.authorised(self._tpm, Hierarchy.LOCKOUT, lockout) as item,
                self._used(Hierarchy.LOCKOUT),
            ):
                esapi.dictionary_attack_parameters(
                    policy.max_tries,
                    policy.recovery_seconds,
                    policy.lockout_recovery_seconds,
                    lock_handle=item,
                    session1=session,
                )

    def proves(self, call: Call, ek: EndorsementKey, hierarchy: Hierarchy, auth: Secret) -> bool:
        """By TPM2_PolicySecret in a trial session: it changes nothing, and owner and endorsement count no tries."""
        if hierarchy is Hierarchy.LOCKOUT:
            raise TpmError("the lockout auth is never tried out: one wrong try locks it")
        with (
            self._tpm.use(call, f"trying the {hierarchy} auth"),
            sessions.salted(self._tpm, ek) as session,
            sessions.authorised(self._tpm, hierarchy, auth) as item,
        ):
            holds = self._holds(item, session)
            if holds and hierarchy is Hierarchy.OWNER:
                self._tpm.vouched = (ek, auth)
            return holds

    # --- parts --------------------------------------------------------------------------------------------------

    def _state(self) -> OwnershipState:
        found = self._tpm.properties(Property.PERMANENT, Property.LOCKOUT_RECOVERY)
        missing = [
            wanted.name
            for wanted in Property
            if Property.PERMANENT <= wanted <= Property.LOCKOUT_RECOVERY and wanted not in found
        ]
        if missing:
            raise TpmError(f"the TPM doesn't tell its {', '.join(missing)}")
        permanent = found[Property.PERMANENT]
        return OwnershipState(
            auths_set=frozenset(hierarchy for hierarchy, bit in AUTH_SET.items() if permanent & bit),
            in_lockout=bool(permanent & IN_LOCKOUT),
            lockout_counter=found[Property.LOCKOUT_COUNTER],
            lockout_policy=LockoutPolicy(
                max_tries=found[Property.MAX_AUTH_FAIL],
                recovery_seconds=found[Property.LOCKOUT_INTERVAL],
                lockout_recovery_seconds=found[Property.LOCKOUT_RECOVERY],
            ),
            platform_enabled=bool(found[Property.STARTUP_CLEAR] & PH_ENABLE),
            disable_clear=bool(permanent & DISABLE_CLEAR),
            srk=self._tpm.read_public(templates.SRK_HANDLE),
        )

    def _refuse_lockout(self, state: OwnershipState) -> None:
        """Before lockout auth is used: not when the TPM is locked, and not again after it was wrong once."""
        if state.in_lockout or self._lockout_failed:
            raise LockedOut("the TPM's lockout is active: its lockout auth is not tried")

    @contextlib.contextmanager
    def _used(self, hierarchy: Hierarchy) -> Iterator[None]:
        """Around a command with lockout auth: remembers that it was wrong, and makes a power cut harmless after it."""
        if hierarchy is not Hierarchy.LOCKOUT:
            yield
            return
        try:
            yield
        except TSS2_Exception as error:
            # Not for TPM_RC_REFERENCE_S0 and the like: a command that was refused for its session tried no auth.
            self._lockout_failed = from_tpm(error.rc) and base(error.rc) in {*WRONG_AUTH, RC_LOCKOUT}
            raise
        finally:
            self._tpm.settle()

    def _srk_is_open(self) -> bool:
        """Whether the object at the SRK's handle has an empty auth. It has noDA set, so that no try is counted."""
        with self._tpm.persistent(templates.SRK_HANDLE) as item:
            return self._holds(item, ESYS_TR.PASSWORD)

    def _holds(self, item: ESYS_TR, session: ESYS_TR) -> bool:
        with sessions.policy(self._tpm, TPM2_SE.TRIAL) as trial:
            try:
                self._tpm.connected().policy_secret(item, trial, expiration=0, session1=session)
            except TSS2_Exception as error:
                if from_tpm(error.rc) and base(error.rc) in WRONG_AUTH:
                    self._tpm.check_boot("trying an auth value")
                    return False
                raise
        return True
