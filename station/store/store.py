"""The store as the station uses it: each method one durable transaction, or one bounded read.

It only puts the rooms beside it together: the writer's thread, the readers, the rules for identity, journal, escrow,
outbox. A method that writes returns once its rows are on the disk, or raises and has changed nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Concatenate, Final, ParamSpec, Self, TypeVar

import apsw

from hal.errors import IdentityConflict, Outcome, ProtocolViolation, StationError, StoreUnavailable
from station import messages
from station.configuration_set import Release
from station.status.view import EventView
from station.store import (
    attestations,
    audit,
    audit_tree,
    certificates,
    checkpoints,
    decisions,
    ek_lists,
    escrow,
    identity,
    keys,
    known_boards,
    orders,
    outbox,
    owned_tpms,
    passing,
    records,
    releases,
    scraps,
    signatures,
    signed_orders,
    stock,
    trust,
    visits,
    wrap_keys,
)
from station.store.ballast import SIZE
from station.store.database import FULL_HINT
from station.store.decisions import Decision
from station.store.ek_lists import EkList, ListedKey, Listing, MadeKey
from station.store.orders import WorkOrder
from station.store.outbox import Depth
from station.store.readers import Readers
from station.store.scraps import Scrap
from station.store.signatures import Fates
from station.store.signed_orders import KeptOrder
from station.store.writing import Writing
from station.trust.verdict import Verdict
from station.work_order import SignedOrder

T = TypeVar("T")
P = ParamSpec("P")


DAY: Final = 86_400_000
"""Milliseconds."""


def wall_clock() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


class Store:
    """One station's memory. Thread-safe. `open` it, `close` it."""

    def __init__(self, path: Path, *, readonly: bool, clock: Callable[[], int], ballast: int) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._commits = 0
        self._last_event = 0
        self._writing = None if readonly else Writing(path, self._on_commit, ballast)
        self._readers = Readers(path)
        try:
            self._last_event = self._readers.read(audit.last)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        readonly: bool = False,
        clock: Callable[[], int] = wall_clock,
        ballast: int = SIZE,
    ) -> Self:
        """Opens or makes the store. StationError when another station has it, StoreUnavailable when the disk won't."""
        return cls(path, readonly=readonly, clock=clock, ballast=ballast)

    def close(self) -> None:
        """Waits for what is being written, and wakes whoever waits for events."""
        # The writer last: the last connection to close empties the WAL, which a reader could not.
        self._readers.close()
        if self._writing is not None:
            self._writing.close()
        with self._changed:
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- visits and units --------------------------------------------------------------------------------------

    def open_visit(
        self,
        nest: str,
        place: str,
        sku: str,
        recipe_pass: str,
        recipe_digest: bytes,
        boot_id: str,
        configuration: bytes | None = None,
        permitted: Sequence[str] | None = None,
    ) -> str:
        """Opens a visit and gives its name. Refused while the disk is too full to be sure of ending it well.

        `configuration`: SHA-256 of the signed set, None on a bench. `permitted`: the work orders that it may be counted
        against, None for all of the SKU's.
        """
        if not self._writable.ballast.ensure():
            raise StoreUnavailable("the disk is nearly full: no new visit begins", hint=FULL_HINT)
        return self._write(
            visits.open_visit, nest, place, sku, recipe_pass, recipe_digest, boot_id, configuration, permitted
        )

    def join(
        self, visit: str, kind: str, value: str, registration_id: str, claims: Sequence[tuple[str, str]]
    ) -> messages.Unit:
        """Ties the visit to its unit. IdentityConflict, Quarantined or QuotaSpent say why this board can't go on."""
        found = self._write(identity.join, visit, kind, value, registration_id, claims)
        if isinstance(found, IdentityConflict):
            raise found
        return found

    def await_elsewhere_closed(self, visit: str, kind: str, value: str, timeout: float) -> None:
        """Waits while the same unit has an open visit in another nest, at most `timeout` seconds.

        A board that was moved from nest to nest is in both for a moment: until the first one has noticed.
        """
        until = time.monotonic() + timeout
        while True:
            seen = self.changes()
            left = until - time.monotonic()
            if left <= 0 or not self._readers.read(
                lambda db: identity.open_elsewhere(db, visit, kind, value)
            ):
                return
            self.wait_change(seen, left)

    def begin(self, visit: str, step: str, action: str) -> None:
        """The intent to do an action, before it is done."""
        self._write(visits.begin, visit, step, action)

    def done(self, visit: str, step: str, action: str, facts: messages.Facts, found: bool = False) -> None:
        """An action's result, seen on the device."""
        self._write(visits.done, visit, step, action, facts, found=found)

    def next_generation(self, ek_name: bytes) -> int:
        """The generation that the next `protect` of this EK has."""
        return self._readers.read(lambda db: escrow.next_generation(db, ek_name))

    def protect(
        self,
        visit: str,
        ek_name: bytes,
        hierarchies: Sequence[str],
        sealed: bytes,
        wrapped: bytes,
        generation: int | None = None,
        key: str = "",
    ) -> int:
        """Escrow row and resume copy in one transaction. StationError when `generation` isn't the next one."""
        return self._write(escrow.protect, visit, ek_name, hierarchies, sealed, wrapped, generation, key)

    def wrap_key(self, visit: str) -> str:
        """The token key for this visit's secrets, durably known before it is made."""
        return self._write(wrap_keys.current, visit)

    def resume_key(self, ek_name: bytes, generation: int) -> str:
        """The token key that wrapped a copy; empty for one of an older release."""
        return self._readers.read(lambda db: wrap_keys.of_copy(db, ek_name, generation))

    def retire_wrap_keys(self) -> list[str]:
        """The token keys to be destroyed now, never used again. Empty, and nothing written, while there are none."""
        if not self._readers.read(lambda db: wrap_keys.spent(db, self._clock())):
            return []
        return self._write(wrap_keys.retire)

    def wrap_key_destroyed(self, key: str) -> None:
        """The token has it no more."""
        self._write(wrap_keys.destroyed, key)

    def newest_escrow(self, visit: str, ek_name: bytes) -> tuple[int, bytes] | None:
        """(generation, sealed) of the joined unit's own EK: else EkMismatch."""
        return self._readers.read(lambda db: escrow.newest(db, visit, ek_name))

    def escrow_places(self, ek_name: bytes, generation: int) -> list[str]:
        """Where else that record is durable."""
        return self._readers.read(lambda db: escrow.places(db, ek_name, generation))

    def escrow_copied(self, visit: str, ek_name: bytes, generation: int, place: str) -> None:
        """The record is durable at `place`, too."""
        self._write(escrow.copied, visit, ek_name, generation, place)

    def resume_copies(self, visit: str, ek_name: bytes) -> list[tuple[int, bytes]]:
        """(generation, wrapped), newest first, for the joined unit's own EK only: else EkMismatch."""
        return self._readers.read(lambda db: escrow.resume_copies(db, visit, ek_name))

    def resume_copy(self, visit: str, ek_name: bytes) -> tuple[int, bytes] | None:
        """The newest of `resume_copies`."""
        return next(iter(self.resume_copies(visit, ek_name)), None)

    def claim_key(self, visit: str, key: bytes) -> None:
        """`key` (SHA-256 of its SPKI) is the joined unit's certificate key for good. DuplicateKey when it isn't."""

        def claim(db: apsw.Connection, now: int) -> None:
            unit = visits.get_open(db, visit).joined()
            keys.claim(db, now, unit, key, keys.CERTIFICATE, visit)

        self._write(claim)

    # --- certificates made elsewhere ---------------------------------------------------------------------------

    def add_lot(self, lot: stock.Lot, entries: Sequence[stock.Entry], by: str = "") -> bool:
        """All of a lot, or nothing. False when the same one is there; DuplicateKey for what is known from before."""
        return self._write(stock.add_lot, lot, entries, by)

    def draw(self, visit: str, lot: str, key: bytes, name: str, minimum_days: int) -> stock.Drawn:
        """The unit's certificate of a lot, its own for good from now on: see `stock.draw`."""

        def draw(db: apsw.Connection, now: int) -> stock.Drawn:
            return stock.draw(db, now, visit, lot, key, name, now + minimum_days * DAY)

        return self._write(draw)

    def adopt(self, visit: str, profile: str, chain: Sequence[bytes], key: bytes, lot: str = "") -> None:
        """The chain that the device came with is the unit's, if nobody else has its key. `lot`: a vendor's manifest."""

        def adopt(db: apsw.Connection, now: int) -> None:
            if lot:
                stock.adopt(db, now, visit, lot, key, stock.digest_of(chain))
            certificates.record(db, now, visit, profile, chain)

        self._write(adopt)

    def lots(self) -> list[stock.LotView]:
        """Lots of the pool and vendors' manifests, with what is left of each."""
        return self._readers.read(stock.lots)

    def stock_name(self, key: bytes) -> str | None:
        """The common name that a lot's certificate has for this key (SHA-256 of its SPKI)."""
        return self._readers.read(lambda db: stock.name_of(db, key))

    def free_chains(self, lot: str, limit: int) -> list[list[bytes]]:
        """Chains of a lot that no unit has yet."""
        return self._readers.read(lambda db: stock.free_chains(db, lot, limit))

    def require_pass(self, kind: str, value: str, sku: str, wanted: str) -> None:
        """PassMissing unless the unit with this strong identifier has passed `wanted`."""
        self._readers.read(lambda db: visits.require_pass(db, kind, value, sku, wanted))

    def record_attestation(self, visit: str, transcript: bytes) -> None:
        """Keeps what was proven of the unit's TPM keys (JSON of `station.attestation.Transcript`)."""
        self._write(attestations.record, visit, transcript)

    def record_certificate(
        self, visit: str, profile: str, chain: Sequence[bytes], signed_for: str | None = None
    ) -> None:
        """Keeps the unit's chain, DER, leaf first. DuplicateKey when it has another, or another unit has this key.

        `signed_for`: the work order that the signer counted it against.
        """

        def work(db: apsw.Connection, now: int) -> None:
            certificates.record(db, now, visit, profile, chain)
            signatures.answered(db, now, visits.get_open(db, visit).joined(), signed_for)

        self._write(work)

    def certificate(self, unit: str) -> list[bytes] | None:
        """The unit's chain, DER, leaf first."""
        return self._readers.read(lambda db: certificates.of_unit(db, unit))

    def finish(
        self,
        visit: str,
        step: str,
        action: str,
        facts: messages.Facts,
        enrollment: bytes,
        sinks: Sequence[str],
        archive: bytes,
        work_order: str | None = None,
    ) -> None:
        """PASS, in one transaction: see `passing`."""
        if self._write(passing.finish, visit, step, action, facts, enrollment, sinks, archive, work_order):
            self._writable.writer.scrub()

    def fail(
        self,
        visit: str,
        step: str | None,
        action: str | None,
        code: str,
        message: str,
        hint: str,
        outcome: Outcome,
    ) -> bool:
        """Ends the visit without PASS. False when it has a verdict already; that one stays."""
        return self._write_even_if_full(visits.close, visit, step, action, outcome, code, message, hint)

    def recover(self) -> list[str]:
        """At start: closes the visits that a crash left open, and names them."""
        return self._write_even_if_full(visits.recover)

    def set_quarantine(self, unit: str, reason: str | None, by: str = "") -> None:
        """Puts a unit aside for a person's decision, or releases it. LookupError for one that isn't there."""
        self._write(identity.set_quarantine, unit, reason, by)

    # --- decisions ---------------------------------------------------------------------------------------------

    def ask(
        self,
        kind: str,
        subject: str,
        question: str,
        choices: Sequence[str],
        *,
        unit: str | None = None,
        details: dict[str, str] | None = None,
    ) -> Decision:
        """The open question of this kind and subject, asked now where there is none. Durable when it returns."""
        return self._write(decisions.ask, kind, subject, question, choices, unit=unit, details=details)

    def decide(self, number: int, choice: str, reason: str, by: str) -> Decision:
        """A permitted person's answer and all that it brings about, in one transaction.

        LookupError for a question that doesn't wait, ValueError for a word that is no choice or a missing reason.
        """
        made = self._write(known_boards.decide, number, choice, reason, by, owned_tpms.EFFECTS)
        self._writable.writer.scrub()  # a unit that is out for good leaves no copy of secrets
        return made

    def ask_owned(self, visit: str, ek_name: bytes, message: str) -> Decision:
        """Puts the visit's unit aside: somebody else owns its TPM, and an engineer is asked."""
        return self._write(owned_tpms.ask, visit, ek_name, message)

    def spend_clear(self, visit: str, means: str | None) -> None:
        """The permission to clear, where there is one, ends: what it permits was done by `means`, or not needed."""
        self._write(owned_tpms.spend, visit, means)

    def use_decision(self, number: int) -> Decision:
        """What an answer permits is done now, once. LookupError when it was done before."""
        return self._write(decisions.use, number)

    def decision(self, kind: str, subject: str) -> Decision | None:
        """The newest question of this kind and subject, answered or not."""
        return self._readers.read(lambda db: decisions.latest(db, kind, subject))

    def decisions(self, limit: int, after: int = 0, *, waiting: bool = False) -> list[Decision]:
        """Those with a number over `after`, in order; with `waiting` only those without an answer."""
        return self._readers.read(lambda db: decisions.listed(db, limit, after, waiting=waiting))

    def decisions_waiting(self) -> int:
        """How many questions wait for a person."""
        return self._readers.read(decisions.waiting)

    # --- trust in endorsement keys -----------------------------------------------------------------------------

    def record_verdict(self, visit: str, ek_name: bytes, verdict: Verdict) -> None:
        """Keeps the verdict on the EK that a visit found."""
        self._write(trust.record_verdict, visit, ek_name, verdict)

    def take_bundle(self, serial: int, sha256: bytes, signer: str) -> bool:
        """A trust bundle takes effect; False when it had before. ConfigError for one older than one before it."""
        return self._write(trust.take_bundle, serial, sha256, signer)

    def newest_bundle(self) -> tuple[int, bytes] | None:
        """Serial number and digest of the newest trust bundle that took effect here."""
        return self._readers.read(trust.newest_bundle)

    def ek_listed(self, ek_name: bytes) -> Listing | None:
        """The vendor's list that names this EK."""
        return self._readers.read(lambda db: ek_lists.find(db, ek_name))

    def begin_ek_list(
        self, lot: str, vendor: str, created: int, entries: int, sha256: bytes, signer: str
    ) -> int | None:
        """A place for a list's entries; None when it is there already."""
        return self._write(ek_lists.begin, lot, vendor, created, entries, sha256, signer)

    def add_ek_list_entries(self, number: int, names: Sequence[bytes]) -> None:
        """EK Names of a list that is coming in."""
        self._write(ek_lists.add, number, names)

    def finish_ek_list(self, number: int) -> None:
        """From here on the list counts."""
        self._write(ek_lists.finish, number)

    def sweep_ek_lists(self, after: bytes) -> bytes | None:
        """Removes some of what superseded and broken-off lists left; where to go on, None when nothing is left."""
        return self._write(ek_lists.sweep, after)

    def ek_lists(self) -> list[EkList]:
        """The lists that count, by lot."""
        return self._readers.read(ek_lists.lists)

    def ek_list_entries(self, lot: str, after: bytes, limit: int) -> list[ListedKey]:
        """A lot's EKs with a Name over `after`, in order, and the units that have them."""
        return self._readers.read(lambda db: ek_lists.entries_of(db, lot, after, limit))

    def made_eks(self, after: int, limit: int) -> list[MadeKey]:
        """EKs of units that passed, in the order of the units' numbers, over `after`."""
        return self._readers.read(lambda db: ek_lists.made(db, after, limit))

    def unlisted_eks(self, after: str, limit: int) -> list[ListedKey]:
        """EKs of units that no list names, in order of their Names in hex, over `after`."""
        return self._readers.read(lambda db: ek_lists.unlisted(db, after, limit))

    # --- work orders -------------------------------------------------------------------------------------------

    def load_work_orders(self, wanted: Sequence[tuple[str, str, int]]) -> None:
        """(id, SKU, quantity) from the configuration, in its order."""
        self._write(lambda db, _now: orders.load(db, wanted))

    def work_order_left(self, sku: str) -> WorkOrder | None:
        """The order the next unit counts against; its `left` is 0 when all are spent. None without any for the SKU."""
        return self._readers.read(lambda db: orders.left(db, sku))

    def work_orders(self) -> list[WorkOrder]:
        """Those that the configuration names now."""
        return self._readers.read(orders.active)

    def take_order(self, order: SignedOrder, by: str) -> bool:
        """Keeps a signed order. False when it is here already; OrderRefused for another one of its ID."""
        return self._write(signed_orders.take, order, by)

    def close_order(self, name: str, reason: str, by: str) -> None:
        """Ends a signed order early. LookupError for one that isn't there, or has ended."""
        self._write(signed_orders.close, name, reason, by)

    def kept_orders(self) -> list[KeptOrder]:
        """Every signed order that was ever imported, in order."""
        return self._readers.read(signed_orders.kept)

    def every_order(self) -> dict[str, WorkOrder]:
        """All there ever were, by ID."""
        return {order.id: order for order in self._readers.read(orders.every)}

    def ask_signature(self, visit: str) -> str | None:
        """The order to name to the signer; that it is asked is on record then."""
        return self._write(signatures.ask, visit)

    def fates(self, work_order: str) -> Fates:
        """What became of the units that were signed for under an order."""
        return self._readers.read(lambda db: signatures.fates(db, work_order))

    def scrap(self, unit: str, reason: str, by: str) -> Scrap:
        """A unit out for good; see `scraps`. LookupError for one that isn't there."""
        made, forgotten = self._write(scraps.scrap, unit, reason, by)
        if forgotten:
            self._writable.writer.scrub()
        return made

    def give_back(self, unit: str, proof: str) -> None:
        """The signer has confirmed that a scrapped unit's certificate counts no more."""
        self._write(scraps.give_back, unit, proof)

    def unproven_scraps(self) -> list[Scrap]:
        """Scrapped units that the signer hasn't confirmed yet."""
        return self._readers.read(scraps.unproven)

    # --- the signed configuration ------------------------------------------------------------------------------

    def accept_release(self, serial: int, digest: bytes) -> None:
        """Remembers the set that the station runs with; ConfigurationUntrusted when a newer one was here before."""
        self._write(releases.accept, serial, digest)

    def newest_release(self) -> Release | None:
        """The newest set that was ever taken."""
        return self._readers.read(releases.newest)

    # --- outbox ------------------------------------------------------------------------------------------------

    def lease(self, sink: str, most: int, owner: str) -> list[messages.Item]:
        """At most `most` rows that are due and that nobody holds, held by `owner` now."""
        return self._writable.leases.take(
            owner, lambda held: self._readers.read(lambda db: outbox.due(db, sink, most, held))
        )

    def release(self, owner: str) -> None:
        """Gives back all that `owner` holds."""
        if self._writable.leases.drop_owner(owner):
            self.wake()

    def report(self, outcomes: Sequence[messages.Outcome], owner: str | None = None) -> None:
        """Records what became of items, then ends their leases. ProtocolViolation when `owner` doesn't hold them."""
        seqs = [outcome.seq for outcome in outcomes]
        if owner is not None and not self._writable.leases.holds(owner, seqs):
            raise ProtocolViolation("a report on items that are not leased to this connection")
        self._write_even_if_full(outbox.report, outcomes)
        self._writable.leases.drop(seqs)
        self.wake()

    def requeue(self, seq: int, by: str = "") -> None:
        """Makes a parked row due again. LookupError for a number that isn't parked."""
        self._write(outbox.requeue, seq, by)

    def depth(self, kind: str = outbox.ENROLLMENT) -> Depth:
        """How full the outbox is, in constant time."""
        return self._readers.read(lambda db: outbox.depth(db, kind))

    @property
    def leased(self) -> int:
        """Rows that somebody holds now."""
        return len(self._writing.leases) if self._writing else 0

    # --- reads and events --------------------------------------------------------------------------------------

    def units(
        self, limit: int, after: str | None = None, query: str | None = None
    ) -> list[records.UnitSummary]:
        """Newest first, behind the unit `after`; `query` is the beginning of an identifier."""
        return self._readers.read(lambda db: records.units(db, limit, after, query))

    def unit(self, unit: str) -> records.UnitRecord | None:
        """The whole record by unit ID or registration ID."""
        return self._readers.read(lambda db: records.unit(db, unit))

    def passed(self, units: Sequence[str]) -> list[str]:
        """Those of `units` (unit IDs) that have passed."""
        return self._readers.read(lambda db: records.passed(db, units))

    def whole_unit(self, unit: str) -> tuple[records.UnitRecord, list[records.DoneAction]] | None:
        """The record with every row that there is of the unit, and each of its actions with its facts."""

        def read(db: apsw.Connection) -> tuple[records.UnitRecord, list[records.DoneAction]] | None:
            found = records.unit(db, unit, records.ALL)
            return None if found is None else (found, records.actions_of(db, found.summary.unit))

        return self._readers.read(read)

    def outbox_items(
        self, limit: int, after: int = 0, state: str | None = None
    ) -> list[records.OutboxRecord]:
        """Rows with a number over `after`, in order, without content."""
        return self._readers.read(lambda db: records.outbox_items(db, limit, after, state))

    def events(self, since: int, limit: int) -> list[EventView]:
        """Audit events with a number over `since`, in order."""
        return self._readers.read(lambda db: audit.events(db, since, limit))

    def last_event(self) -> int:
        """The highest event number there is, 0 before the first."""
        return self._last_event if self._writing else self._readers.read(audit.last)

    def append_event(
        self,
        kind: str,
        unit: str | None = None,
        nest: str | None = None,
        step: str | None = None,
        fields: Mapping[str, audit.Value] | None = None,
    ) -> int:
        """Adds an event to the audit trail and gives its number."""
        return self._write(audit.append, kind, unit=unit, nest=nest, step=step, fields=fields)

    def audit_size(self) -> int:
        """Records of the audit trail."""
        return self._readers.read(audit_tree.size)

    def audit_root(self, size: int) -> bytes:
        """The RFC 6962 root over the trail's first `size` records. AuditBroken when one is missing."""
        return self._readers.read(lambda db: audit_tree.root(db, size))

    def audit_peaks(self, size: int) -> list[bytes]:
        """The hashes of the complete subtrees that the first `size` records make, the largest first."""
        return self._readers.read(lambda db: audit_tree.peaks(db, size))

    def audit_consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the first `old` records are the beginning of the first `new`."""
        return self._readers.read(lambda db: audit_tree.consistency(db, old, new))

    def audit_inclusion(self, seq: int, size: int) -> list[bytes]:
        """The proof that record `seq` is among the first `size`."""
        return self._readers.read(lambda db: audit_tree.inclusion(db, seq, size))

    def audit_leaves(self, since: int, limit: int = audit_tree.PAGE) -> list[audit_tree.Leaf]:
        """Records with a number over `since`, in canonical form, in order."""
        return self._readers.read(lambda db: audit_tree.leaves(db, since, limit))

    def audit_leaves_of(self, unit: str, since: int, limit: int = audit_tree.PAGE) -> list[audit_tree.Leaf]:
        """Those that tell of one unit."""
        return self._readers.read(lambda db: audit_tree.leaves_of(db, unit, since, limit))

    def audit_origin(self, base: str) -> str:
        """The name of this store's trail: made of `base` the first time, and the same from then on."""
        return self._readers.read(checkpoints.known_origin) or self._write(checkpoints.origin, base)

    def audit_known_origin(self) -> str | None:
        """The same, None while no checkpoint was asked for."""
        return self._readers.read(checkpoints.known_origin)

    def keep_checkpoint(self, size: int, root: bytes, note: bytes, key: bytes) -> checkpoints.Signed:
        """Adds a signed checkpoint."""
        return self._write(checkpoints.keep, size, root, note, key)

    def audit_checkpoint(self) -> checkpoints.Signed | None:
        """The trail's newest checkpoint."""
        return self._readers.read(checkpoints.newest)

    def audit_checkpoints(self, after: int, limit: int = checkpoints.PAGE) -> list[checkpoints.Signed]:
        """Checkpoints over more than `after` records, in order."""
        return self._readers.read(lambda db: checkpoints.after(db, after, limit))

    def audit_keys(self) -> list[bytes]:
        """DER SubjectPublicKeyInfo of the keys that signed checkpoints, the last one first."""
        return self._readers.read(checkpoints.keys)

    def audit_waiting(self) -> checkpoints.Waiting:
        """What came after the newest checkpoint."""
        return self._readers.read(checkpoints.waiting)

    def begin_trail(self, reason: str, by: str) -> None:
        """Another trail over the same records, by a person's decision."""
        self._write(checkpoints.begin_trail, reason, by)

    def wait_event(self, since: int, timeout: float) -> bool:
        """True as soon as there is an event over `since`, False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._last_event > since, timeout)

    def changes(self) -> int:
        """A number that grows with each commit and each lease that ends: for `wait_change`."""
        with self._changed:
            return self._commits

    def wait_change(self, since: int, timeout: float) -> bool:
        """True as soon as `changes` is over `since`, False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._commits > since, timeout)

    # --- disk --------------------------------------------------------------------------------------------------

    def release_ballast(self) -> bool:
        """Gives the space that is held back to the file system. It is made again when there is plenty."""
        return self._writable.ballast.release()

    def ensure_ballast(self) -> bool:
        """Whether the space for winding up is held back, making it where there is room."""
        return self._writable.ballast.ensure()

    @property
    def trouble(self) -> str | None:
        """What keeps the writer from tidying up, for status; None when nothing does."""
        return self._writing.writer.trouble if self._writing else None

    @property
    def _writable(self) -> Writing:
        if self._writing is None:
            raise StationError("this store was opened to be read only")
        return self._writing

    def _write(
        self, work: Callable[Concatenate[apsw.Connection, int, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return self._writable.writer.run(lambda db: work(db, self._clock(), *args, **kwargs))

    def _write_even_if_full(
        self, work: Callable[Concatenate[apsw.Connection, int, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """For what ends something that has begun: on a full disk the ballast gives it room."""
        try:
            return self._write(work, *args, **kwargs)
        except StoreUnavailable:
            if not self._writable.ballast.release():
                raise
            return self._write(work, *args, **kwargs)

    def _on_commit(self, db: apsw.Connection) -> None:
        last = audit.last(db)
        with self._changed:
            self._last_event = last
            self._commits += 1
            self._changed.notify_all()

    def wake(self) -> None:
        """Wakes all who wait for a change, so that they look whether to go on waiting."""
        with self._changed:
            self._commits += 1
            self._changed.notify_all()
