"""The right EK on real (software) TPMs, in every state that somebody before us may have left them in."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.tpm import context, nv, sessions, templates
from drivers.tpm.context import Tpm
from drivers.tpm.tss import ESYS_TR
from hal.errors import AlreadyOwned, EkMismatch, EkUntrusted
from hal.interfaces import EndorsementIdentity, Ownership
from hal.secret import EMPTY, Secret
from hal.types import EkOrigin, EndorsementKey, Hierarchy
from station.ek_choice import EK_HANDLE, Choice
from station.recipe import PlannedStep
from station.steps import tpm_identity
from station.steps.tpm_identity import EndorsementKeyLook, PersistEk, reconciled
from tests.fixtures_tpm import Recorder, lasting, listening
from tests.runner_parts import Stage

CC_CREATE_PRIMARY = 0x131
CC_EVICT_CONTROL = 0x120
CC_NV_READ = 0x14E
RSA_INDEX, ECC_INDEX, P384_INDEX = 0x01C00002, 0x01C0000A, 0x01C00016


@contextlib.contextmanager
def raw(line: Recorder) -> Iterator[Tpm]:
    tpm = Tpm(line)
    with tpm.use(lasting(), "test"):
        yield tpm
    tpm.close()


def evict(tpm: Tpm) -> None:
    if tpm.read_public(EK_HANDLE) is not None:
        tpm.evict(EK_HANDLE)


def put(tpm: Tpm, template: str) -> None:
    """The EK of that template at 0x81010001, as some other tool would leave it there."""
    evict(tpm)
    with sessions.derived_ek(tpm, template) as (item, _):
        tpm.connected().tr_close(tpm.connected().evict_control(ESYS_TR.OWNER, item, EK_HANDLE))


def put_foreign(tpm: Tpm) -> None:
    """A storage key of the owner's at 0x81010001."""
    evict(tpm)
    area = templates.ek("L-1", lambda _: None)
    with tpm.primary(Hierarchy.OWNER, area) as (item, _):
        tpm.connected().tr_close(tpm.connected().evict_control(ESYS_TR.OWNER, item, EK_HANDLE))


def clear(tpm: Tpm) -> None:
    tpm.connected().clear(ESYS_TR.PLATFORM)


def drop_certificates(tpm: Tpm, *indexes: int) -> None:
    for index in indexes:
        nv.undefine(tpm, index, ESYS_TR.PLATFORM, ESYS_TR.PASSWORD)


def write_certificate(tpm: Tpm, index: int, der: bytes) -> None:
    nv.define(tpm.connected(), index, len(der), ESYS_TR.OWNER, ESYS_TR.PASSWORD)
    nv.write(tpm, index, der, ESYS_TR.OWNER, ESYS_TR.PASSWORD)


@contextlib.contextmanager
def choosing(line: Recorder, options: tpm_identity.Options) -> Iterator[tuple[Stage, Choice]]:
    """The choice of one visit; what was recorded before it is forgotten."""
    line.sent.clear()
    with line.visit() as board:
        stage = Stage(board)
        trip = stage.trip(call=lasting())
        trip.options = options
        _, choice = reconciled(trip)
        yield stage, choice


def derivations(line: Recorder) -> int:
    return line.codes.count(CC_CREATE_PRIMARY)


def persist(stage: Stage, choice: Choice, options: tpm_identity.Options) -> None:
    """The step's own action, with the facts that the look before it gives."""
    trip = stage.trip(call=lasting())
    trip.options = options
    trip.unit = stage.unit
    trip.facts.update(
        ek_public=choice.ek.public,
        ek_name=choice.ek.name,
        ek_origin=choice.ek.origin.value,
        ek_template=choice.ek.template,
        ek_handle=choice.ek.handle,
        ek_evict=choice.evict.public if choice.evict else None,
    )
    action = PersistEk()
    if action.probe(trip) is None:
        action.apply(trip)
    stage.facts["persist"] = action.verify(trip)


OPTIONS = tpm_identity.Options()
REPLACING = tpm_identity.Options(replace_persisted=True)
LENIENT = tpm_identity.Options(ek_certificate="if-present")


def test_a_tpm_as_its_maker_left_it_costs_no_derivation(line: Recorder, ek: EndorsementKey) -> None:
    with choosing(line, OPTIONS) as (_, choice):
        assert choice.ek.name == ek.name
        assert choice.ek.handle == EK_HANDLE
    assert derivations(line) == 0


def test_nothing_persisted_after_a_clear_the_certified_ek_comes_back(
    line: Recorder, ek: EndorsementKey
) -> None:
    with raw(line) as tpm:
        clear(tpm)
    with choosing(line, OPTIONS) as (stage, choice):
        assert choice.ek.name == ek.name
        persist(stage, choice, OPTIONS)
    with line.visit() as board:
        found = board.get(EndorsementIdentity).persisted(lasting())
    assert found is not None
    assert found.name == ek.name


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda tpm: put(tpm, templates.EMPTY_UNIQUE), "empty `unique`"),
        (lambda tpm: put(tpm, "L-2"), "p256 EK of the TCG template L-2"),
        (put_foreign, "a foreign rsa2048 key"),
    ],
    ids=["empty-unique", "ecc", "foreign"],
)
def test_a_wrong_ek_persisted_by_somebody_is_refused_or_replaced_as_the_recipe_says(
    line: Recorder, ek: EndorsementKey, prepare: Callable[[Tpm], None], said: str
) -> None:
    with raw(line) as tpm:
        prepare(tpm)
        wrong = tpm.read_public(EK_HANDLE)
    assert wrong != ek.public
    with pytest.raises(EkMismatch, match=said), choosing(line, OPTIONS):
        pass
    assert CC_EVICT_CONTROL not in line.codes, "a refusal changes nothing"
    with choosing(line, REPLACING) as (stage, choice):
        assert choice.ek.name == ek.name
        assert choice.evict is not None
        assert choice.evict.public == wrong
        persist(stage, choice, REPLACING)
        assert stage.facts["persist"]["ek_evicted"] == wrong, "on record"
    with raw(line) as tpm:
        assert tpm.read_public(EK_HANDLE) == ek.public


def test_a_key_that_came_to_the_handle_after_the_choice_is_not_evicted(
    line: Recorder, ek: EndorsementKey
) -> None:
    with raw(line) as tpm:
        put(tpm, templates.EMPTY_UNIQUE)
    with choosing(line, REPLACING) as (stage, choice):
        pass
    with raw(line) as tpm:
        put(tpm, "L-2")
    with line.visit() as board:
        stage.board = board
        with pytest.raises(EkMismatch, match="wasn't there when this visit began"):
            persist(stage, choice, REPLACING)
        assert choice.evict is not None
        with pytest.raises(EkMismatch):
            board.get(EndorsementIdentity).persist(lasting(), choice.ek, choice.evict)


def test_under_a_strange_owner_auth_nothing_is_evicted_and_the_board_is_refused(
    line: Recorder, ek: EndorsementKey
) -> None:
    with raw(line) as tpm:
        put(tpm, templates.EMPTY_UNIQUE)
        wrong = tpm.read_public(EK_HANDLE)
    with choosing(line, REPLACING) as (stage, choice):
        stage.board.get(Ownership).set_auth(lasting(), choice.ek, Hierarchy.OWNER, Secret.random(), EMPTY)
        with pytest.raises(AlreadyOwned):
            persist(stage, choice, REPLACING)
    with raw(line) as tpm:
        assert tpm.read_public(EK_HANDLE) == wrong


def test_without_any_certificate_the_tcg_ek_is_told_from_the_cloud_sdks(
    line: Recorder, ek: EndorsementKey
) -> None:
    with raw(line) as tpm:
        drop_certificates(tpm, RSA_INDEX, P384_INDEX)
    with pytest.raises(EkUntrusted, match="no EK certificate"), choosing(line, OPTIONS):
        pass
    with choosing(line, LENIENT) as (_, choice):
        assert choice.ek.name == ek.name
        assert choice.ek.certificate is None
    with raw(line) as tpm:
        put(tpm, templates.EMPTY_UNIQUE)
    with pytest.raises(EkMismatch, match="empty `unique`"), choosing(line, LENIENT):
        pass


def test_a_certificate_for_ecc_only(line: Recorder, ek: EndorsementKey) -> None:
    with raw(line) as tpm:
        drop_certificates(tpm, RSA_INDEX)
    with pytest.raises(EkUntrusted, match="p384 only"), choosing(line, OPTIONS):
        pass
    with raw(line) as tpm:
        evict(tpm)
    with choosing(line, tpm_identity.Options(ek="any")) as (stage, choice):
        assert choice.ek.template == "H-3"
        persist(stage, choice, tpm_identity.Options(ek="any"))
    with raw(line) as tpm:
        assert tpm.read_public(EK_HANDLE) == choice.ek.public


def test_a_certificate_that_names_another_tpms_key(line: Recorder, ek: EndorsementKey) -> None:
    with line.visit() as board:
        report = board.get(EndorsementIdentity).endorsements(lasting())
    (other,) = [item.certificate for item in report.certificates if item.template == "H-3"]
    with raw(line) as tpm:
        drop_certificates(tpm, RSA_INDEX)
        write_certificate(tpm, RSA_INDEX, other)
    with pytest.raises(EkMismatch, match="0x01c00002"), choosing(line, OPTIONS):
        pass


def test_a_slow_chip_makes_its_ek_once_a_visit(
    line: Recorder, ek: EndorsementKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "WORTH_KEEPING", 0.0)
    with raw(line) as tpm:
        clear(tpm)
    with choosing(line, OPTIONS) as (stage, choice):
        persist(stage, choice, OPTIONS)
        stage.board.get(Ownership).set_auth(lasting(), choice.ek, Hierarchy.LOCKOUT, Secret.random(), EMPTY)
        assert derivations(line) == 1


def test_a_kept_ek_is_made_again_after_the_tpm_was_reset(
    line: Recorder, ek: EndorsementKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "WORTH_KEEPING", 0.0)
    with raw(line) as tpm:
        clear(tpm)
    with choosing(line, OPTIONS) as (stage, choice):
        line.inner.power_cut()  # type: ignore[attr-defined]
        line.inner.power_on()  # type: ignore[attr-defined]
        with contextlib.suppress(Exception):
            stage.board.get(EndorsementIdentity).persisted(lasting())
        persist(stage, choice, OPTIONS)
        assert derivations(line) == 2
    with raw(line) as tpm:
        assert tpm.read_public(EK_HANDLE) == ek.public


def test_other_tools_find_the_same_eks(tpm_state: Path, tmp_path: Path) -> None:
    """tpm2-tools derive the L-1 and L-2 EKs on their own."""
    with listening(tpm_state, tmp_path / "s") as (_, tcti):
        names = {}
        for algorithm, template in (("rsa", "L-1"), ("ecc", "L-2")):
            public = tmp_path / template
            subprocess.run(
                ["tpm2_createek", "-G", algorithm, "-c", tmp_path / "ek.ctx", "-u", public, "-T", tcti],
                check=True,
                capture_output=True,
            )
            subprocess.run(["tpm2_flushcontext", "-t", "-T", tcti], check=True, capture_output=True)
            names[template] = public.read_bytes()
        from drivers.tpm.driver import TCTI, TctiSettings
        from hal.driver import opened

        with opened([("tpm", TCTI, TctiSettings(tcti=tcti))], {}) as board:
            identity = board.get(EndorsementIdentity)
            identity.derive(lasting(), "L-1")
            report = identity.derive(lasting(), "L-2")
    found = {key.template: key.public for key in report.keys if key.origin is EkOrigin.TEMPLATE}
    assert found == names


def test_the_whole_step_puts_the_choice_on_record(line: Recorder, ek: EndorsementKey) -> None:
    with raw(line) as tpm:
        put(tpm, templates.EMPTY_UNIQUE)
    with line.visit() as board:
        stage = Stage(board)
        options = tpm_identity.Options(ek_certificate="if-present", replace_persisted=True)
        trip = stage.trip(call=lasting())
        stage.run(PlannedStep(tpm_identity.STEP, options), trip=trip)
    look = stage.facts[f"tpm-identity.{EndorsementKeyLook.name}"]
    assert look["ek_name"] == ek.name
    lines = look["ek_candidates"]
    assert isinstance(lines, list)
    assert any("chosen" in str(line) and "named by the EK certificate" in str(line) for line in lines)
    assert any("to be replaced" in str(line) for line in lines)
