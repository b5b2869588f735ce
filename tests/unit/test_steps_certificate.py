"""`certificate`, `key-identity`, `tpm-identity` in one process: whose key it is, and what is believed of a board."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from hal.call import Call
from hal.errors import (
    CredentialError,
    HallmarkError,
    KeyConflict,
    PossessionUnproven,
    SoftwareTpmRefused,
    VerifyMismatch,
)
from hal.interfaces import EndorsementIdentity
from hal.types import EndorsementReport, TpmDescription
from station.recipe import PlannedStep
from station.steps import key_identity, tpm_identity
from tests.certificate_parts import CA, Ca, Visit, spki
from tests.runner_parts import UNIT, Stage, order, without_pauses

# --- whose key --------------------------------------------------------------------------------------------------


def test_a_blank_board_gets_a_key_a_certificate_and_proves_it() -> None:
    visit = Visit()
    visit.run()
    assert order(
        visit.stage.said,
        *("begin certificate.key", "make key", "done certificate.key"),
        *("begin certificate.issue", "issue p", "done certificate.issue"),
        *("begin certificate.install", "install", "done certificate.install"),
        "finish certificate.prove",
    )
    assert visit.stage.facts["certificate.install"]["certificate_roles"] == ["link"]


def test_a_unit_that_comes_back_keeps_key_and_certificate() -> None:
    first = Visit()
    first.run()
    again = Visit(first.recorded())
    again.board.private, again.board.chain = first.board.private, first.board.chain
    again.run()
    assert not any(said.startswith(("make", "issue", "install", "begin")) for said in again.stage.said)


@pytest.mark.parametrize("intents", [(), ("certificate.issue",)])
def test_a_key_that_nobody_here_made_is_a_conflict_and_stays(intents: tuple[str, ...]) -> None:
    visit = Visit(intents=intents)
    visit.board.private = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(KeyConflict, match="did not make"):
        visit.run()
    assert "issue p" not in visit.stage.said


def test_another_key_than_the_recorded_one_is_a_conflict_even_if_one_was_begun() -> None:
    first = Visit()
    first.run()
    again = Visit(first.recorded(), ["certificate.key"])
    again.board.private = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(KeyConflict):
        again.run()


def test_a_recorded_key_that_is_gone_is_a_conflict_and_no_new_one_is_made() -> None:
    first = Visit()
    first.run()
    again = Visit(first.recorded())
    with pytest.raises(KeyConflict, match="gone from the device"):
        again.run()
    assert "make key" not in again.stage.said


def test_a_key_from_before_a_crash_is_ours() -> None:
    visit = Visit(intents=["certificate.key"])
    visit.board.private = ec.generate_private_key(ec.SECP256R1())
    visit.run()
    assert "make key" not in visit.stage.said


def test_the_key_that_a_board_is_known_by_is_the_key_of_its_certificate() -> None:
    visit = Visit()
    visit.board.private = ec.generate_private_key(ec.SECP256R1())
    visit.identity = spki(visit.board.private)
    visit.run()
    assert "make key" not in visit.stage.said


@pytest.mark.parametrize("late", ["make key", "install"])
def test_a_lost_answer_is_no_conflict_and_nothing_is_done_twice(
    late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pauses(monkeypatch)
    visit = Visit()
    visit.board.late = late
    visit.run()
    assert visit.stage.said.count(late) == 1
    assert visit.issued == ["p"]


# --- what is believed of the board ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        ({"damage": True}, PossessionUnproven),
        ({"csr_key": ec.generate_private_key(ec.SECP256R1())}, KeyConflict),
        ({"csr_name": "somebody-else"}, CredentialError),
        ({"prover": ec.generate_private_key(ec.SECP256R1())}, PossessionUnproven),
    ],
)
def test_a_board_that_lies_gets_no_pass(lie: dict[str, object], error: type[HallmarkError]) -> None:
    visit = Visit()
    for name, value in lie.items():
        setattr(visit.board, name, value)
    with pytest.raises(error):
        visit.run()
    assert ("issue p" in visit.stage.said) == ("prover" in lie)
    assert not any(said.startswith("finish") for said in visit.stage.said)


def test_a_board_that_keeps_another_certificate_than_it_was_given_fails() -> None:
    visit = Visit()
    visit.board.install = lambda call, chain: None  # type: ignore[method-assign]
    with pytest.raises(VerifyMismatch):
        visit.run()


@pytest.mark.parametrize("change", ["key", "name", "chain"])
def test_a_certificate_on_record_is_checked_before_it_is_used_again(change: str) -> None:
    first = Visit()
    first.run()
    facts = first.recorded()
    key = first.board.private if change != "key" else ec.generate_private_key(ec.SECP256R1())
    assert key is not None
    issuer = CA if change != "chain" else Ca("issuing")
    leaf = issuer.certify(key, UNIT.registration_id if change != "name" else "somebody-else")
    facts["certificate.issue"] = {"certificate_chain": [leaf, CA.certificate]}
    again = Visit(facts)
    again.board.private = first.board.private
    with pytest.raises((KeyConflict, CredentialError)):
        again.run()
    assert "install" not in again.stage.said


@pytest.mark.parametrize("known", [True, False])
def test_a_certificate_of_a_former_ca_of_the_station_is_kept_and_a_strangers_is_not(known: bool) -> None:
    first = Visit()
    first.run()
    again = Visit(first.recorded())
    again.board.private, again.board.chain = first.board.private, first.board.chain
    issuers = (Ca("issuing 2").certificate, *([CA.certificate] if known else []))
    trip = again.stage.trip
    again.stage.trip = lambda **given: dataclasses.replace(  # type: ignore[method-assign]
        made := trip(**given), about=dataclasses.replace(made.about, issuers=issuers)
    )
    if known:
        again.run()
        assert again.issued == []
    else:
        with pytest.raises(CredentialError, match="none of the CAs that this station has had"):
            again.run()


# --- who a board is ---------------------------------------------------------------------------------------------


def test_a_board_without_tpm_is_known_by_a_key_that_it_shows_to_have_before_it_joins() -> None:
    visit = Visit()
    visit.stage.run(PlannedStep(key_identity.STEP, key_identity.Options()))
    assert order(visit.stage.said, "make key", "done key-identity.possession", "join key")
    assert visit.board.private is not None
    digest = hashlib.sha256(spki(visit.board.private)).digest()
    name = visit.stage.facts["key-identity.key"]["registration_id"]
    assert isinstance(name, str)
    assert len(name) == 52
    assert digest.hex() not in visit.stage.said


def test_a_copied_public_key_opens_no_record() -> None:
    visit = Visit()
    visit.board.private = ec.generate_private_key(ec.SECP256R1())
    visit.board.prover = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(PossessionUnproven):
        visit.stage.run(PlannedStep(key_identity.STEP, key_identity.Options()))
    assert "join key" not in visit.stage.said


class SoftwareTpm:
    def describe(self, call: Call) -> TpmDescription:
        del call
        return TpmDescription("IBM ", "SW  TPM", "1.0", "1.59", software=True)

    def endorsements(self, call: Call) -> EndorsementReport:
        del call
        return EndorsementReport(())


def test_a_software_tpm_is_refused_in_production_before_it_is_asked_anything_else() -> None:
    stage = Stage()
    stage.board.add("tpm", EndorsementIdentity, SoftwareTpm())
    with pytest.raises(SoftwareTpmRefused, match="SW  TPM"):
        stage.run(PlannedStep(tpm_identity.STEP, tpm_identity.Options()), trip=stage.trip(bench=False))
    with pytest.raises(HallmarkError) as found:
        stage.run(PlannedStep(tpm_identity.STEP, tpm_identity.Options()), trip=stage.trip(bench=True))
    assert found.value.code == "EkUntrusted"


@pytest.mark.parametrize(("convention", "length"), [("ek-base32", 52), ("ek-hex", 64)])
def test_registration_ids_are_as_field_clients_compute_them(convention: str, length: int) -> None:
    """The Azure SDKs: base32 of SHA-256 over TPM2B_PUBLIC without padding, lower case; IoT Edge: hexadecimal."""
    public = bytes.fromhex("013a") + bytes(range(256)) + bytes(58)
    name = tpm_identity.registration_id(public, convention)
    assert len(name) == length
    assert name == name.lower()
    if convention == "ek-hex":
        assert name == hashlib.sha256(public).hexdigest()
