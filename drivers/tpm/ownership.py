"""`hal.interfaces.Ownership` and `Custody`: auth values, storage root key, dictionary-attack parameters.

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
from drivers.tpm.tss import ESYS_TR, TPM2_SE, TPMA_SESSION, TSS2_Exception
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
RANDOM_LENGTH: Final = 16
"""Octets asked for where only who answers matters."""


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
            self._vouch(ek, hierarchy, new)

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
            if holds:
                self._vouch(ek, hierarchy, auth)
            return holds

    # --- Custody ------------------------------------------------------------------------------------------------

    def platform_open(self, call: Call) -> bool:
        """By TPM2_PolicySecret in a trial session, with an empty password: wrong tries on platform count nowhere."""
        with self._tpm.use(call, "looking at the platform hierarchy"):
            return self._state().platform_enabled and self._holds(ESYS_TR.PLATFORM, ESYS_TR.PASSWORD)

    def holds_ek(self, call: Call, ek: EndorsementKey) -> None:
        """The answer's HMAC is made with a key that follows from the salt, which only the EK's private key opens."""
        with (
            self._tpm.use(call, "having the TPM show that it has its EK") as esapi,
            sessions.salted(self._tpm, ek) as session,
        ):
            # GetRandom's parameter has no size in front, so it can't be encrypted; its answer can.
            esapi.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.ENCRYPT)
            esapi.get_random(RANDOM_LENGTH, session1=session)

    def proves_lockout(self, call: Call, ek: EndorsementKey, auth: Secret) -> bool:
        with self._tpm.use(call, "proving the lockout auth"):
            return self._proves_lockout(ek, auth)

    def clear(self, call: Call, ek: EndorsementKey, lockout: Secret | None) -> None:
        with self._tpm.use(call, "clearing the TPM") as esapi:
            if self._state().disable_clear:
                raise AlreadyOwned(
                    "the TPM's Clear is disabled: only its platform firmware can enable it again"
                )
            if lockout is None:
                esapi.clear(ESYS_TR.PLATFORM)
            elif not self._proves_lockout(ek, lockout):
                raise AlreadyOwned("the lockout auth that was given is not the TPM's")
            else:
                with (
                    sessions.salted(self._tpm, ek) as session,
                    sessions.authorised(self._tpm, Hierarchy.LOCKOUT, lockout) as item,
                    self._used(Hierarchy.LOCKOUT),
                ):
                    esapi.clear(item, session1=session)
            self._tpm.forget()

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

    def _vouch(self, ek: EndorsementKey, hierarchy: Hierarchy, auth: Secret) -> None:
        """Keeps what held, for the rooms that use the hierarchies without being told their auths."""
        if hierarchy is Hierarchy.OWNER:
            self._tpm.vouched = (ek, auth)
        elif hierarchy is Hierarchy.ENDORSEMENT:
            self._tpm.endorsed = (ek, auth) if len(auth) else None

    def _proves_lockout(self, ek: EndorsementKey, auth: Secret) -> bool:
        state = self._state()
        if Hierarchy.LOCKOUT not in state.auths_set:
            raise AlreadyOwned("the TPM's lockout auth is empty: the one that was given is not tried")
        self._refuse_lockout(state)
        if state.lockout_counter:
            raise LockedOut(
                f"the TPM counts {state.lockout_counter} wrong tries: its lockout auth is not tried",
                hint="Leave it powered until the recovery time has brought the count to 0, then try again.",
            )
        with (
            sessions.salted(self._tpm, ek) as session,
            sessions.authorised(self._tpm, Hierarchy.LOCKOUT, auth) as item,
        ):
            try:
                holds = self._holds(item, session)
                self._lockout_failed = not holds
            finally:
                self._tpm.settle()
            return holds

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
