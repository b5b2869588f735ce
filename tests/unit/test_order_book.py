"""What the station begins and the signer signs under work orders, and how the two are reckoned against each other.

Both sides are real: a store with its rules, a signer's ledger with its own. Only the socket between them is left out.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hal.errors import (
    IdentityConflict,
    IssuanceRefused,
    OrderRefused,
    Outcome,
    PeerUnavailable,
    QuotaSpent,
    StationError,
)
from hal.interfaces import CaToken
from station.images import ImageStore
from station.messages import GiveBack, OrderState, Revoke, Revoked, SignRequest
from station.order_book import GO_ON, OrderBook
from station.recipe import Recipe
from station.signer import ledger
from station.signer.clock import TrustedClock
from station.signer.generations import Generations
from station.signer.ledger import Intent, Ledger
from station.signer.orders import Orders
from station.signer.revocation import Revocations
from station.signer_client import SignerClient
from station.store import Store
from station.work_order import order_signers
from tests.order_parts import NOW, RECIPE, Planner
from tests.store_parts import BOOT, chain, enrollment, join

SKU = "gw-200"
SMALL = 64 * 1024


@dataclass
class _Clock:
    factory: Factory

    def now(self) -> dt.datetime:
        return self.factory.now


@dataclass
class Factory:
    """A station and its signer, without the processes around them."""

    root: Path
    store: Store
    book: Ledger
    planner: Planner
    required: bool = True
    now: dt.datetime = NOW
    away: bool = False
    orders: OrderBook = field(init=False)
    signer: Orders = field(init=False)
    revocations: Revocations = field(init=False)

    def __post_init__(self) -> None:
        keys = self.root / "keys"
        keys.mkdir(exist_ok=True)
        (keys / "planner.pem").write_bytes(self.planner.public.read_bytes())
        self.orders = self.made_book()
        self.revocations = Revocations(
            self.book,
            cast("CaToken", None),
            cast("Generations", None),
            cast("TrustedClock", _Clock(self)),
            30,
        )
        self.signer = Orders(self.book, "line-1", order_signers(keys), required=self.required)

    def made_book(self) -> OrderBook:
        return OrderBook(
            self.store,
            cast("SignerClient", self),
            ImageStore(self.root, self.root),
            "line-1",
            self.root / "keys",
            required=self.required,
            clock=lambda: self.now,
        )

    # --- the signer's socket ---

    def order_counts(self, work_order: str) -> OrderState:
        if self.away:
            raise PeerUnavailable("the signer is away")
        return self.signer.counts(work_order)

    def administer(self, asked: Revoke) -> Revoked:
        if self.away:
            raise PeerUnavailable("the signer is away")
        return self.revocations.revoke(asked.name, asked.reason, asked.why, "station")

    def give_back(self, unit: str, serial: str, reason: str, by: str) -> str:
        if self.away:
            raise PeerUnavailable("the signer is away")
        return self.signer.give_back(GiveBack(unit, serial, reason, by), self.now).proof

    # --- a line ---

    def take(self, **changed: Any) -> None:
        self.orders.take(*self.planner.order(**changed), "planner")

    def recipe(self, digest: bytes = RECIPE) -> Recipe:
        return Recipe("gw-200.toml", SKU, "final", digest.hex(), (), ())

    def visit(self, board: int, nest: str = "A") -> str:
        permitted = self.orders.permit(self.recipe())
        visit = self.store.open_visit(nest, f"usb:{nest}", SKU, "final", RECIPE, BOOT, permitted=permitted)
        try:
            join(self.store, visit, board, [])
        except Exception as error:
            self.fail(visit, type(error).__name__)
            raise
        return visit

    def sign(self, board: int, order: str | None) -> list[bytes]:
        """What the signer does: its order's share and the intent in one transaction, then the certificate."""
        data, signature = self.orders.request(order)
        unit = self.unit(board)
        certificate = chain(board)
        tbs = x509.load_der_x509_certificate(certificate[0]).tbs_certificate_bytes
        key = hashlib.sha256(b"key %d" % board).digest()
        entry = self.book.find(unit, key, f"board-{board}")
        if entry is None:
            asked = SignRequest(
                unit,
                f"board-{board}",
                "p",
                b"",
                sku=SKU,
                recipe=RECIPE,
                order=data,
                order_signature=signature,
            )
            share = self.signer.share(asked, self.now)
            intent = Intent(
                unit, f"board-{board}", key, (1000 + board).to_bytes(2), "p", b"\7" * 32, b"csr", tbs, 1
            )
            entry = self.book.intend(intent, b"chain", None, order=share)
        if entry is not None and entry.revoked is not None:
            raise IssuanceRefused("revoked")
        assert entry is not None
        self.book.keep(entry, certificate[0], 2)
        return certificate

    def certify(self, visit: str, board: int) -> None:
        issued = self.sign(board, self.store.ask_signature(visit))
        self.store.record_certificate(visit, "p", issued, self.signer.of_unit(self.unit(board)) or None)

    def passes(self, visit: str, board: int) -> None:
        self.store.finish(visit, "enroll", "queue", {}, enrollment(board), ("dps",), b"")

    def fail(self, visit: str, code: str = "VerifyMismatch") -> None:
        self.store.fail(visit, "final-check", "ask", code, "no", "hint", Outcome.FAIL)

    def make(self, board: int, nest: str = "A") -> None:
        visit = self.visit(board, nest)
        self.certify(visit, board)
        self.passes(visit, board)

    def unit(self, board: int) -> str:
        record = self.store.unit(f"board-{board}")
        assert record is not None
        return record.summary.unit

    def terms(self) -> tuple[int, ...]:
        (one,) = self.orders.reconcile()
        return one.signatures, one.shipped, one.scrapped, one.rework, one.pending, one.drift


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[Factory]:
    with (
        Store.open(tmp_path / "station.db", ballast=SMALL) as store,
        ledger.opened(tmp_path / "signer") as book,
    ):
        yield Factory(tmp_path, store, book, Planner(tmp_path / "office"))


def test_without_an_order_nothing_is_begun_where_one_is_required(factory: Factory) -> None:
    with pytest.raises(OrderRefused, match="no work order for gw-200"):
        factory.visit(1)
    factory.take(sku="gw-300")
    with pytest.raises(OrderRefused, match="no work order for gw-200"):
        factory.visit(1)


def test_an_order_is_made_and_then_the_next_board_is_refused(factory: Factory) -> None:
    factory.take(quantity=2)
    factory.make(1)
    factory.make(2)
    with pytest.raises(QuotaSpent, match="WO-17 for 2 of gw-200 is used up"):
        factory.visit(3)
    again = factory.visit(1)  # rework of a unit that was counted
    factory.certify(again, 1)
    factory.passes(again, 1)
    assert factory.terms() == (2, 2, 0, 0, 0, 0)
    (view,) = factory.orders.listed()
    assert (view.state, view.passed, view.attempts, view.left) == ("complete", 2, 2, 0), (
        "a visit of a counted unit is none of the order's"
    )


def test_orders_are_used_up_in_the_order_of_their_import(factory: Factory) -> None:
    factory.take(id="WO-2", quantity=1)
    factory.take(id="WO-1", quantity=1)
    factory.make(1)
    factory.make(2)
    assert [(view.id, view.passed) for view in factory.orders.listed()] == [("WO-2", 1), ("WO-1", 1)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"stations": ["line-2"]}, "not for station"),
        ({"recipes": ["02" * 32]}, "not for this recipe"),
        ({"from": "2026-06-01T00:00:00Z"}, "begins on"),
        ({"until": "2026-02-01T00:00:00Z"}, "ended on"),
    ],
)
def test_the_station_refuses_before_the_visit_and_the_signer_by_itself(
    factory: Factory, changed: dict[str, Any], said: str
) -> None:
    factory.take(**changed)
    with pytest.raises(OrderRefused, match=said):
        factory.orders.permit(factory.recipe())
    data, signature = factory.planner.order(**changed)
    asked = SignRequest("u", "r", "p", b"", sku=SKU, recipe=RECIPE, order=data, order_signature=signature)
    with pytest.raises(OrderRefused, match=said):
        factory.signer.share(asked, factory.now)


def test_the_signer_takes_no_word_for_an_order(factory: Factory) -> None:
    data, signature = factory.planner.order()
    asked = SignRequest(
        "u", "r", "p", b"", sku=SKU, recipe=RECIPE, order=data, order_signature=signature[::-1]
    )
    with pytest.raises(OrderRefused, match="not signed"):
        factory.signer.share(asked, factory.now)
    with pytest.raises(OrderRefused, match="none was named"):
        factory.signer.share(SignRequest("u", "r", "p", b""), factory.now)


def test_the_signer_signs_no_more_than_the_order_even_if_the_station_asks(factory: Factory) -> None:
    factory.take(quantity=1, rework_allowance=1)
    visit = factory.visit(1)
    factory.certify(visit, 1)
    factory.fail(visit)
    factory.make(2)  # the rework allowance lets the line go on
    again = factory.store.open_visit("B", "usb:B", SKU, "final", RECIPE, BOOT, permitted=None)
    with pytest.raises(QuotaSpent):
        join(factory.store, again, 3, [])
    factory.fail(again)
    data, signature = factory.planner.order(quantity=1, rework_allowance=1)
    asked = SignRequest("u", "r", "p", b"", sku=SKU, recipe=RECIPE, order=data, order_signature=signature)
    intent = Intent("u3", "r3", b"\3" * 32, b"\3", "p", b"\7" * 32, b"csr", b"tbs", 1)
    with pytest.raises(QuotaSpent, match="permits 2 certificates"):
        factory.book.intend(intent, b"chain", None, order=factory.signer.share(asked, factory.now))
    assert factory.book.find("u3", b"\3" * 32, "r3") is None, "nothing of it is left"
    assert factory.terms() == (2, 1, 0, 1, 0, 0)


def test_an_order_never_changes(factory: Factory) -> None:
    factory.take()
    factory.take()  # the same again
    with pytest.raises(OrderRefused, match="another work order WO-17"):
        factory.take(quantity=30)
    factory.make(1)
    data, signature = factory.planner.order(quantity=30)
    asked = SignRequest("u", "r", "p", b"", sku=SKU, recipe=RECIPE, order=data, order_signature=signature)
    share = factory.signer.share(asked, factory.now)
    intent = Intent("u", "r", b"\3" * 32, b"\3", "p", b"\7" * 32, b"csr", b"tbs", 1)
    with pytest.raises(OrderRefused, match="an order never changes"):
        factory.book.intend(intent, b"chain", None, order=share)


def test_an_order_whose_key_was_withdrawn_is_none(factory: Factory) -> None:
    factory.take()
    factory.make(1)
    (factory.root / "keys/planner.pem").unlink()
    later = factory.made_book()
    with pytest.raises(OrderRefused, match="no work order"):
        later.permit(factory.recipe())
    assert [view.state for view in later.listed()] == ["untrusted"]


def test_a_closed_order_begins_nothing_and_says_why(factory: Factory) -> None:
    factory.take()
    factory.make(1)
    factory.orders.close("WO-17", "customer cancelled", "eva")
    with pytest.raises(OrderRefused):
        factory.visit(2)
    with pytest.raises(LookupError):
        factory.orders.close("WO-17", "again", "eva")
    assert [(view.state, view.detail) for view in factory.orders.listed()] == [
        ("closed", "customer cancelled")
    ]


def test_on_a_bench_a_product_without_orders_needs_none(tmp_path: Path, factory: Factory) -> None:
    factory.required = False
    bench = factory.made_book()
    assert bench.permit(factory.recipe()) is None
    factory.store.load_work_orders([("WO-9", SKU, 5)])
    assert bench.permit(factory.recipe()) == ["WO-9"]
    bench.take(*factory.planner.order(), "planner")
    assert bench.permit(factory.recipe()) == ["WO-9", "WO-17"]
    assert bench.permit(factory.recipe(b"\2" * 32)) == ["WO-9"], "the signed one is for another recipe"


# --- scrap ---


def test_a_scrapped_unit_gives_its_share_back_with_the_signers_proof(factory: Factory) -> None:
    factory.take(quantity=1)
    factory.make(1)
    with pytest.raises(QuotaSpent):
        factory.visit(2)
    made = factory.orders.scrap("board-1", "burnt", "eva")
    assert made.serial == f"{1001:x}"
    record = factory.store.unit("board-1")
    assert record is not None
    assert record.scrap is not None
    assert record.scrap.given_back_at is not None
    assert "entry 1: certificate 3e9 of work order WO-17, revoked" in (record.scrap.proof or "")
    assert record.summary.state == "scrapped"
    assert [item.state for item in record.outbox if item.kind == "enrollment"] == ["superseded"]
    assert factory.terms() == (1, 0, 1, 0, 0, 0)
    factory.make(2)
    assert factory.terms() == (2, 1, 1, 0, 0, 0)
    with pytest.raises(QuotaSpent):
        factory.visit(3)


def test_a_scrapped_unit_never_passes_again_and_gets_no_certificate(factory: Factory) -> None:
    factory.take()
    factory.make(1)
    factory.orders.scrap("board-1", "burnt", "eva")
    with pytest.raises(IdentityConflict, match="out for good: scrapped: burnt"):
        factory.visit(1)
    with pytest.raises(IssuanceRefused, match="revoked"):
        factory.sign(1, "WO-17")
    first = factory.orders.scrap("board-1", "other words", "adam")
    assert first.reason == "burnt", "the first record stays"


def test_a_unit_in_a_nest_is_not_scrapped_under_the_workers_hands(factory: Factory) -> None:
    factory.take()
    factory.visit(1)
    with pytest.raises(StationError, match="in nest A right now"):
        factory.orders.scrap("board-1", "burnt", "eva")
    with pytest.raises(LookupError):
        factory.orders.scrap("board-7", "burnt", "eva")


def test_what_a_service_has_already_is_named(factory: Factory) -> None:
    factory.take()
    factory.make(1)
    from station.messages import Outcome as Reported

    (item,) = factory.store.lease("dps", 1, "uploader")
    factory.store.report([Reported(item.seq, etag="e")], "uploader")
    assert factory.orders.scrap("board-1", "burnt", "eva").sinks == ("dps",)


def test_without_the_signer_the_share_comes_back_later(factory: Factory) -> None:
    factory.take(quantity=1)
    factory.make(1)
    factory.away = True
    assert factory.orders.scrap("board-1", "burnt", "eva").given_back is None
    with pytest.raises(QuotaSpent):
        factory.visit(2)
    factory.away = False
    assert factory.terms() == (1, 0, 1, 0, 0, 0)
    factory.make(2)


def test_the_signer_gives_back_only_what_is_in_its_ledger_and_once(factory: Factory) -> None:
    factory.take()
    factory.make(1)
    unit = factory.unit(1)
    with pytest.raises(OrderRefused, match="still stands"):
        factory.signer.give_back(GiveBack(unit, "3e9", "x", "y"), factory.now)
    factory.administer(Revoke(unit, "cessation-of-operation", "burnt"))
    for wrong in (
        GiveBack(unit, "abcd", "x", "y"),
        GiveBack("other", "3e9", "x", "y"),
        GiveBack(unit, "?", "x", "y"),
    ):
        with pytest.raises(OrderRefused, match="has no certificate"):
            factory.signer.give_back(wrong, factory.now)
    proofs = {factory.signer.give_back(GiveBack(unit, "3e9", "x", "y"), factory.now).proof for _ in range(2)}
    assert len(proofs) == 1
    assert factory.signer.counts("WO-17").given_back == 1


# --- reckoning ---


def test_a_signature_that_nobody_asked_for_stops_the_line_until_an_engineer_has_decided(
    factory: Factory,
) -> None:
    factory.take(quantity=10)
    factory.make(1)
    assert factory.terms() == (1, 1, 0, 0, 0, 0)
    data, signature = factory.planner.order(quantity=10)
    asked = SignRequest("u", "r", "p", b"", sku=SKU, recipe=RECIPE, order=data, order_signature=signature)
    intent = Intent("stolen", "r", b"\3" * 32, b"\3", "p", b"\7" * 32, b"csr", b"tbs", 1)
    entry = factory.book.intend(intent, b"chain", None, order=factory.signer.share(asked, factory.now))
    assert entry is not None
    factory.book.keep(entry, b"certificate", 2)
    assert factory.terms() == (2, 1, 0, 0, 0, 1)
    with pytest.raises(OrderRefused, match="does not add up: the signer has 2") as caught:
        factory.visit(2)
    assert "hallmark orders reconcile" in caught.value.hint
    assert factory.orders.troubles()
    (question,) = factory.store.decisions(10, waiting=True)
    assert (question.kind, question.choices) == ("order-drift", ["go-on", "stop"])
    factory.store.decide(question.id, GO_ON, "a test signature of the HSM's maintenance", "eva")
    factory.make(2)
    (one,) = factory.orders.reconcile()
    assert (one.drift, one.stops) == (1, True), "another pair of counts, the same drift: it is asked again"


def test_a_request_whose_answer_was_lost_is_pending_and_not_drift(factory: Factory) -> None:
    factory.take()
    visit = factory.visit(1)
    order = factory.store.ask_signature(visit)
    assert factory.terms() == (0, 0, 0, 0, 0, 0)
    factory.sign(1, order)  # the signer signs; the station dies
    factory.fail(visit)
    assert factory.terms() == (1, 0, 0, 0, 1, 0)
    again = factory.visit(1)
    factory.certify(again, 1)
    assert factory.terms() == (1, 0, 0, 0, 1, 0)
    factory.passes(again, 1)
    assert factory.terms() == (1, 1, 0, 0, 0, 0)


def test_a_unit_signed_under_one_order_and_passed_under_the_next_is_reckoned_once(factory: Factory) -> None:
    factory.take(quantity=1)
    visit = factory.visit(1)
    factory.certify(visit, 1)
    factory.fail(visit)
    factory.orders.close("WO-17", "replaced", "eva")
    factory.take(id="WO-18", quantity=1)
    factory.make(1)
    assert [(one.order, one.signatures, one.shipped, one.drift) for one in factory.orders.reconcile()] == [
        ("WO-17", 1, 1, 0),
        ("WO-18", 0, 0, 0),
    ]


class Line(RuleBasedStateMachine):
    """Whatever happens on a line, in whatever order: it adds up, and no more is made than the orders say."""

    QUANTITY, ALLOWANCE = 4, 2

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory(prefix="hm-")
        root = Path(self.folder.name)
        self.store = Store.open(root / "station.db", ballast=SMALL)
        self.opened = ledger.opened(root / "signer")
        self.factory = Factory(root, self.store, self.opened.__enter__(), Planner(root / "office"))
        self.factory.take(quantity=self.QUANTITY, rework_allowance=self.ALLOWANCE)
        self.visits: dict[str, tuple[str, int]] = {}

    def teardown(self) -> None:
        self.store.close()
        self.opened.__exit__(None, None, None)
        self.folder.cleanup()

    @rule(board=st.integers(1, 9), nest=st.sampled_from("AB"))
    def plug(self, board: int, nest: str) -> None:
        if nest in self.visits or board in {other for _, other in self.visits.values()}:
            return
        try:
            self.visits[nest] = (self.factory.visit(board, nest), board)
        except (QuotaSpent, IdentityConflict):
            return

    @rule(nest=st.sampled_from("AB"), how=st.sampled_from(["pass", "fail", "lose answer", "unplug"]))
    def go_on(self, nest: str, how: str) -> None:
        if nest not in self.visits:
            return
        visit, board = self.visits.pop(nest)
        try:
            if how == "lose answer":
                self.factory.sign(board, self.factory.store.ask_signature(visit))
            elif how != "unplug":
                self.factory.certify(visit, board)
        except QuotaSpent:
            how = "fail"
        if how == "pass":
            self.factory.passes(visit, board)
        else:
            self.factory.fail(visit)

    @rule(board=st.integers(1, 9))
    def scrap(self, board: int) -> None:
        if board in {other for _, other in self.visits.values()}:
            return
        try:
            self.factory.orders.scrap(f"board-{board}", "r", "b")
        except LookupError:
            return

    @invariant()
    def it_adds_up(self) -> None:
        (one,) = self.factory.orders.reconcile()
        assert one.signatures == one.shipped + one.scrapped + one.rework + one.pending
        assert one.drift == 0

    @invariant()
    def no_more_than_ordered(self) -> None:
        (one,) = self.factory.orders.reconcile()
        assert one.shipped <= self.QUANTITY
        assert one.signatures - one.scrapped <= self.QUANTITY + self.ALLOWANCE


TestLine = pytest.mark.filterwarnings("default")(Line.TestCase)
TestLine.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
