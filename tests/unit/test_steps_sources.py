"""The certificate step where nothing is issued here: what is expected of the device, the order, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hal.errors import CertificateUntrusted, CredentialError, HallmarkError, KeyConflict, RecipeError
from hal.types import KeyPurpose, SealedKey, TransportKey
from station.action import DeliveredKey
from station.recipe import PlannedStep
from station.steps import key_identity
from tests.certificate_parts import CA, Visit, spki
from tests.protection_parts import checked
from tests.runner_parts import UNIT, order
from tests.stock_parts import new_key, self_signed

POOL: dict[str, Any] = {"profile": "", "source": "pool", "lot": "L1"}
DEVICE: dict[str, Any] = {"profile": "", "source": "device"}


def with_key(recorded: Any = None) -> Visit:
    visit = Visit(recorded)
    visit.board.private = new_key()
    visit.stage.chain = [CA.certify(visit.board.private, UNIT.registration_id), CA.certificate]
    return visit


def test_a_certificate_from_a_lot_is_the_units_before_it_is_installed_and_the_same_one_again() -> None:
    visit = with_key()
    visit.run(**POOL)
    assert order(visit.stage.said, "draw", "done certificate.draw", "install", "finish certificate.prove")
    assert visit.stage.facts["certificate.draw"]["certificate_source"] == "pool:L1"
    again = Visit(visit.recorded())
    again.board.private, again.board.chain = visit.board.private, visit.board.chain
    again.run(**POOL)
    assert "draw" not in again.stage.said
    assert "install" not in again.stage.said


@pytest.mark.parametrize("options", [POOL, DEVICE])
def test_no_key_is_made_where_it_has_to_be_there(options: dict[str, Any]) -> None:
    visit = Visit()
    with pytest.raises(KeyConflict, match="no key in the device"):
        visit.run(**options)
    assert not {"make key", "draw", "adopt"} & set(visit.stage.said)


@pytest.mark.parametrize("options", [POOL, DEVICE])
def test_another_key_than_the_recorded_one_gets_nothing(options: dict[str, Any]) -> None:
    visit = Visit({"certificate.key": {"key_spki": spki(new_key())}})
    visit.board.private = new_key()
    with pytest.raises(KeyConflict, match="another key than the recorded"):
        visit.run(**options)


def test_a_certificate_of_a_lot_for_another_key_or_name_is_not_installed() -> None:
    for chain, error in (
        ([CA.certify(new_key(), UNIT.registration_id)], KeyConflict),
        (None, CredentialError),
    ):
        visit = with_key()
        assert visit.board.private is not None
        visit.stage.chain = chain or [CA.certify(visit.board.private, "somebody-else")]
        with pytest.raises(error):
            visit.run(**POOL)
        assert "install" not in visit.stage.said
    visit = with_key()
    assert visit.board.private is not None
    visit.stage.chain = [CA.certify(visit.board.private, "somebody-else")]
    visit.run(**POOL, subject="any")


def test_what_the_device_came_with_is_adopted_and_left_as_it_is() -> None:
    visit = Visit()
    visit.board.private = new_key()
    visit.board.chain = [self_signed(UNIT.registration_id, visit.board.private)]
    visit.run(**DEVICE)
    assert order(visit.stage.said, "adopt", "done certificate.adopt", "finish certificate.prove")
    assert not {"make key", "install"} & set(visit.stage.said)
    facts = visit.stage.facts["certificate.adopt"]
    assert (facts["certificate_source"], facts["certificate_roles"]) == ("device", ["link"])


def test_a_device_without_its_certificate_or_with_another_keys_or_a_refused_one_fails() -> None:
    visit = with_key()
    with pytest.raises(CredentialError, match="holds no certificate"):
        visit.run(**DEVICE)
    visit = with_key()
    visit.board.chain = [self_signed(UNIT.registration_id, new_key())]
    with pytest.raises(KeyConflict):
        visit.run(**DEVICE)
    assert "adopt" not in visit.stage.said
    visit = with_key()
    assert visit.board.private is not None
    visit.board.chain = [self_signed(UNIT.registration_id, visit.board.private)]
    visit.stage.fails["adopt"] = [CertificateUntrusted("not in the manifest")]
    with pytest.raises(CertificateUntrusted):
        visit.run(**DEVICE)
    assert "finish certificate.prove" not in visit.stage.said


# --- keys that are delivered --------------------------------------------------------------------------------------


class Delivering(Visit):
    """Its board takes keys; its station has one for it."""

    def __init__(self, recorded: Any = None, *, lies: bool = False) -> None:
        from hal.interfaces import KeyDelivery

        super().__init__(recorded)
        self.made, self.lies = new_key(), lies
        self.stage.board.add("link", KeyDelivery, self)
        self.stage.challenge = lambda: bytes(32)  # type: ignore[method-assign]
        self.stage.deliver_key = self._deliver  # type: ignore[method-assign]
        self.stage.chain = [CA.certify(self.made, UNIT.registration_id), CA.certificate]

    def _deliver(self, purpose: KeyPurpose, transport: TransportKey, identity: bytes) -> DeliveredKey:
        self.stage.say(f"deliver {purpose.value}")
        return DeliveredKey(SealedKey(purpose, "r1", b"", b""), b"", spki(self.made))

    def transport_key(self, call: object, challenge: bytes) -> TransportKey:
        return TransportKey(b"point")

    def install_key(self, call: object, sealed: SealedKey) -> bytes:
        self.board.private = new_key() if self.lies else self.made
        return spki(self.board.private)

    def prove_secret(self, call: object, nonce: bytes) -> bytes | None:
        return None


DELIVERED = [{**POOL, "key_from": "pool"}, {"key_from": "token"}]


@pytest.mark.parametrize("options", DELIVERED)
def test_a_key_made_elsewhere_is_delivered_once_and_proven(options: dict[str, Any]) -> None:
    visit = Delivering()
    visit.run(**options)
    assert visit.stage.said.count("deliver private-key") == 1
    assert "make key" not in visit.stage.said
    again = Delivering(visit.recorded())
    again.made = visit.made
    again.board.private, again.board.chain = visit.board.private, visit.board.chain
    again.run(**options)
    assert "deliver private-key" not in again.stage.said


@pytest.mark.parametrize("options", DELIVERED)
def test_a_board_that_puts_another_key_in_its_place_gets_no_certificate(options: dict[str, Any]) -> None:
    visit = Delivering(lies=True)
    with pytest.raises(KeyConflict, match="another key now than the one that it was given"):
        visit.run(**options)
    assert "install" not in visit.stage.said


@pytest.mark.parametrize("options", DELIVERED)
def test_a_key_that_is_there_already_and_not_ours_is_not_replaced(options: dict[str, Any]) -> None:
    visit = Delivering()
    visit.board.private = new_key()
    with pytest.raises(KeyConflict, match="did not deliver"):
        visit.run(**options)
    assert "deliver private-key" not in visit.stage.said


def test_a_delivered_key_that_is_gone_is_not_delivered_anew() -> None:
    visit = Delivering()
    visit.run(key_from="token")
    again = Delivering(visit.recorded())
    with pytest.raises(KeyConflict, match="gone from the device"):
        again.run(key_from="token")


# --- names ----------------------------------------------------------------------------------------------------------


def identified(visit: Visit, **options: Any) -> dict[str, Any]:
    chosen = key_identity.Options(**options)
    visit.stage.run(PlannedStep(key_identity.STEP, chosen))
    return dict(visit.stage.facts["key-identity.key"])


def test_a_boards_name_may_come_from_the_certificate_that_its_key_has() -> None:
    visit = with_key()
    assert visit.board.private is not None
    visit.board.chain = [self_signed("element-0001", visit.board.private)]
    assert identified(visit, registration_id="certificate")["registration_id"] == "element-0001"
    pooled = with_key()
    assert identified(pooled, registration_id="pool")["registration_id"] == "r1"
    assert "stock name" in pooled.stage.said


@pytest.mark.parametrize(
    ("chain", "error", "said"),
    [
        ([], CertificateUntrusted, "holds no certificate"),
        ([self_signed("x-1", new_key())], KeyConflict, "for another key"),
        ("Bad Name", CertificateUntrusted, "can't be a registration ID"),
        ("../../etc", CertificateUntrusted, "can't be a registration ID"),
    ],
)
def test_a_name_that_cannot_be_believed_is_refused_before_the_board_joins(
    chain: Any, error: type[HallmarkError], said: str
) -> None:
    visit = with_key()
    assert visit.board.private is not None
    visit.board.chain = [self_signed(chain, visit.board.private)] if isinstance(chain, str) else chain
    with pytest.raises(error, match=said):
        identified(visit, registration_id="certificate")
    assert "join key" not in visit.stage.said


def test_no_key_is_made_where_its_name_has_to_come_from_a_certificate() -> None:
    visit = Visit()
    with pytest.raises(KeyConflict, match="its name is to come from"):
        identified(visit, registration_id="pool")
    assert "make key" not in visit.stage.said


# --- recipes --------------------------------------------------------------------------------------------------------

TEXT = "[[step]]\nuse = 'enroll'\nattestation = 'x509'\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ('source = "pool"\n', "`lot` names the lot"),
        ('source = "pool"\nlot = "L1"\nprofile = "client-p256"\n', "`profile` names the certificate profile"),
        ('source = "device"\nlot = "L1"\n', "`lot` names the lot"),
        ('source = "shop"\n', "'issue', 'pool', 'preloaded' or 'device'"),
        ('source = "device"\nkey_from = "token"\n', "`key_from` 'token' goes with source 'issue'"),
        ('profile = "client-p256"\nkey_from = "pool"\n', "`key_from` 'token' goes with source 'issue'"),
        ('profile = "client-p256"\nsubject = "any"\n', "no other `subject`"),
        ('source = "device"\nsubject = "any"\n' + TEXT, "enrolls the certificate by its common name"),
        ("", "`profile` names the certificate profile"),
    ],
)
def test_sources_that_do_not_fit_are_refused_in_the_recipe(tmp_path: Path, options: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        checked(tmp_path, "file", "client-p256", certificate=options)
    assert caught.value.line is not None


def test_each_source_has_its_actions(tmp_path: Path) -> None:
    for options, actions in (
        ('profile = "client-p256"\n', "key issue install prove"),
        ('profile = "client-p256"\nkey_from = "token"\n', "key issue install prove"),
        ('source = "pool"\nlot = "L1"\n', "key draw install prove"),
        ('source = "pool"\nlot = "L1"\nkey_from = "pool"\n', "draw key install prove"),
        ('source = "preloaded"\nlot = "V1"\n', "key adopt prove"),
        ('source = "device"\n', "key adopt prove"),
    ):
        recipe = checked(tmp_path, "file", "client-p256", certificate=options)
        assert " ".join(action.name for action in recipe.steps[1].actions) == actions
        assert recipe.issues() == ("issue" in actions or "key_from" in options), "whether the token is needed"
