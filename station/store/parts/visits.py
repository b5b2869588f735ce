"""A board's visit from its opening to its verdict, and the unit that it turns out to be."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hal.errors import IdentityConflict, Outcome, StoreUnavailable
from station import messages
from station.store import identity, passing, visits
from station.store.database import FULL_HINT
from station.store.parts.changes import Changes


class Visits(Changes):
    """The journal of visits, and who is who."""

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

    def require_pass(self, kind: str, value: str, sku: str, wanted: str) -> None:
        """PassMissing unless the unit with this strong identifier has passed `wanted`."""
        self._readers.read(lambda db: visits.require_pass(db, kind, value, sku, wanted))

    def begin(self, visit: str, step: str, action: str) -> None:
        """The intent to do an action, before it is done."""
        self._write(visits.begin, visit, step, action)

    def done(self, visit: str, step: str, action: str, facts: messages.Facts, found: bool = False) -> None:
        """An action's result, seen on the device."""
        self._write(visits.done, visit, step, action, facts, found=found)

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
