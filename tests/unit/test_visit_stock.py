"""What a worker gets of lots and for adoption, whatever it asks: its recipe decides, and each answer is on record."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any, cast

import pytest

from hal.errors import CertificateUntrusted, DuplicateKey, ProtocolViolation, StationError
from station import messages
from station.foreign import Terms
from station.nest.private_keys import PrivateKeys
from station.nest.stock import VisitStock
from station.signer_client import SignerClient
from station.steps.certificate import Options
from station.store import Store
from station.store.stock import KEYS, PRELOADED
from tests import store_parts as parts
from tests.stock_parts import Pki, digest, entry, lot, new_key, preloaded_entry, self_signed, spki

PKI = Pki()
TERMS = {
    "pool": PKI.terms,
    "preloaded": Terms(PKI.terms.anchors, 545, client_auth=False),
    "device": Terms((), 545),
}


class Visit:
    def __init__(self, store: Store, board: int = 1, nest: str = "A", **options: Any) -> None:
        self.store, self.options = store, Options(**options)
        self.visit = parts.plug(store, nest)
        self.unit = parts.join(store, self.visit, board)
        self.stock = VisitStock(store, self.visit, self.options, TERMS)

    def private(self, signer: object) -> PrivateKeys:
        return PrivateKeys(self.store, cast("SignerClient", signer), self.visit, self.options, self.stock)


def test_a_worker_gets_only_what_its_recipe_names(store: Store) -> None:
    key = new_key()
    store.add_lot(lot("L1"), [entry(PKI.chain("board-1", key))])
    issuing = Visit(store, profile="p")
    for ask in (
        lambda: issuing.stock.draw(issuing.unit, messages.Draw(spki(key))),
        lambda: issuing.stock.adopt(issuing.unit, messages.Adopt([self_signed("board-1", key)])),
        lambda: issuing.stock.name(messages.StockName(spki(key))),
        lambda: issuing.private(None).deliver(
            issuing.unit, messages.DeliverKey("private-key", b"", b"", b"")
        ),
    ):
        with pytest.raises(ProtocolViolation, match="recipe"):
            ask()
    without = VisitStock(store, issuing.visit, None, TERMS)
    with pytest.raises(ProtocolViolation):
        without.draw(issuing.unit, messages.Draw(spki(key)))
    drawing = Visit(store, 2, "B", source="pool", lot="L1")
    with pytest.raises(ProtocolViolation, match="another kind of lot"):
        drawing.stock.draw(drawing.unit, messages.Draw(b""))
    with pytest.raises(ProtocolViolation):
        drawing.stock.adopt(drawing.unit, messages.Adopt([self_signed("board-2", key)]))
    assert store.lots()[0].free == 1


def test_the_name_that_a_recipe_wants_is_held_to(store: Store) -> None:
    keys = [new_key() for _ in range(3)]
    store.add_lot(lot("L1"), [entry(PKI.chain(f"board-{number}", key)) for number, key in enumerate(keys, 1)])
    visit = Visit(store, 1, source="pool", lot="L1")
    with pytest.raises(CertificateUntrusted, match="for 'board-2', not for board-1"):
        visit.stock.draw(visit.unit, messages.Draw(spki(keys[1])))
    chain = visit.stock.draw(visit.unit, messages.Draw(spki(keys[0]))).chain
    assert chain == visit.stock.draw(visit.unit, messages.Draw(spki(keys[0]))).chain
    device = Visit(store, 4, "B", source="device", place="link")
    with pytest.raises(CertificateUntrusted, match="registration ID is board-4"):
        device.stock.adopt(device.unit, messages.Adopt([self_signed("self-made", new_key())]))
    liberal = Visit(store, 5, "C", source="device", place="link", subject="any")
    der = self_signed("self-made", new_key())
    assert liberal.stock.adopt(liberal.unit, messages.Adopt([der])) == messages.Ok()
    assert store.certificate(liberal.unit.unit) == [der]


def test_a_pki_that_lost_its_place_since_the_import_is_refused_at_the_board(store: Store) -> None:
    key = new_key()
    store.add_lot(lot("L1"), [entry(PKI.chain("board-1", key))])
    visit = Visit(store, source="pool", lot="L1")
    stock = VisitStock(store, visit.visit, visit.options, TERMS | {"pool": Pki("Another").terms})
    with pytest.raises(CertificateUntrusted, match="leads to no anchor"):
        stock.draw(visit.unit, messages.Draw(spki(key)))


def test_a_pooled_certificate_that_would_end_in_the_warehouse_is_refused_at_the_board(store: Store) -> None:
    key = new_key()
    store.add_lot(lot("L1"), [entry(PKI.chain("board-1", key, days=600))])
    visit = Visit(store, source="pool", lot="L1")
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=100)
    stock = VisitStock(store, visit.visit, visit.options, TERMS, clock=lambda: later)
    with pytest.raises(CertificateUntrusted, match="fewer than 545 days"):
        stock.draw(visit.unit, messages.Draw(spki(key)))


def test_the_device_made_certificate_of_one_unit_is_no_other_units(store: Store) -> None:
    key = new_key()
    first = Visit(store, 1, "A", source="device", place="link", subject="any")
    first.stock.adopt(first.unit, messages.Adopt([self_signed("one", key)]))
    second = Visit(store, 2, "B", source="device", place="link", subject="any")
    with pytest.raises(DuplicateKey, match="unit board-1 has it"):
        second.stock.adopt(second.unit, messages.Adopt([self_signed("two", key)]))
    with pytest.raises(DuplicateKey, match="already has another"):
        first.stock.adopt(first.unit, messages.Adopt([self_signed("three", new_key())]))


def test_a_preloaded_element_needs_both_chain_and_manifest(store: Store) -> None:
    key = new_key()
    chain = PKI.chain("board-1", key)
    visit = Visit(store, source="preloaded", lot="V1", place="element")
    with pytest.raises(CertificateUntrusted, match="not in the vendor's manifest"):
        visit.stock.adopt(visit.unit, messages.Adopt(chain))
    store.add_lot(lot("V1", PRELOADED), [preloaded_entry(key, chain[0])])
    with pytest.raises(CertificateUntrusted, match="leads to no anchor"):
        visit.stock.adopt(visit.unit, messages.Adopt(Pki("Another").chain("board-1", key)))
    visit.stock.adopt(visit.unit, messages.Adopt(chain))
    assert store.lots()[0].free == 0


class Signer:
    def __init__(self, key: bytes) -> None:
        self.key = key
        self.asked: list[Any] = []

    def seal_key(self, request: Any) -> messages.KeyForBoard:
        self.asked.append(request)
        return messages.KeyForBoard(b"enc", b"sealed", b"", self.key)


def deliver(visit: Visit, signer: Signer) -> messages.Delivered:
    return visit.private(signer).deliver(visit.unit, messages.DeliverKey("private-key", b"point", b"", b""))


def test_a_pools_private_key_leaves_the_station_only_as_the_signer_sealed_it(store: Store) -> None:
    key = new_key()
    store.add_lot(lot("L1", KEYS), [entry(PKI.chain("any", key), b"wrapped")])
    visit = Visit(store, source="pool", lot="L1", key_from="pool", place="link", subject="any")
    signer = Signer(spki(key))
    assert deliver(visit, signer) == messages.Delivered("board-1", b"enc", b"sealed", b"", spki(key))
    (asked,) = signer.asked
    assert (asked.wrapped, asked.transport, asked.registration_id) == (b"wrapped", b"point", "board-1")
    assert digest(key) in asked.context
    with pytest.raises(StationError, match="not the one of its certificate"):
        deliver(visit, Signer(spki(new_key())))
    store.done(visit.visit, "certificate", "prove", {})
    store.finish(visit.visit, "enroll", "queue", {}, parts.enrollment(1), ["dps"], b"")
    again = Visit(store, source="pool", lot="L1", key_from="pool", place="link", subject="any")
    with pytest.raises(StationError, match="not kept any more"):
        deliver(again, signer)


def test_a_key_made_in_the_token_is_one_units_before_the_board_gets_it(store: Store) -> None:
    key = new_key()
    first = Visit(store, 1, "A", profile="p", key_from="token", place="link")
    assert deliver(first, Signer(spki(key))).spki == spki(key)
    second = Visit(store, 2, "B", profile="p", key_from="token", place="link")
    with pytest.raises(DuplicateKey, match="unit board-1"):
        deliver(second, Signer(spki(key)))
    assert hashlib.sha256(spki(key)).digest() == digest(key)
