"""The step symmetric-key on boards that answer, forget, and are not what they seem: the same key, or none."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hal.call import Call
from hal.driver import Bindings
from hal.errors import DeadlineExceeded, HallmarkError, KeyConflict, PossessionUnproven, ProtocolViolation
from hal.interfaces import KeyDelivery
from hal.types import KeyPurpose, SealedKey, TransportKey, delivery_info, transport_message
from station import messages
from station.action import DeliveredKey, Trip
from station.nest.keys import VisitKeys
from station.recipe import PlannedStep, Recipe
from station.sealing import SUITE
from station.signer_client import SignerClient
from station.steps import STEPS
from station.unit_id import unit_id
from tests.runner_parts import UNIT, Stage
from tests.unit.test_signer_device_keys import SPKI, Signer


class BoardWithoutAKey:
    """A board's end of docs/vendor-group.md. `loses` answers: the deed is done, and nobody hears of it."""

    def __init__(self) -> None:
        self.own = ec.generate_private_key(ec.SECP256R1())
        self.transport: ec.EllipticCurvePrivateKey | None = None
        self.key: bytes | None = None
        self.loses: set[str] = set()
        self.installed = 0
        self.heard: list[bytes] = []

    @property
    def spki(self) -> bytes:
        return self.own.public_key().public_bytes(*SPKI)

    def transport_key(self, call: Call, challenge: bytes) -> TransportKey:
        self.transport = ec.generate_private_key(ec.SECP256R1())
        point = self.transport.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        return TransportKey(
            point, self.own.sign(transport_message(challenge, point), ec.ECDSA(hashes.SHA256()))
        )

    def install_key(self, call: Call, sealed: SealedKey) -> bytes:
        octets = sealed.encapsulated + sealed.ciphertext
        self.heard.append(octets)
        if self.transport is None:
            raise ProtocolViolation("no transport key")
        try:
            key = SUITE.decrypt(
                octets, self.transport, info=delivery_info(sealed.purpose, sealed.registration_id)
            )
        except InvalidTag:
            raise ProtocolViolation("it does not open") from None
        self.transport = None
        if self.key not in (None, key):
            raise KeyConflict("another key is there")
        self.key = key
        self.installed += 1
        self._lose("install")
        return b""

    def prove_secret(self, call: Call, nonce: bytes) -> bytes | None:
        if self.key is None:
            return None
        return hmac.digest(hmac.digest(self.key, b"hallmark key proof 1", "sha256"), nonce, "sha256")

    def _lose(self, what: str) -> None:
        if what in self.loses:
            self.loses.discard(what)
            raise DeadlineExceeded("no answer")


class Desk(Stage):
    """A stage whose desk gives keys as the station does, by a real signer's room."""

    def __init__(self, board: BoardWithoutAKey, signer: Signer, **options: Any) -> None:
        bindings = Bindings()
        bindings.add("link", KeyDelivery, board)
        super().__init__(bindings)
        self.step = PlannedStep(STEPS["symmetric-key"], STEPS["symmetric-key"].options(**options))
        self.key = hashlib.sha256(board.spki).hexdigest()
        name = unit_id("key", self.key)
        self.unit = replace_unit(name)
        recipe = Recipe("r.toml", "gw", "final", "0" * 64, (), (self.step,))
        self.keys = VisitKeys(Here(signer), recipe)
        self._trip = self.trip()
        self._trip.unit = self.unit
        self._trip.facts |= {"registration_id": "r1", "unit": True, "identity_spki": board.spki}

    def challenge(self) -> bytes:
        return self.keys.challenge().nonce

    def deliver_key(self, purpose: KeyPurpose, transport: TransportKey, identity: bytes) -> DeliveredKey:
        self.say("deliver")
        asked = messages.DeliverKey(purpose.value, transport.point, identity, transport.signature)
        found = self.keys.deliver(self.unit, self.key, asked)
        sealed = SealedKey(purpose, found.registration_id, found.encapsulated, found.ciphertext)
        return DeliveredKey(sealed, found.upload, found.spki)

    def prove_key(self, mac: bytes) -> None:
        self.keys.prove(self.unit, messages.ProveKey(mac))

    def go(self) -> None:
        self.run(self.step, trip=self._trip)

    def comes_back(self, board: BoardWithoutAKey, signer: Signer, **options: Any) -> Desk:
        """The same unit in another visit, with what was recorded of it."""
        again = Desk(board, signer, **options)
        intents = [
            said.removeprefix("begin ")
            for said in self.said
            if said.startswith("begin ") and said.replace("begin", "done") not in self.said
        ]
        again.unit = replace_unit(self.unit.unit, facts=dict(self.facts), intents=intents)
        again._trip.unit = again.unit
        return again


def replace_unit(name: str, **more: Any) -> messages.Unit:
    fields = {field: getattr(UNIT, field) for field in UNIT.__struct_fields__}
    return messages.Unit(**fields | {"unit": name} | more)


class Here(SignerClient):
    """The signer without its socket."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def seal_key(self, request: messages.SealKey | messages.SealWrapped) -> messages.KeyForBoard:
        assert isinstance(request, messages.SealKey)
        return self._signer.keys.seal(Call(), request)

    def check_key(self, request: messages.CheckKey) -> None:
        self._signer.keys.check(Call(), request)

    def forget_keys(self, units: list[str]) -> None:
        self._signer.keys.forget(units)


@pytest.fixture
def signer(tmp_path: Path) -> Iterator[Signer]:
    made = Signer(tmp_path / "signer")
    made.token.groups["line"] = bytes(range(64))
    yield made
    made.close()


@pytest.mark.parametrize("options", [{}, {"keys": "group", "group_key": "line"}], ids=["random", "derived"])
def test_the_intent_is_durable_before_the_board_gets_its_key(signer: Signer, options: dict[str, Any]) -> None:
    board = BoardWithoutAKey()
    desk = Desk(board, signer, **options)
    desk.go()
    assert board.key is not None
    assert desk.said == [
        "enter",
        "begin symmetric-key.deliver",
        "deliver",
        "done symmetric-key.deliver",
        "finish symmetric-key.prove",
    ]
    facts = desk.facts["symmetric-key.deliver"]
    assert bool(facts["symmetric_sealed"]) == (not options)
    assert facts["symmetric_keys"] == options.get("keys", "individual")
    assert not any(board.key in value for value in facts.values() if isinstance(value, bytes))
    assert all(board.key not in octets for octets in board.heard)


def test_an_answer_that_got_lost_brings_the_same_key_again(signer: Signer) -> None:
    board = BoardWithoutAKey()
    board.loses = {"install"}
    desk = Desk(board, signer)
    desk.go()
    assert board.installed == 2
    assert len({board.key}) == 1
    assert desk.facts["symmetric-key.deliver"]["symmetric_sealed"]


def test_a_unit_that_comes_back_after_a_crash_gets_the_same_key(signer: Signer) -> None:
    board = BoardWithoutAKey()
    first = Desk(board, signer)
    first.fails["done symmetric-key.deliver"] = [HallmarkError("the station was killed")]
    with pytest.raises(HallmarkError, match="killed"):
        first.go()
    first.said.remove("done symmetric-key.deliver")
    key = board.key
    signer.restart()
    again = first.comes_back(board, signer)
    again.go()
    assert board.key == key
    assert again.facts["symmetric-key.deliver"]["symmetric_sealed"]


def test_a_unit_that_was_finished_and_comes_back_is_found_done_and_still_proves_itself(
    signer: Signer,
) -> None:
    board = BoardWithoutAKey()
    first = Desk(board, signer)
    first.go()
    first.keys.passed(first.unit)
    assert signer.keys.kept() == []
    again = first.comes_back(board, signer)
    again.go()
    assert again.found["symmetric-key.deliver"]
    assert "deliver" not in again.said
    assert (
        again.facts["symmetric-key.deliver"]["symmetric_sealed"]
        == (first.facts["symmetric-key.deliver"]["symmetric_sealed"])
    )


def test_a_board_that_lost_its_key_after_it_was_forgotten_is_set_aside(signer: Signer) -> None:
    board = BoardWithoutAKey()
    first = Desk(board, signer)
    first.go()
    first.keys.passed(first.unit)
    board.key = None
    with pytest.raises(KeyConflict, match="forgotten"):
        first.comes_back(board, signer).go()


def test_a_key_that_nobody_here_delivered_is_a_conflict(signer: Signer) -> None:
    board = BoardWithoutAKey()
    board.key = secrets.token_bytes(32)
    with pytest.raises(KeyConflict, match="did not deliver"):
        Desk(board, signer).go()


def test_another_key_in_the_units_board_is_no_proof(signer: Signer) -> None:
    board = BoardWithoutAKey()
    first = Desk(board, signer)
    first.go()
    board.key = secrets.token_bytes(32)
    with pytest.raises(PossessionUnproven, match="another symmetric key"):
        first.comes_back(board, signer).go()


def test_a_transport_key_that_the_units_key_does_not_vouch_for_gets_nothing(signer: Signer) -> None:
    board, thief = BoardWithoutAKey(), BoardWithoutAKey()
    desk = Desk(board, signer)
    bindings = Bindings()
    bindings.add("link", KeyDelivery, thief)
    desk.board = bindings
    with pytest.raises(PossessionUnproven):
        desk.go()
    assert thief.key is None
    assert signer.keys.kept() == []


def test_anonymous_transport_is_the_recipes_choice_only(signer: Signer) -> None:
    board = BoardWithoutAKey()
    desk = Desk(board, signer, transport="anonymous")
    del desk._trip.facts["identity_spki"]
    desk.go()
    assert board.key is not None
    assert desk.facts["symmetric-key.deliver"]["symmetric_transport"] == "anonymous"
    asked = messages.DeliverKey("symmetric", board.transport_key(Call(), bytes(32)).point, b"", b"")
    strict = Desk(BoardWithoutAKey(), signer)
    strict.challenge()
    with pytest.raises(PossessionUnproven):
        strict.keys.deliver(strict.unit, strict.key, asked)


def test_a_worker_can_not_answer_without_a_challenge_nor_one_twice(signer: Signer) -> None:
    desk = Desk(BoardWithoutAKey(), signer)
    with pytest.raises(ProtocolViolation, match="challenge"):
        desk.prove_key(bytes(32))
    board = BoardWithoutAKey()
    other = Desk(board, signer)
    other.go()
    nonce = other.challenge()
    mac = board.prove_secret(Call(), nonce)
    assert mac is not None
    other.prove_key(mac)
    with pytest.raises(ProtocolViolation, match="challenge"):
        other.prove_key(mac)


def test_a_purpose_that_the_recipe_does_not_name_is_refused(signer: Signer) -> None:
    desk = Desk(BoardWithoutAKey(), signer)
    for purpose in ("private-key", "anything"):
        desk.challenge()
        with pytest.raises(ProtocolViolation, match="does not name"):
            desk.keys.deliver(desk.unit, desk.key, messages.DeliverKey(purpose, b"", b"", b""))


def test_a_signer_that_is_away_at_the_end_is_told_later(
    signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(BoardWithoutAKey(), signer)
    desk.go()

    def away(self: Here, units: list[str]) -> None:
        raise HallmarkError("the signer is away")

    monkeypatch.setattr(Here, "forget_keys", away)
    desk.keys.passed(desk.unit)
    assert signer.keys.kept() == [desk.unit.unit], "it is still there for the sweep at the next start"


def test_a_trip_knows_no_key(signer: Signer) -> None:
    board = BoardWithoutAKey()
    desk = Desk(board, signer)
    desk.go()
    trip: Trip = desk._trip
    assert board.key is not None
    assert board.key.hex() not in repr(trip.facts).replace("\\x", "")
    assert replace(trip, facts={}).auths == {}
