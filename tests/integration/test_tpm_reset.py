"""A TPM that loses power under an operation, as when a board restarts behind a port that stays.

Whatever the TPM answers then (sessions and objects that it has forgotten, or others at the same handles), the unit is
not blamed: the operation may be tried again, and then it succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.swtpm.process import SwtpmProcess
from hal.driver import Bindings
from hal.errors import HallmarkError, TpmError, TpmReset
from hal.interfaces import KeyPlace, Ownership
from hal.secret import EMPTY, Secret
from hal.types import EndorsementKey, Hierarchy, KeyType, LockoutPolicy, SrkTemplate
from tests.fixtures_tpm import Recorder, lasting
from tests.tpm_parts import prove_ak, prove_resident

OWNER, LOCKOUT = Secret(b"o" * 32), Secret(b"l" * 32)
POLICY = LockoutPolicy(max_tries=31, recovery_seconds=600, lockout_recovery_seconds=86400)
Deed = Callable[[Bindings, EndorsementKey], object]


def take_owner(tpm: Bindings, ek: EndorsementKey) -> None:
    ownership = tpm.get(Ownership)
    if Hierarchy.OWNER not in ownership.state(lasting()).auths_set:
        ownership.set_auth(lasting(), ek, Hierarchy.OWNER, OWNER, EMPTY)
    assert ownership.proves(lasting(), ek, Hierarchy.OWNER, OWNER)


def take_lockout(tpm: Bindings, ek: EndorsementKey) -> None:
    ownership = tpm.get(Ownership)
    if Hierarchy.LOCKOUT not in ownership.state(lasting()).auths_set:
        ownership.set_lockout_policy(lasting(), ek, POLICY, EMPTY)
        ownership.set_auth(lasting(), ek, Hierarchy.LOCKOUT, LOCKOUT, EMPTY)


def make_key(tpm: Bindings, ek: EndorsementKey) -> None:
    place = tpm.get(KeyPlace)
    tpm.get(Ownership).make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
    key = place.key(lasting()) or place.make_key(lasting(), KeyType.P256, EMPTY)
    prove_resident(tpm, ek, key)


def prove_attestation_key(tpm: Bindings, ek: EndorsementKey) -> None:
    prove_ak(tpm, ek)


DEEDS: tuple[Deed, ...] = (take_owner, take_lockout, make_key, prove_attestation_key)


def commands_of(line: Recorder, ek: EndorsementKey, deed: Deed) -> int:
    with line.visit() as tpm:
        line.sent.clear()
        deed(tpm, ek)
        return len(line.sent)


@pytest.mark.parametrize("answered", [False, True], ids=["before-a-command", "after-it"])
@pytest.mark.parametrize("deed", DEEDS)
def test_a_reset_at_any_command_is_a_reset_to_the_caller_and_the_next_try_succeeds(
    deed: Deed, answered: bool, line: Recorder, swtpm: SwtpmProcess, ek: EndorsementKey, tpm_state: Path
) -> None:
    """After it: the command was executed, its answer lost with the power, and the link has sent it once more."""
    kept = (tpm_state / "tpm2-00.permall").read_bytes()

    def begin_anew() -> None:
        swtpm.power_cut()
        (tpm_state / "tpm2-00.permall").write_bytes(kept)
        swtpm.power_on()
        line.before = lambda call, command: None

    count = commands_of(line, ek, deed)
    seen: set[type[HallmarkError]] = set()
    for wanted in range(1, count + 1):
        begin_anew()
        with line.visit() as tpm:
            line.sent.clear()

            def lose_power(call: object, command: bytes, wanted: int = wanted) -> None:
                if len(line.sent) == wanted:
                    if answered:
                        swtpm.transmit(lasting(), command)
                    swtpm.power_cut()
                    swtpm.power_on()

            line.before = lose_power
            try:
                deed(tpm, ek)
            except HallmarkError as error:
                seen.add(type(error))
                deed(tpm, ek)
    assert seen == {TpmReset}, f"of {count} commands"


def test_what_a_tpm_refuses_without_a_reset_stays_its_refusal(line: Recorder, ek: EndorsementKey) -> None:
    """The same answer, TPM_RC_REFERENCE_H0, from a TPM that was on all the time."""
    line.after = lambda command, response: (
        bytes.fromhex("80010000000a00000910") if command[6:10] == bytes.fromhex("00000129") else response
    )
    with line.visit() as tpm:
        with pytest.raises(TpmError) as caught:
            tpm.get(Ownership).set_auth(lasting(), ek, Hierarchy.OWNER, OWNER, EMPTY)
        assert not isinstance(caught.value, TpmReset)


def test_a_tpm_that_goes_on_resetting_ends_as_the_boards_failure(
    line: Recorder, swtpm: SwtpmProcess, ek: EndorsementKey
) -> None:
    def lose_power(call: object, command: bytes) -> None:
        if command[6:10] == bytes.fromhex("00000129"):
            swtpm.power_cut()
            swtpm.power_on()

    line.before = lose_power
    with line.visit() as tpm:
        for _ in range(2):
            with pytest.raises(TpmReset) as caught:
                tpm.get(Ownership).set_auth(lasting(), ek, Hierarchy.OWNER, OWNER, EMPTY)
            assert caught.value.outcome == "FAIL"
            assert "power" in caught.value.hint
