"""Work orders as the station goes by them: what may be begun now, and whether all that was signed is accounted for.

An order's signature is checked with today's keys each time it is used; so an order whose key was withdrawn is none. The
reckoning compares the signer's ledger with the station's records; where they differ the line stops for that product
until a permitted person has decided.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog
from msgspec import Struct

from hal.errors import HallmarkError, OrderRefused
from station import messages
from station.images import ImageStore
from station.recipe import Recipe
from station.signer_client import SignerClient
from station.store import Store
from station.store.scraps import Scrap
from station.store.signatures import Fates
from station.store.signed_orders import KeptOrder
from station.work_order import SignedOrder, check_images, check_order, order_signers, verify_order

DRIFT: Final = "order-drift"
"""The kind of decision; its subject is the order with both counts, so that a new difference is a new question."""
GO_ON: Final = "go-on"
STOP: Final = "stop"
WHY_LIMIT: Final = 500
"""Characters of a revocation's reason."""
LOOKS: Final = 5
"""Tries to count both sides while nothing moves between them."""


class OrderView(Struct, frozen=True):
    """An order for people and scripts. `state`: open, closed, not-yet, ended, complete, or untrusted."""

    id: str
    sku: str
    quantity: int
    passed: int
    attempts: int
    given_back: int
    left: int
    signed: bool
    """As a signed order; false for one that stands in station.toml."""
    state: str
    detail: str = ""
    from_at: float | None = None
    until_at: float | None = None


class Reckoning(Struct, frozen=True):
    """One order: `signatures` (the signer's count) = shipped + scrapped + rework + pending + `drift`."""

    order: str
    sku: str
    signatures: int
    shipped: int
    scrapped: int
    rework: int
    pending: int
    drift: int
    unsigned: int = 0
    """Intents in the signer's ledger without a signature yet."""
    decision: int = 0
    """Number of the question about a drift, 0 without."""
    decided: str = ""
    """Its answer, empty while it waits."""

    @property
    def stops(self) -> bool:
        return self.drift != 0 and self.decided != GO_ON


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class OrderBook:
    """Thread-safe. `start` it, so that it reckons by itself; `stop` it."""

    def __init__(
        self,
        store: Store,
        signer: SignerClient,
        images: ImageStore,
        station: str,
        keys: Path,
        *,
        required: bool,
        minutes: int = 15,
        clock: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        """`keys`: file or folder of those who may sign orders; with `required` nothing is made without one."""
        self._store, self._signer, self._images, self._station = store, signer, images, station
        self._signers, self._required, self._seconds = order_signers(keys), required, minutes * 60.0
        self._clock = clock
        self._verified: dict[str, SignedOrder | OrderRefused] = {}
        self._lock = threading.Lock()
        self._stopped: list[Reckoning] = []
        self._spent: set[str] = set()
        self._look = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="orders", daemon=True)
        self._log = structlog.get_logger()

    # --- what may be begun ---

    def permit(self, recipe: Recipe) -> list[str] | None:
        """The orders that a visit with this recipe may be counted against now; None: the product needs none.

        OrderRefused says why there is none. One that is used up is among them: a unit that it counted may come back.
        """
        kept = [item for item in self._store.kept_orders() if item.closed is None]
        signed = [order for item in kept if isinstance(order := self._order(item), SignedOrder)]
        signed = [order for order in signed if order.file.sku == recipe.sku]
        plain = [] if self._required else self._plain(recipe.sku)
        if not signed and not plain:
            if self._required or any(self._sku(item) == recipe.sku for item in kept):
                raise OrderRefused(f"there is no work order for {recipe.sku}: nothing may be made")
            return None
        self._check_reckoning(recipe.sku)
        found, refusals = list(plain), list[OrderRefused]()
        images = self._image_digests(recipe) if signed else []
        for order in signed:
            try:
                check_order(
                    order.file,
                    sku=recipe.sku,
                    station=self._station,
                    recipe=bytes.fromhex(recipe.digest),
                    now=self._clock(),
                )
                check_images(order.file, images)
                found.append(order.file.id)
            except OrderRefused as error:
                refusals.append(error)
        if not found:
            raise refusals[0]
        self._reckon_what_is_spent(found)
        return found

    def request(self, name: str | None) -> tuple[bytes, bytes]:
        """The order's octets and signature for the signer; empty for one that isn't signed."""
        kept = next((item for item in self._store.kept_orders() if item.id == name), None)
        return (kept.data, kept.signature) if kept else (b"", b"")

    # --- what people ask for ---

    def take(self, data: bytes, signature: bytes, by: str) -> SignedOrder:
        """Imports an order; the same again is fine. OrderRefused for one that no key here has signed."""
        order = verify_order(data, signature, self._signers)
        if self._store.take_order(order, by):
            self._log.info("work order imported", order=order.file.id, sku=order.file.sku, by=by)
        return order

    def close(self, name: str, reason: str, by: str) -> None:
        """Ends it early. LookupError for one that isn't open."""
        self._store.close_order(name, reason, by)
        self._look.set()

    def scrap(self, unit: str, reason: str, by: str) -> Scrap:
        """A unit out for good. The order's share comes back when the signer has confirmed it, now or later."""
        made = self._store.scrap(unit, reason, by)
        self._try_to_give_back(made)
        return made

    def listed(self) -> list[OrderView]:
        """All orders, signed ones and those of station.toml."""
        every, kept = self._store.every_order(), {item.id: item for item in self._store.kept_orders()}
        active = {order.id for order in self._store.work_orders()}
        views = []
        for name, order in every.items():
            item = kept.get(name)
            if item is None and name not in active:
                continue
            found = self._order(item) if item else None
            state, detail = self._state(item, found, order.left)
            file = found.file if isinstance(found, SignedOrder) else None
            views.append(
                OrderView(
                    name, order.sku, order.quantity, order.passed, order.attempts, order.given_back, order.left,
                    signed=item is not None, state=state, detail=detail,
                    from_at=file.from_.timestamp() if file else None,
                    until_at=file.until.timestamp() if file else None,
                )
            )  # fmt: skip
        return views

    def reconcile(self) -> list[Reckoning]:
        """Every signed order, counted now. PeerUnavailable without the signer."""
        for made in self._store.unproven_scraps():
            self._try_to_give_back(made)
        found = [self._reckon(item.id, self._sku(item)) for item in self._store.kept_orders()]
        with self._lock:
            self._stopped = [item for item in found if item.stops]
        return found

    def troubles(self) -> list[str]:
        """For status."""
        with self._lock:
            return [_sentence(item) for item in self._stopped]

    # --- its thread ---

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending = True
        self._look.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending:
            try:
                self.reconcile()
            except HallmarkError as error:
                self._log.info("orders not reckoned", code=error.code, reason=str(error))
            self._look.wait(self._pause())
            self._look.clear()

    def _pause(self) -> float:
        """Until the next time, or the end of an order."""
        now = self._clock()
        ends = [
            (order.file.until - now).total_seconds() + 1
            for item in self._store.kept_orders()
            if item.closed is None and isinstance(order := self._order(item), SignedOrder)
        ]
        return min([self._seconds, *(left for left in ends if left > 0)])

    # --- parts ---

    def _order(self, item: KeptOrder) -> SignedOrder | OrderRefused:
        """The kept order if its signature holds with today's keys, else why not. What is kept never changes."""
        if item.id not in self._verified:
            try:
                self._verified[item.id] = verify_order(item.data, item.signature, self._signers)
            except OrderRefused as error:
                self._verified[item.id] = error
        return self._verified[item.id]

    def _sku(self, item: KeptOrder) -> str:
        return self._store.every_order()[item.id].sku

    def _plain(self, sku: str) -> list[str]:
        signed = {item.id for item in self._store.kept_orders()}
        return [
            order.id for order in self._store.work_orders() if order.sku == sku and order.id not in signed
        ]

    def _image_digests(self, recipe: Recipe) -> list[tuple[str, str]]:
        names = recipe.images()
        manifest = self._images.manifest() if names else {}
        return [(name, manifest[name].sha256) for name in names if name in manifest]

    def _state(
        self, item: KeptOrder | None, found: SignedOrder | OrderRefused | None, left: int
    ) -> tuple[str, str]:
        if isinstance(found, OrderRefused):
            return "untrusted", str(found)
        if item is not None and item.closed is not None:
            return "closed", item.reason or ""
        if isinstance(found, SignedOrder) and self._clock() < found.file.from_:
            return "not-yet", ""
        if isinstance(found, SignedOrder) and self._clock() > found.file.until:
            return "ended", ""
        return ("open" if left else "complete"), ""

    def _check_reckoning(self, sku: str) -> None:
        with self._lock:
            stopped = [item for item in self._stopped if item.sku == sku]
        for item in stopped:
            decision = self._store.decision(DRIFT, _subject(item))
            if decision is None or decision.answer != GO_ON:
                raise OrderRefused(
                    _sentence(item),
                    hint="Leave the boards; an engineer looks at `hallmark orders reconcile` and `hallmark decisions`.",
                )

    def _reckon_what_is_spent(self, names: Sequence[str]) -> None:
        """The end of an order is a time to reckon, each once."""
        every = self._store.every_order()
        spent = {name for name in names if not every[name].left}
        if spent - self._spent:
            self._spent |= spent
            self._look.set()

    def _reckon(self, name: str, sku: str) -> Reckoning:
        counted, fates = self._count(name)
        signatures = counted.signed
        # A request whose answer was lost has its signature in the ledger, and its unit will come back for it.
        late = min(max(signatures - fates.recorded, 0), fates.asked)
        made = Reckoning(
            order=name,
            sku=sku,
            signatures=signatures,
            shipped=fates.shipped,
            scrapped=fates.scrapped,
            rework=fates.rework,
            pending=fates.pending + late,
            drift=signatures - fates.recorded - late,
            unsigned=counted.pending,
        )
        return self._with_decision(made) if made.drift else made

    def _count(self, name: str) -> tuple[messages.OrderState, Fates]:
        """Both sides while nothing moved between two looks at ours; the last look if it never rests."""
        looks = LOOKS
        while True:
            before = self._store.fates(name)
            counted = self._signer.order_counts(name)
            after, looks = self._store.fates(name), looks - 1
            if after == before or not looks:
                return counted, after

    def _with_decision(self, made: Reckoning) -> Reckoning:
        subject = _subject(made)
        asked = self._store.decision(DRIFT, subject) or self._store.ask(
            DRIFT, subject, _sentence(made), [GO_ON, STOP]
        )
        number, answer = asked.id, asked.answer or ""
        return Reckoning(
            **{name: getattr(made, name) for name in made.__struct_fields__}
            | {"decision": number, "decided": answer}
        )

    def _try_to_give_back(self, made: Scrap) -> None:
        """What doesn't succeed is tried again at each reckoning: the scrap itself is on record."""
        try:
            self._give_back(made)
        except HallmarkError as error:
            self._log.warning(
                "scrap is not confirmed yet", unit=made.unit, code=error.code, reason=str(error)
            )

    def _give_back(self, made: Scrap) -> None:
        """The certificate is revoked, then counts no more; either again changes nothing."""
        if made.given_back is None and made.serial is not None:
            why = f"scrapped by {made.by}: {made.reason}"[:WHY_LIMIT]
            self._signer.administer(messages.Revoke(made.unit, "cessation-of-operation", why))
            proof = self._signer.give_back(made.unit, made.serial, made.reason, made.by)
            self._store.give_back(made.unit, proof)


def _subject(made: Reckoning) -> str:
    return f"{made.order} {made.signatures} {made.signatures - made.drift}"


def _sentence(made: Reckoning) -> str:
    return (
        f"work order {made.order} does not add up: the signer has {made.signatures} certificates for it, this station"
        f" accounts for {made.signatures - made.drift}"
    )
