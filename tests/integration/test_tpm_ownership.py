"""Taking ownership of a real (software) TPM: what locks boards out, what a crash leaves, what other tools then see."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.swtpm.process import SwtpmProcess, manufacture
from drivers.tpm import nv, templates
from drivers.tpm.context import Tpm
from drivers.tpm.store import ISSUER_INDEXES, LEAF_INDEX
from drivers.tpm.tss import ESAPI, ESYS_TR, TPM2B_PUBLIC, TPMT_PUBLIC
from hal.errors import (
    AlreadyOwned,
    CredentialError,
    DeviceGone,
    EkMismatch,
    LockedOut,
    ResidencyUnproven,
    TpmError,
)
from hal.interfaces import CertificateStore, EndorsementIdentity, KeyPlace, Ownership
from hal.secret import EMPTY, Secret
from hal.types import EkOrigin, EndorsementKey, Hierarchy, KeyType, LockoutPolicy, SrkTemplate
from tests.fixtures_tpm import Recorder, lasting, listening
from tests.tpm_parts import prove_ak, prove_resident

CC_CLEAR_CONTROL = 0x127
CC_HIERARCHY_CHANGE_AUTH = 0x129
CC_DA_PARAMETERS = 0x13A
CC_SHUTDOWN = 0x145
CC_ACTIVATE_CREDENTIAL = 0x147


@contextlib.contextmanager
def raw(line: Recorder) -> Iterator[tuple[Tpm, ESAPI]]:
    """ESAPI on that TPM, for what a driver would never do."""
    tpm = Tpm(line)
    with tpm.use(lasting(), "test") as esapi:
        yield tpm, esapi
    tpm.close()


def codes(line: Recorder, action: Callable[[], object]) -> list[int]:
    before = len(line.sent)
    with contextlib.suppress(TpmError):
        action()
    return line.codes[before:]


# --- lockout ----------------------------------------------------------------------------------------------------


def test_a_lockout_auth_that_may_be_wrong_is_never_tried(line: Recorder, ek: EndorsementKey) -> None:
    lockout = Secret.random()
    with line.visit() as tpm:
        own = tpm.get(Ownership)
        assert CC_HIERARCHY_CHANGE_AUTH not in codes(
            line, lambda: own.set_auth(lasting(), ek, Hierarchy.LOCKOUT, lockout, Secret.random())
        ), "it is empty, so that any other value is wrong"
        own.set_auth(lasting(), ek, Hierarchy.LOCKOUT, lockout, EMPTY)
        assert CC_HIERARCHY_CHANGE_AUTH not in codes(
            line, lambda: own.set_auth(lasting(), ek, Hierarchy.LOCKOUT, Secret.random(), EMPTY)
        )
        assert CC_DA_PARAMETERS not in codes(
            line, lambda: own.set_lockout_policy(lasting(), ek, LockoutPolicy(), EMPTY)
        )
        assert not own.state(lasting()).in_lockout
        own.set_lockout_policy(lasting(), ek, LockoutPolicy(), lockout)


def test_after_one_wrong_lockout_auth_none_is_tried_again(line: Recorder, ek: EndorsementKey) -> None:
    with line.visit() as tpm:
        own = tpm.get(Ownership)
        own.set_auth(lasting(), ek, Hierarchy.LOCKOUT, Secret.random(), EMPTY)
        with pytest.raises((AlreadyOwned, LockedOut)):
            own.set_lockout_policy(lasting(), ek, LockoutPolicy(), Secret.random())
        tried = codes(line, lambda: own.set_lockout_policy(lasting(), ek, LockoutPolicy(), Secret.random()))
        assert CC_DA_PARAMETERS not in tried
        with pytest.raises(LockedOut):
            own.set_auth(lasting(), ek, Hierarchy.LOCKOUT, Secret.random(), Secret.random())


def test_a_power_cut_right_after_lockout_auth_was_used_counts_no_try(
    swtpm: SwtpmProcess, line: Recorder, ek: EndorsementKey
) -> None:
    lockout = Secret.random()
    with line.visit() as tpm:
        tpm.get(Ownership).set_auth(lasting(), ek, Hierarchy.LOCKOUT, lockout, EMPTY)
        tpm.get(Ownership).set_lockout_policy(lasting(), ek, LockoutPolicy(), lockout)
        swtpm.power_cut()
    swtpm.power_on()
    with line.visit() as tpm:
        state = tpm.get(Ownership).state(lasting())
    assert state.lockout_counter == 0
    assert not state.in_lockout
    used = [at for at, code in enumerate(line.codes) if code in (CC_HIERARCHY_CHANGE_AUTH, CC_DA_PARAMETERS)]
    assert len(used) == 2
    assert all(line.codes[at + 1] == CC_SHUTDOWN for at in used), "nothing comes between use and shutdown"


def test_disable_clear_is_never_set(line: Recorder, ek: EndorsementKey) -> None:
    from hal.conformance import ownership

    ownership.check(line.visit)
    assert CC_CLEAR_CONTROL not in line.codes
    with line.visit() as tpm:
        assert not tpm.get(Ownership).state(lasting()).disable_clear


# --- auth values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b"\0", b"\0\0\0\0", b"\x01"])
def test_auth_values_that_end_in_zeros_work(line: Recorder, ek: EndorsementKey, tail: bytes) -> None:
    first, second = Secret(b"\x11" * (32 - len(tail)) + tail), Secret(b"\x22" * (32 - len(tail)) + tail)
    with line.visit() as tpm:
        own = tpm.get(Ownership)
        own.set_auth(lasting(), ek, Hierarchy.OWNER, first, EMPTY)
        own.set_auth(lasting(), ek, Hierarchy.OWNER, second, first)
        assert own.proves(lasting(), ek, Hierarchy.OWNER, second)


@pytest.mark.parametrize("hierarchy", list(Hierarchy))
def test_a_lost_answer_to_an_auth_change_is_found_out_by_the_next_visit(
    line: Recorder, ek: EndorsementKey, hierarchy: Hierarchy
) -> None:
    new = Secret.random()

    def cut(command: bytes, response: bytes) -> bytes:
        if int.from_bytes(command[6:10], "big") == CC_HIERARCHY_CHANGE_AUTH:
            raise DeviceGone("unplugged")
        return response

    line.after = cut
    with line.visit() as tpm, pytest.raises(DeviceGone, match="unplugged"):
        tpm.get(Ownership).set_auth(lasting(), ek, hierarchy, new, EMPTY)
    line.after = lambda command, response: response
    with line.visit() as tpm:
        own = tpm.get(Ownership)
        assert own.state(lasting()).auths_set == {hierarchy}
        if hierarchy is Hierarchy.LOCKOUT:
            own.set_lockout_policy(lasting(), ek, LockoutPolicy(), new)
        else:
            assert own.proves(lasting(), ek, hierarchy, new)


def test_an_owner_auth_is_not_sent_before_an_ek_was_vouched_for(line: Recorder, ek: EndorsementKey) -> None:
    owner = Secret.random()
    with line.visit() as tpm:
        tpm.get(Ownership).make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
        tpm.get(Ownership).set_auth(lasting(), ek, Hierarchy.OWNER, owner, EMPTY)
    with line.visit() as tpm:
        with pytest.raises(TpmError, match="no EK has been used"):
            tpm.get(KeyPlace).make_key(lasting(), KeyType.P256, owner)
        with pytest.raises(AlreadyOwned, match="owner auth"):
            tpm.get(CertificateStore).install(lasting(), [b"\x30\x01\x00"])
        assert tpm.get(Ownership).proves(lasting(), ek, Hierarchy.OWNER, owner)
        tpm.get(KeyPlace).make_key(lasting(), KeyType.P256, owner)
    assert not line.carried(owner.reveal())


def test_an_srk_with_an_auth_value_of_its_own_is_somebody_elses(line: Recorder, ek: EndorsementKey) -> None:
    from tpm2_pytss.types import TPM2B_SENSITIVE_CREATE, TPMS_SENSITIVE_CREATE

    with raw(line) as (tpm, esapi):
        theirs = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=b"theirs"))
        item, _, _, _, _ = esapi.create_primary(theirs, templates.srk(SrkTemplate.P256))
        with tpm.flushing(item):
            esapi.evict_control(ESYS_TR.OWNER, item, templates.SRK_HANDLE)
    with line.visit() as tpm, pytest.raises(AlreadyOwned):
        tpm.get(Ownership).make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)


# --- endorsement ------------------------------------------------------------------------------------------------


def test_after_a_clear_the_ek_is_derived_again_and_is_the_one_of_its_certificate(
    line: Recorder, ek: EndorsementKey
) -> None:
    with raw(line) as (_, esapi):
        esapi.clear(ESYS_TR.PLATFORM)
    with line.visit() as tpm:
        identity = tpm.get(EndorsementIdentity)
        identity.derive(lasting(), "L-1")
        report = identity.derive(lasting(), "H-3")
        derived = {key.template: key for key in report.keys}
        assert report.derived == ("L-1", "H-3")
        assert derived["L-1"].name == ek.name
        assert derived["L-1"].origin is EkOrigin.TEMPLATE
        assert derived["L-1"].handle is None
        assert derived["L-1"].certificate == ek.certificate
        assert derived["H-3"].certificate
        assert report.stray_certificates == ()
        for key in report.keys:
            prove_ak(tpm, key)
        tpm.get(Ownership).set_auth(lasting(), derived["L-1"], Hierarchy.OWNER, Secret.random(), EMPTY)
        with pytest.raises(AlreadyOwned):
            identity.persist(lasting(), derived["L-1"])
    with raw(line) as (_, esapi):
        esapi.clear(ESYS_TR.PLATFORM)
    with line.visit() as tpm:
        assert tpm.get(EndorsementIdentity).persist(lasting(), derived["L-1"]).handle == templates.EK_HANDLE


def test_wrapped_padded_foreign_and_chained_certificates_are_told_apart(
    line: Recorder, ek: EndorsementKey, tmp_path: Path, ek_ca: Path
) -> None:
    other_state = tmp_path / "other"
    manufacture(other_state, ek_ca)
    with SwtpmProcess(other_state) as process, Recorder(process).visit() as tpm:
        foreign = tpm.get(EndorsementIdentity).endorsements(lasting()).keys[0]
    assert foreign.name != ek.name
    assert ek.certificate
    assert foreign.certificate
    wrapped = b"\x10\x01\x00" + len(ek.certificate).to_bytes(2, "big") + ek.certificate + b"\xff" * 200
    both = foreign.certificate + ek.certificate
    with raw(line) as (tpm, esapi):
        nv.undefine(tpm, 0x01C00002, ESYS_TR.PLATFORM, ESYS_TR.PASSWORD)
        for index, content in (
            (0x01C00002, wrapped),
            (0x01C0000A, foreign.certificate),
            (0x01C00100, both[:1200]),
            (0x01C00101, both[1200:] + bytes(16)),
        ):
            nv.define(esapi, index, len(content), ESYS_TR.OWNER, ESYS_TR.PASSWORD)
            nv.write(tpm, index, content, ESYS_TR.OWNER, ESYS_TR.PASSWORD)
    with line.visit() as tpm:
        report = tpm.get(EndorsementIdentity).derive(lasting(), "L-2")
    keys = {key.template: key for key in report.keys}
    assert keys["L-1"].certificate == ek.certificate
    assert keys["L-2"].origin is EkOrigin.TEMPLATE, "derived to see whether the certificate is for it"
    assert keys["L-2"].certificate is None
    assert report.stray_certificates == (foreign.certificate,)
    assert report.chain == (foreign.certificate, ek.certificate)


def test_another_tpm_can_not_stand_in_for_the_one_on_record(
    line: Recorder, ek: EndorsementKey, tmp_path: Path, ek_ca: Path
) -> None:
    manufacture(tmp_path / "other", ek_ca)
    secret = Secret.random()
    with SwtpmProcess(tmp_path / "other") as process:
        other = Recorder(process)
        with other.visit() as tpm:
            for action in (
                lambda: tpm.get(Ownership).set_auth(lasting(), ek, Hierarchy.OWNER, secret, EMPTY),
                lambda: prove_ak(tpm, ek),
                lambda: tpm.get(EndorsementIdentity).persist(lasting(), ek),
            ):
                with pytest.raises(EkMismatch):
                    action()
        assert CC_HIERARCHY_CHANGE_AUTH not in other.codes
        assert not other.carried(secret.reveal())


def test_a_wrong_secret_from_the_tpm_proves_nothing(line: Recorder, ek: EndorsementKey) -> None:
    def flip(command: bytes, response: bytes) -> bytes:
        if int.from_bytes(command[6:10], "big") != CC_ACTIVATE_CREDENTIAL:
            return response
        return response[:17] + bytes([response[17] ^ 1]) + response[18:]

    line.after = flip
    with line.visit() as tpm, pytest.raises((ResidencyUnproven, TpmError)):
        prove_ak(tpm, ek)


def test_a_key_that_could_have_come_from_outside_is_not_resident(line: Recorder, ek: EndorsementKey) -> None:
    with line.visit() as tpm:
        tpm.get(Ownership).make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
    with raw(line) as (theirs, esapi), theirs.persistent(templates.SRK_HANDLE) as srk:
        area = TPM2B_PUBLIC(
            publicArea=TPMT_PUBLIC.parse(
                "ecc_nist_p256:null:null", objectAttributes="sensitivedataorigin|userwithauth|noda|sign"
            )
        )
        private, made, _, _, _ = esapi.create(srk, None, area)
        item = esapi.load(srk, private, made)
        with theirs.flushing(item):
            esapi.evict_control(ESYS_TR.OWNER, item, templates.DEVICE_KEY_HANDLE)
    with line.visit() as tpm:
        key = tpm.get(KeyPlace).key(lasting())
        assert key is not None
        assert not key.resident
        with pytest.raises(ResidencyUnproven):
            prove_resident(tpm, ek, key)


def test_what_is_too_long_for_a_name_or_for_the_tpm_is_refused(line: Recorder, ek: EndorsementKey) -> None:
    with line.visit() as tpm:
        tpm.get(Ownership).make_srk(lasting(), ek, SrkTemplate.P256, EMPTY)
        tpm.get(KeyPlace).make_key(lasting(), KeyType.P256, EMPTY)
        with pytest.raises(CredentialError):
            tpm.get(KeyPlace).csr(lasting(), "x" * 65)
        with pytest.raises(CredentialError):
            tpm.get(CertificateStore).install(lasting(), [b"\x30\x00"] * (2 + len(ISSUER_INDEXES)))
        with pytest.raises(TpmError):
            tpm.get(CertificateStore).install(lasting(), [b"\x30" + bytes(4000)])


# --- what other tools say ---------------------------------------------------------------------------------------


def test_tpm2_tools_see_what_the_driver_says(
    line: Recorder, swtpm: SwtpmProcess, ek: EndorsementKey, tpm_state: Path, tmp_path: Path
) -> None:
    assert ek.certificate
    owner = Secret(b"tools-can-type-this")
    with line.visit() as tpm:
        identity, own = tpm.get(EndorsementIdentity), tpm.get(Ownership)
        srk = own.make_srk(lasting(), ek, SrkTemplate.RSA2048, EMPTY)
        own.set_auth(lasting(), ek, Hierarchy.OWNER, owner, EMPTY)
        own.set_lockout_policy(lasting(), ek, LockoutPolicy(9, 99, 999), EMPTY)
        key = tpm.get(KeyPlace).make_key(lasting(), KeyType.P256, owner)
        tpm.get(CertificateStore).install(lasting(), [ek.certificate])
        description = identity.describe(lasting())
    assert description.software
    swtpm.power_off()
    with listening(tpm_state, tmp_path / "s") as (_, tcti):

        def tool(*arguments: str) -> bytes:
            return subprocess.run(
                [*arguments, "-T", tcti], capture_output=True, check=True, timeout=20, cwd=tmp_path
            ).stdout

        for handle, public in ((0x81020000, key.public), (0x81000001, srk), (0x81010001, ek.public)):
            tool("tpm2_readpublic", "-c", hex(handle), "-o", "public")
            assert (tmp_path / "public").read_bytes() == public
        properties = tool("tpm2_getcap", "properties-variable").decode()
        for line_of_tool in (
            "ownerAuthSet:              1",
            "lockoutAuthSet:            0",
            "inLockout:                 0",
        ):
            assert line_of_tool in properties
        for name, value in (("MAX_AUTH_FAIL", 9), ("LOCKOUT_INTERVAL", 99), ("LOCKOUT_RECOVERY", 999)):
            assert f"TPM2_PT_{name}: 0x{value:X}" in properties
        assert tool("tpm2_nvread", hex(LEAF_INDEX)) == ek.certificate
        tool("tpm2_changeauth", "-c", "owner", "-p", owner.reveal().decode(), "other")
