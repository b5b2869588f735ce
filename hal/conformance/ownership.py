"""What every Ownership and Custody promise: `check(open_device)`, on a TPM that nobody owns; it is owned afterwards.

The values that the check sets are given back, so that a caller with a wire log can search it for them.
"""

from __future__ import annotations

from functools import partial

from hal.call import Call
from hal.conformance.endorsement_identity import PATIENCE, Open, cancelled, chosen, name_of, raised
from hal.errors import Aborted, AlreadyOwned, TpmError
from hal.interfaces import Custody, EndorsementIdentity, Ownership
from hal.secret import EMPTY, Secret
from hal.types import EndorsementKey, Hierarchy, LockoutPolicy, SrkTemplate

POLICY = LockoutPolicy(max_tries=17, recovery_seconds=300, lockout_recovery_seconds=7200)


def check(open_device: Open) -> dict[Hierarchy, Secret]:
    """All promises, one after the other. Gives the auth values that are set now."""
    with open_device() as device:
        ek = chosen(device.get(EndorsementIdentity))
        ownership = device.get(Ownership)
        assert isinstance(raised(lambda: ownership.state(cancelled())), Aborted)
        state = ownership.state(Call.lasting(PATIENCE))
        assert not state.auths_set
        assert not state.in_lockout
        assert state.srk is None
        _srk(ownership, ek)
        auths = _auths(ownership, ek)
    with open_device() as device:
        ownership = device.get(Ownership)
        state = ownership.state(Call.lasting(PATIENCE))
        assert state.auths_set == frozenset(Hierarchy), "what was set outlives the visit"
        assert state.lockout_counter == 0, "nothing was guessed, and the visit was ended cleanly"
        assert not state.in_lockout
        assert not state.disable_clear
        for hierarchy in (Hierarchy.OWNER, Hierarchy.ENDORSEMENT):
            assert ownership.proves(Call.lasting(PATIENCE), ek, hierarchy, auths[hierarchy])
        _custody(device.get(Custody), ek, auths[Hierarchy.LOCKOUT])
        assert ownership.state(Call.lasting(PATIENCE)) == state, "looking changes nothing and counts no try"
    return auths


def _custody(custody: Custody, ek: EndorsementKey, lockout: Secret) -> None:
    """What changes nothing. `clear` is left to the driver's own tests: it takes the EK's handle with it."""
    assert custody.platform_open(Call.lasting(PATIENCE)) in (True, False)
    custody.holds_ek(Call.lasting(PATIENCE), ek)
    assert isinstance(raised(lambda: custody.holds_ek(cancelled(), ek)), Aborted)
    assert custody.proves_lockout(Call.lasting(PATIENCE), ek, lockout)


def _srk(ownership: Ownership, ek: EndorsementKey) -> None:
    srk = ownership.make_srk(Call.lasting(PATIENCE), ek, SrkTemplate.P256, EMPTY)
    assert name_of(srk)
    assert ownership.state(Call.lasting(PATIENCE)).srk == srk
    assert ownership.make_srk(Call.lasting(PATIENCE), ek, SrkTemplate.P256, EMPTY) == srk, "twice is once"
    refused = raised(lambda: ownership.make_srk(Call.lasting(PATIENCE), ek, SrkTemplate.RSA2048, EMPTY))
    assert isinstance(refused, AlreadyOwned), "another object is not replaced"


def _auths(ownership: Ownership, ek: EndorsementKey) -> dict[Hierarchy, Secret]:
    auths: dict[Hierarchy, Secret] = {}
    for hierarchy in (Hierarchy.OWNER, Hierarchy.ENDORSEMENT):
        auths[hierarchy] = Secret.random()
        ownership.set_auth(Call.lasting(PATIENCE), ek, hierarchy, auths[hierarchy], EMPTY)
        assert hierarchy in ownership.state(Call.lasting(PATIENCE)).auths_set
        assert ownership.proves(Call.lasting(PATIENCE), ek, hierarchy, auths[hierarchy])
        assert not ownership.proves(Call.lasting(PATIENCE), ek, hierarchy, Secret.random())
        for wrong in (EMPTY, Secret.random()):
            call = Call.lasting(PATIENCE)
            refused = raised(partial(ownership.set_auth, call, ek, hierarchy, Secret.random(), wrong))
            assert isinstance(refused, AlreadyOwned)
        changed = Secret.random()
        ownership.set_auth(Call.lasting(PATIENCE), ek, hierarchy, changed, auths[hierarchy])
        auths[hierarchy] = changed
    ownership.set_lockout_policy(Call.lasting(PATIENCE), ek, POLICY, EMPTY)
    auths[Hierarchy.LOCKOUT] = Secret.random()
    ownership.set_auth(Call.lasting(PATIENCE), ek, Hierarchy.LOCKOUT, auths[Hierarchy.LOCKOUT], EMPTY)
    state = ownership.state(Call.lasting(PATIENCE))
    assert state.lockout_policy == POLICY
    assert isinstance(
        raised(
            lambda: ownership.proves(Call.lasting(PATIENCE), ek, Hierarchy.LOCKOUT, auths[Hierarchy.LOCKOUT])
        ),
        TpmError,
    ), "the lockout auth is never tried out"
    refused = raised(
        lambda: ownership.set_auth(Call.lasting(PATIENCE), ek, Hierarchy.LOCKOUT, Secret.random(), EMPTY)
    )
    assert isinstance(refused, AlreadyOwned)
    assert not ownership.state(Call.lasting(PATIENCE)).in_lockout, "and was not tried: nothing is locked"
    ownership.set_lockout_policy(Call.lasting(PATIENCE), ek, POLICY, auths[Hierarchy.LOCKOUT])
    return auths
