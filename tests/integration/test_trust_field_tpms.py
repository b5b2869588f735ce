"""EK certificates as makers leave them in a TPM's NV, written there by tpm2-tools, read by the driver, judged whole."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from drivers.tpm import certificates, public
from drivers.tpm.driver import TCTI, TctiSettings
from hal.driver import Bindings, opened
from hal.errors import EkMismatch, EkRevoked, EkUntrusted
from hal.interfaces import EndorsementIdentity
from hal.types import EndorsementKey
from station.messages import Facts
from station.recipe import PlannedStep
from station.steps import tpm_identity
from station.trust.crl import read_crl
from station.trust.judge import Judge
from station.trust.reading import read_certificate
from station.trust.trust_set import Origin, assemble
from tests.fixtures_tpm import lasting, listening
from tests.runner_parts import Stage
from tests.trust_parts import DAY, KINDS, NOW, Maker, policy

LOW, HIGH, CHAIN, CHAIN_NEXT = 0x01C00002, 0x01C00012, 0x01C00100, 0x01C00101
ROOT, MIDDLE, STRANGER = Maker("maker root"), Maker("maker intermediate"), Maker("a stranger")
ROOT_DER, MIDDLE_DER = ROOT.ca(ROOT), ROOT.ca(MIDDLE)


def as_it_is(der: bytes) -> bytes:
    return der


def wrapped(der: bytes) -> bytes:
    """TCG PC Client Specific Implementation 1.2, 7.3.2, as some makers still write it."""
    return b"\x10\x01\x00" + len(der).to_bytes(2, "big") + der


def padded(der: bytes) -> bytes:
    return der + b"\xff" * 300


def both(der: bytes) -> bytes:
    return wrapped(der) + bytes(200)


class JudgingStage(Stage):
    """Where the station's own judge answers."""

    def __init__(self, board: Bindings, judge: Judge, trust: str, crl: str) -> None:
        super().__init__(board)
        self._judge, self._policy = judge, policy(trust, crl)

    def judge_ek(self, ek: EndorsementKey, chain: Sequence[bytes]) -> Facts:
        return self._judge.judge(self._policy, ek.public, ek.certificate, chain).facts()


class FieldTpm:
    """A swtpm that a maker's tools have written to."""

    def __init__(self, tcti: str, folder: Path) -> None:
        self._tcti, self._folder = tcti, folder

    def tool(self, *words: str) -> None:
        done = subprocess.run([*words, "-T", self._tcti], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def erase(self, index: int) -> None:
        self.tool("tpm2_nvundefine", "-C", "p", hex(index))

    def write(self, index: int, content: bytes) -> None:
        path = self._folder / "nv"
        path.write_bytes(content)
        attributes = "ownerwrite|ownerread|authread|no_da"
        self.tool("tpm2_nvdefine", "-C", "o", "-s", str(len(content)), "-a", attributes, hex(index))
        self.tool("tpm2_nvwrite", "-C", "o", "-i", str(path), hex(index))

    def key(self, template: str) -> Any:
        with opened([("tpm", TCTI, TctiSettings(tcti=self._tcti))], {}) as board:
            report = board.get(EndorsementIdentity).derive(lasting(), template)
        found = next(key for key in report.keys if key.template == template)
        return load_der_public_key(public.spki(found.public))

    def identify(self, trust: str = "certificate", crl: str = "warn", lists: Sequence[bytes] = ()) -> Facts:
        """The look of `tpm-identity`, judged by the root alone: the intermediate is in the TPM, or nowhere."""
        known = assemble(
            Origin("bundle", "b", 1), [read_certificate(ROOT_DER)], [read_crl(item) for item in lists]
        )
        options = tpm_identity.Options(ek_trust=trust, replace_persisted=True)  # type: ignore[arg-type]
        with opened([("tpm", TCTI, TctiSettings(tcti=self._tcti))], {}) as board:
            stage = JudgingStage(board, Judge(lambda: known, lambda _name: None), trust, crl)
            stage.run(PlannedStep(tpm_identity.STEP, options), trip=stage.trip(call=lasting()))
        return stage.facts["tpm-identity.endorsement-key"]


@pytest.fixture
def tpm(tpm_state: Path, tmp_path: Path) -> Any:
    with listening(tpm_state, tmp_path / "s") as (_, tcti):
        field = FieldTpm(tcti, tmp_path)
        for index in (LOW, 0x01C00016):
            field.erase(index)
        yield field


@pytest.mark.parametrize(
    ("place", "template", "form"),
    [(LOW, "L-1", as_it_is), (LOW, "L-1", wrapped), (LOW, "L-1", padded), (HIGH, "H-1", both)],
    ids=["low", "low wrapped", "low padded", "high wrapped and padded"],
)
def test_each_kind_of_certificate_in_each_form_is_found_and_vouches_with_the_tpms_own_chain(
    tpm: FieldTpm, place: int, template: str, form: Callable[[bytes], bytes]
) -> None:
    key = tpm.key(template)
    tpm.write(CHAIN, form(MIDDLE_DER)[:700])
    tpm.write(CHAIN_NEXT, form(MIDDLE_DER)[700:] or b"\0")
    for kind in KINDS:
        certificate = MIDDLE.ek(key, kind)
        tpm.write(place, form(certificate))
        facts = tpm.identify()
        assert facts["ek_trust"] == "certificate"
        assert facts["ek_anchor"] == "CN=maker root"
        assert facts["ek_certificate"] == certificate
        assert facts["ek_template"] == template
        tpm.erase(place)


@pytest.mark.parametrize("kind", KINDS)
def test_the_driver_finds_the_key_of_a_certificate_in_each_encoding(kind: str, tpm: FieldTpm) -> None:
    key = tpm.key("L-1")
    expected = public.normalised(key)
    assert certificates.key_of(MIDDLE.ek(key, kind)) == expected
    assert certificates.key_of(wrapped(MIDDLE.ek(key, kind))) is None
    assert certificates.key_of(MIDDLE.ek(key, kind)[:-40]) is None


def test_no_certificate_a_foreign_one_and_one_of_another_key_are_told_apart(tpm: FieldTpm) -> None:
    with pytest.raises(EkUntrusted, match="no EK certificate"):
        tpm.identify()
    assert tpm.identify("none")["ek_trust"] == "none"
    with pytest.raises(EkUntrusted, match="nor is it in a vendor's list"):
        tpm.identify("certificate-or-list")
    key, other = tpm.key("L-1"), tpm.key("H-1")
    tpm.write(LOW, STRANGER.ek(key, "oaep"))
    with pytest.raises(EkUntrusted, match=r"a stranger.*no chain from there"):
        tpm.identify()
    tpm.erase(LOW)
    tpm.write(LOW, ROOT.ek(other, "oaep critical-policy"))
    with pytest.raises(EkMismatch):
        tpm.identify()


def test_an_expired_vendor_list_warns_or_refuses_and_a_revoked_chip_is_refused_by_it(tpm: FieldTpm) -> None:
    key = tpm.key("L-1")
    tpm.write(LOW, padded(ROOT.ek(key, "oaep critical-policy", serial=99)))
    expired = {"start": NOW - 60 * DAY, "end": NOW - 30 * DAY}
    assert tpm.identify(lists=[ROOT.crl(**expired)])["ek_crl"] == "stale"
    assert tpm.identify(crl="refuse", lists=[ROOT.crl()])["ek_crl"] == "good"
    with pytest.raises(EkUntrusted, match="due for renewal"):
        tpm.identify(crl="refuse", lists=[ROOT.crl(**expired)])
    with pytest.raises(EkRevoked):
        tpm.identify(crl="off", lists=[ROOT.crl(99, **expired)])
