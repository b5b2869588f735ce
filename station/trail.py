"""The store's audit trail for those who check it: an export, line by line, and a unit's proof. Reads only."""

from __future__ import annotations

from collections.abc import Iterator

from hal.errors import AuditBroken, StationError, quote
from station.audit import export, proof
from station.store import Store
from station.store.checkpoints import Signed


def lines(store: Store, station: str, since: int, *, everything: bool = False) -> Iterator[bytes]:
    """The export of the records over `since`, up to the newest checkpoint; with `everything`, or without one, all."""
    newest = store.audit_checkpoint()
    until = store.audit_size() if everything or newest is None else newest.size
    if not 0 <= since < until:
        raise StationError(
            f"there are no records over {since} to export: {until} are there", hint="See `hallmark audit`."
        )
    signed = list(_checkpoints(store, since, until))
    keys = list(dict.fromkeys(item.key for item in signed))
    yield export.header(station, store.audit_known_origin() or "", since, store.audit_peaks(since), keys)
    notes = {item.size: item.note for item in signed}
    if since in notes:
        yield export.checkpoint(notes[since])
    at = since
    while at < until:
        page = store.audit_leaves(at)[: until - at]
        if not page:
            raise AuditBroken(f"record {at + 1} of the audit trail is missing")
        for leaf in page:
            yield export.record(leaf.record, leaf.leaf)
            if leaf.seq in notes:
                yield export.checkpoint(notes[leaf.seq])
        at = page[-1].seq
    yield export.end(until - since, len(notes))


def unit_proof(store: Store, name: str) -> proof.UnitProof:
    """Proofs of a unit's records against the newest checkpoint. StationError without unit or checkpoint."""
    record = store.unit(name)
    if record is None:
        raise StationError(f"there is no unit {quote(name)}", hint="See `hallmark units`.")
    newest = store.audit_checkpoint()
    if newest is None:
        raise StationError(
            "the audit trail has no checkpoint yet, so nothing can be proven",
            hint="Sign one with `hallmark audit checkpoint`; where the trail is off, switch it on in station.toml.",
        )
    found: list[tuple[bytes, list[bytes]]] = []
    unproven = since = 0
    while page := store.audit_leaves_of(record.summary.unit, since):
        for leaf in page:
            if leaf.seq <= newest.size:
                found.append((leaf.record, store.audit_inclusion(leaf.seq, newest.size)))
            else:
                unproven += 1
        since = page[-1].seq
    summary = record.summary
    return proof.make(summary.unit, summary.registration_id, newest.note, newest.key, found, unproven)


def _checkpoints(store: Store, since: int, until: int) -> Iterator[Signed]:
    """Those over `since` to `until` records."""
    after = max(0, since - 1)
    while page := store.audit_checkpoints(after):
        yield from (item for item in page if item.size <= until)
        after = page[-1].size
