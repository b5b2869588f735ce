"""Who else could take a real (software) TPM, and the ways back: nothing here tries a lockout auth that may be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.swtpm.process import SwtpmProcess, manufacture
from drivers.tpm import templates
from drivers.tpm.tss import ESYS_TR
from hal.errors import AlreadyOwned, EkMismatch, HallmarkError, LockedOut
from hal.interfaces import Custody, EndorsementIdentity, KeyPlace, Ownership
from hal.secret import EMPTY, Secret
from hal.types import EndorsementKey, Hierarchy, KeyType, LockoutPolicy, SrkTemplate
from tests.fixtures_tpm import Recorder, lasting
from tests.integration.test_tpm_ownership import raw
from tests.tpm_parts import prove_ak, prove_resident

CC_CLEAR = 0x126
CC_POLICY_SECRET = 0x151
ALL = (Hierarchy.OWNER, Hierarchy.ENDORSEMENT, Hierarchy.LOCKOUT)


def state_of(line: Recorder) -> tuple[frozenset[Hierarchy], bool, int]:
    with line.visit() as tpm:
        state = tpm.get(Ownership).state(lasting())
    return state.auths_set, state.in_lockout, state.lockout_counter


# --- platform ---------------------------------------------------------------------------------------------------


def test_an_empty_platform_auth_is_seen_and_looking_changes_nothing(
    line: Recorder, ek: EndorsementKey
) -> None:
    before = state_of(line)
    with line.visit() as tpm:
        assert tpm.get(Custody).platform_open(lasting())
        assert tpm.get(Custody).platform_open(lasting())
    assert state_of(line) == before
    with raw(line) as (_, esapi):
        esapi.hierarchy_change_auth(ESYS_TR.PLATFORM, b"firmware's own")
    with line.visit() as tpm:
        for _ in range(40):  # more than max_tries: it is not under dictionary-attack protection
            assert not tpm.get(Custody).platform_open(lasting())
    assert state_of(line) == before


def test_a_platform_hierarchy_that_firmware_has_switched_off_is_closed(line: Recorder) -> None:
    with raw(line) as (_, esapi):
        esapi.hierarchy_control(ESYS_TR.PLATFORM, ESYS_TR.PLATFORM, False)
    with line.visit() as tpm:
        assert not tpm.get(Ownership).state(lasting()).platform_enabled
        assert not tpm.get(Custody).platform_open(lasting())


# --- endorsement auth -------------------------------------------------------------------------------------------


def test_with_endorsement_auth_set_the_same_visit_goes_on_and_the_next_one_after_proof(
    line: Recorder, ek: EndorsementKey
) -> None:
    auth = Secret.random()
    with line.visit() as tpm:
        identity, own, place = tpm.get(EndorsementIdentity), tpm.get(Ownership), tpm.get(KeyPlace)
        own.make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
        own.set_auth(lasting(), ek, Hierarchy.ENDORSEMENT, auth, EMPTY)
        key = place.make_key(lasting(), KeyType.P256, EMPTY)
        prove_resident(tpm, ek, key)
        prove_ak(tpm, ek)
        assert ek.name in {item.name for item in identity.endorsements(lasting()).keys}
    with line.visit() as tpm:
        identity = tpm.get(EndorsementIdentity)
        assert ek.name in {item.name for item in identity.endorsements(lasting()).keys}
        with pytest.raises(HallmarkError):
            prove_ak(tpm, ek)
        tpm.get(Custody).holds_ek(lasting(), ek)  # needs no auth
        assert tpm.get(Ownership).proves(lasting(), ek, Hierarchy.ENDORSEMENT, auth)
        prove_ak(tpm, ek)
    assert not line.carried(auth.reveal())


def test_a_tpm_without_that_ek_does_not_show_that_it_has_it(
    line: Recorder, ek: EndorsementKey, tmp_path: Path, ek_ca: Path
) -> None:
    manufacture(tmp_path / "other", ek_ca)
    with SwtpmProcess(tmp_path / "other") as process:
        with Recorder(process).visit() as tpm, pytest.raises(EkMismatch):
            tpm.get(Custody).holds_ek(lasting(), ek)

        lies = Recorder(process)

        def pretend(command: bytes, response: bytes) -> bytes:
            """Shows the other one's public key at the EK's handle; it can't open a salt for it."""
            del command
            return response.replace(theirs.public, ek.public).replace(theirs.name, ek.name)

        with lies.visit() as tpm:
            theirs = tpm.get(EndorsementIdentity).endorsements(lasting()).keys[0]
        lies.after = pretend
        with lies.visit() as tpm, pytest.raises(HallmarkError):
            tpm.get(Custody).holds_ek(lasting(), ek)


# --- lockout auth -----------------------------------------------------------------------------------------------


def test_the_right_lockout_auth_is_proven_and_counts_nothing(line: Recorder, ek: EndorsementKey) -> None:
    lockout = Secret.random()
    with line.visit() as tpm:
        tpm.get(Ownership).set_auth(lasting(), ek, Hierarchy.LOCKOUT, lockout, EMPTY)
    with line.visit() as tpm:
        assert tpm.get(Custody).proves_lockout(lasting(), ek, lockout)
        assert tpm.get(Custody).proves_lockout(lasting(), ek, lockout)
    assert state_of(line) == (frozenset({Hierarchy.LOCKOUT}), False, 0)
    assert not line.carried(lockout.reveal())


def test_a_wrong_lockout_auth_is_tried_once_at_most(line: Recorder, ek: EndorsementKey) -> None:
    with line.visit() as tpm:
        with pytest.raises(AlreadyOwned, match="empty"):
            tpm.get(Custody).proves_lockout(lasting(), ek, Secret.random())
        assert CC_POLICY_SECRET not in line.codes, "an empty one isn't tried either"
        tpm.get(Ownership).set_auth(lasting(), ek, Hierarchy.LOCKOUT, Secret.random(), EMPTY)
        assert not tpm.get(Custody).proves_lockout(lasting(), ek, Secret.random())
        tries = line.codes.count(CC_POLICY_SECRET)
        for again in (
            lambda: tpm.get(Custody).proves_lockout(lasting(), ek, Secret.random()),
            lambda: tpm.get(Custody).clear(lasting(), ek, Secret.random()),
        ):
            with pytest.raises(LockedOut):
                again()
        assert line.codes.count(CC_POLICY_SECRET) == tries
        assert CC_CLEAR not in line.codes


# --- clear ------------------------------------------------------------------------------------------------------


def own_it(line: Recorder, ek: EndorsementKey) -> dict[Hierarchy, Secret]:
    auths = {hierarchy: Secret.random() for hierarchy in ALL}
    with line.visit() as tpm:
        own = tpm.get(Ownership)
        own.make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
        own.set_lockout_policy(lasting(), ek, LockoutPolicy(7, 77, 777), EMPTY)
        for hierarchy in ALL:
            own.set_auth(lasting(), ek, hierarchy, auths[hierarchy], EMPTY)
    return auths


@pytest.mark.parametrize("by", ["platform", "lockout"])
def test_a_clear_leaves_a_tpm_that_nobody_owns_with_the_same_ek(
    line: Recorder, ek: EndorsementKey, by: str
) -> None:
    auths = own_it(line, ek)
    with line.visit() as tpm:
        tpm.get(Custody).clear(lasting(), ek, auths[Hierarchy.LOCKOUT] if by == "lockout" else None)
        assert not tpm.get(Ownership).state(lasting()).auths_set
        identity = tpm.get(EndorsementIdentity)
        report = identity.derive(lasting(), ek.template)
        derived = next(key for key in report.keys if key.name == ek.name)
        assert derived.handle is None
        assert derived.certificate == ek.certificate
        prove_ak(tpm, derived)
        assert identity.persist(lasting(), derived).handle == templates.EK_HANDLE
    assert state_of(line) == (frozenset(), False, 0)
    for auth in auths.values():
        assert not line.carried(auth.reveal())


def test_a_clear_without_the_right_to_it_changes_nothing(line: Recorder, ek: EndorsementKey) -> None:
    auths = own_it(line, ek)
    with raw(line) as (_, esapi):
        esapi.hierarchy_change_auth(ESYS_TR.PLATFORM, b"firmware's own")
    refused: tuple[Callable[[Custody], None], ...] = (
        lambda custody: custody.clear(lasting(), ek, None),
        lambda custody: custody.clear(lasting(), ek, auths[Hierarchy.OWNER]),
    )
    for action in refused:
        with line.visit() as tpm, pytest.raises(AlreadyOwned):
            action(tpm.get(Custody))
    assert state_of(line)[0] == frozenset(ALL)
