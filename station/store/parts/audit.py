"""The audit trail: events, the tree over them (RFC 6962), its signed checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from station.status.view import EventView
from station.store import audit, audit_tree, checkpoints
from station.store.part import Part


class Audit(Part):
    """Records are added, never changed."""

    def events(self, since: int, limit: int) -> list[EventView]:
        """Audit events with a number over `since`, in order."""
        return self._readers.read(lambda db: audit.events(db, since, limit))

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
