"""What waits to be uploaded: leased, reported on, parked, due again."""

from __future__ import annotations

from collections.abc import Sequence

from hal.errors import ProtocolViolation
from station import messages
from station.store import outbox, record_reads, records
from station.store.outbox import Depth
from station.store.parts.changes import Changes


class Outbox(Changes):
    """Rows and their leases; the sinks are elsewhere."""

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

    def outbox_items(
        self, limit: int, after: int = 0, state: str | None = None
    ) -> list[records.OutboxRecord]:
        """Rows with a number over `after`, in order, without content."""
        return self._readers.read(lambda db: record_reads.outbox_items(db, limit, after, state))
