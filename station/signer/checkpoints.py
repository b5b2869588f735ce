"""Signs the audit trail's checkpoints: never one that takes back what was signed before.

The head is durable in the ledger before the token signs, and the note before it leaves. The station proves that its
tree continues what was signed last; what it can't prove is refused, so a store that was rolled back is noticed here.
"""

from __future__ import annotations

import threading
import time

from hal.call import Call
from hal.errors import AuditBroken, KeyMissing
from hal.interfaces import CaToken
from station.audit import note
from station.audit.tree import HASH_SIZE, consistent
from station.messages import SignCheckpoint, SignedCheckpoint, TrailHead
from station.signer import trails
from station.signer.ledger import Ledger
from station.signer.trails import Trail

REPLACED_HINT = (
    "Stop the line and keep the disk. If the store was replaced or restored on purpose, an engineer begins a new trail:"
    " `hallmark audit new-trail --reason TEXT`."
)


class CheckpointSigner:
    """Thread-safe. `key`: the label of the token's audit key, which signs nothing else."""

    def __init__(self, ledger: Ledger, token: CaToken, key: str) -> None:
        self._ledger, self._token, self._label = ledger, token, key
        self._lock = threading.Lock()

    def head(self, call: Call) -> TrailHead:
        """What was signed last. KeyMissing or TokenAbsent when nothing could be signed now."""
        key = self._key(call)
        with self._ledger.transaction() as db:
            known = trails.current(db)
        return TrailHead(known.origin if known else "", known.size if known else 0, key.spki)

    def sign(self, call: Call, asked: SignCheckpoint) -> SignedCheckpoint:
        """The signed note over `asked`. AuditBroken when it isn't a continuation of what was signed last."""
        if not note.ORIGIN.fullmatch(asked.origin) or asked.size < 1 or len(asked.root) != HASH_SIZE:
            message = "the station asked for a checkpoint of something that is no tree head"
            raise AuditBroken(message)
        head = note.Head(asked.origin, asked.size, asked.root)
        with self._lock:
            with self._ledger.transaction() as db:
                known, before = trails.current(db), trails.of(db, asked.origin)
            _check(known, before, head, asked.proof)
            if known is not None and known.size == head.size and known.note and known.key:
                return SignedCheckpoint(known.note, known.key)
            key = self._key(call)
            with self._ledger.transaction() as db:
                trails.intend(db, head.origin, head.size, head.root, int(time.time()))
            made = note.note(head, key, self._token.sign(call, self._label, head.text))
            note.verify(note.read_note(made), [key])
            with self._ledger.transaction() as db:
                trails.keep(db, head.origin, head.size, made, key.spki)
            return SignedCheckpoint(made, key.spki)

    def _key(self, call: Call) -> note.CheckpointKey:
        try:
            return note.checkpoint_key(self._token.public_key(call, self._label))
        except KeyMissing as error:
            hint = "An engineer stops the signer and runs `hallmark ca init` again: it adds the key that is missing."
            raise KeyMissing(str(error), hint=hint) from error
        except AuditBroken as error:
            message = f"the token's key {self._label!r} can't sign checkpoints: {error}"
            raise KeyMissing(message) from error


def _check(known: Trail | None, before: Trail | None, head: note.Head, proof: list[bytes]) -> None:
    if before is not None and before.closed is not None:
        message = f"the audit trail {head.origin} was ended on purpose; this is an old copy of the store"
        raise AuditBroken(message, hint=REPLACED_HINT)
    if known is None:
        return
    if known.origin != head.origin:
        message = (
            f"the store's audit trail {head.origin} is not the one that was signed until now"
            f" ({known.origin}, {known.size} records): the store was replaced"
        )
        raise AuditBroken(message, hint=REPLACED_HINT)
    if head.size < known.size:
        message = f"the audit trail was rolled back: {known.size} records were signed, and the store has {head.size}"
        raise AuditBroken(message, hint=REPLACED_HINT)
    if not consistent(known.size, known.root, head.size, head.root, proof):
        message = (
            f"the audit trail was rewritten: its first {known.size} records are not those that were signed"
        )
        raise AuditBroken(message, hint=REPLACED_HINT)
