"""When the audit trail is signed: the station asks the signer for checkpoints, and says when units may not go on.

Off: nothing is asked for. On: what can't be signed is told and tried again. Required: no visit begins and no unit
passes while the trail can't be signed. The arithmetic is `station.audit`'s, the signature the signer's.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import structlog

from hal.errors import AuditBroken, AuditUnavailable, HallmarkError
from station import messages
from station.audit import note
from station.config import AuditSection
from station.signer_client import SignerClient
from station.status.view import AuditView
from station.store import Store
from station.store.checkpoints import Signed

OFF, REQUIRED = "off", "required"
ORIGIN_BASE: Final = "hallmark"
BATCH_SECONDS: Final = 2.0
"""Between two checkpoints that ended units ask for: units that end together share one."""
RETRY_SECONDS: Final = 5.0
"""Until a checkpoint that could not be signed is tried again."""
STOP_SECONDS: Final = 5.0
"""That the last checkpoint may take when the station stops."""
LOOK_SECONDS: Final = 0.1
"""Between two looks at what is new: a unit's records come in a row."""
WAIT_SECONDS: Final = 0.25
"""For something new, before it is looked whether the station is stopping, or something has waited long."""


class Checkpoints:
    """`start` it, `stop` it. `require` is asked before a visit begins and before a unit passes; any thread may."""

    def __init__(self, store: Store, signer: SignerClient, settings: AuditSection, station: str) -> None:
        self._store, self._signer, self._settings = store, signer, settings
        self._base = settings.origin or f"{ORIGIN_BASE}/{station}"
        self._signing = threading.Lock()
        self._stopping = threading.Event()
        self._problem: HallmarkError | None = None
        self._proven = False
        """Whether this process has seen a checkpoint being signed."""
        self._since: float | None = None
        """When the oldest record without a checkpoint was noticed, by the clock that doesn't jump."""
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._log = structlog.get_logger()

    def start(self) -> None:
        if self._settings.mode != OFF:
            self._thread.start()

    def stop(self, signer: SignerClient | None = None) -> None:
        """Ends the thread, and signs what is left. `signer`: one that doesn't wait as long."""
        self._stopping.set()
        if self._settings.mode == OFF:
            return
        self._thread.join()
        self._signer = signer or self._signer
        self._attempt()

    def sign(self) -> Signed:
        """The newest checkpoint, covering every record that there was when this was called. Raises what is wrong."""
        with self._signing:
            try:
                signed = self._sign()
            except HallmarkError as error:
                self._note(error)
                raise
            self._note(None)
            return signed

    def head(self) -> bytes:
        """The newest signed checkpoint, to be sent along with an upload; empty when there is none."""
        newest = None if self._settings.mode == OFF else self._store.audit_checkpoint()
        return newest.note if newest else b""

    def before_pass(self) -> None:
        """A checkpoint just before a unit passes, so that its archive record proves what happened to it."""
        if self._settings.mode == REQUIRED:
            self.require()
        if self._settings.mode != OFF and self._problem is None:
            self._attempt()
        if self._settings.mode == REQUIRED:
            self.require()

    def require(self) -> None:
        """AuditUnavailable or AuditBroken when units may not go on; says nothing unless the trail is required."""
        if self._settings.mode != REQUIRED or self._fresh():
            return
        try:
            self.sign()
        except AuditBroken:
            raise
        except HallmarkError as error:
            message = f"this station works only with a signed audit trail, which can't be signed now: {error}"
            raise AuditUnavailable(message, hint=error.hint) from error

    def view(self) -> AuditView:
        mode = self._settings.mode
        if mode == OFF:
            return AuditView(mode)
        newest, problem = self._store.audit_checkpoint(), self._problem
        return AuditView(
            mode,
            records=self._store.last_event(),
            signed=newest.size if newest else 0,
            signed_at=newest.signed_at / 1000 if newest else None,
            problem=str(problem) if problem else "",
            hint=problem.hint if problem else "",
        )

    def _fresh(self) -> bool:
        if self._problem is not None or not self._proven:
            return False
        waiting = self._store.audit_waiting()
        old = self._since is not None and time.monotonic() - self._since > self._settings.max_age
        return waiting.records <= self._settings.max_records and not old

    # --- its own thread ---

    def _run(self) -> None:
        seen, pause = -1, 0.0
        while not self._stopping.wait(pause):
            try:
                pause = LOOK_SECONDS
                self._store.wait_event(seen, WAIT_SECONDS)
                seen = self._store.last_event()
                if self._due():
                    self.sign()
                    pause = BATCH_SECONDS
            except HallmarkError as error:
                self._note(error)
                pause = RETRY_SECONDS

    def _due(self) -> bool:
        """Whether it is time for a checkpoint: a unit has ended, or records have waited long, or are many."""
        waiting = self._store.audit_waiting()
        if not waiting.records:
            self._since = None
            return self._problem is not None
        now = time.monotonic()
        self._since = self._since or now
        old = now - self._since > self._settings.max_age
        many = waiting.records > self._settings.max_records
        return waiting.closed or old or many or not self._proven or self._problem is not None

    def _attempt(self) -> None:
        """`sign`, where a failure is noted and told, and stops nobody."""
        try:
            self.sign()
        except HallmarkError as error:
            self._log.debug("no checkpoint", code=error.code, reason=str(error))

    # --- one checkpoint ---

    def _sign(self) -> Signed:
        store = self._store
        size, newest = store.audit_size(), store.audit_checkpoint()
        if newest is not None and newest.size == size and self._proven and self._problem is None:
            return newest
        self._check_records(newest.size if newest else 0, size)
        origin, root = store.audit_origin(self._base), store.audit_root(size)
        last = self._signer.audit_head()
        # With another trail, or more records than we have, there is no proof: the signer says what is wrong.
        beginning = last.origin == origin and last.size <= size
        proof = store.audit_consistency(last.size, size) if beginning else []
        given = self._signer.sign_checkpoint(messages.SignCheckpoint(origin, size, root, proof))
        checkpoint = note.read_note(given.note)
        note.verify(checkpoint, [note.checkpoint_key(given.key)])
        if checkpoint.head != note.Head(origin, size, root):
            raise AuditBroken("the signer signed another head than it was asked for")
        return store.keep_checkpoint(size, root, given.note, given.key)

    def _check_records(self, since: int, size: int) -> None:
        """What is about to be signed is what was written: a row that was changed since is not covered up."""
        while since < size:
            found = self._store.audit_leaves(since)
            for expected, leaf in enumerate(found, since + 1):
                if leaf.seq != expected or not leaf.sound:
                    raise AuditBroken(
                        f"record {expected} of the audit trail was changed after it was written"
                    )
            if not found:
                raise AuditBroken(f"record {since + 1} of the audit trail is missing")
            since = found[-1].seq

    def _note(self, error: HallmarkError | None) -> None:
        before, self._problem = self._problem, error
        if error is None:
            self._proven, self._since = True, None
        if str(before) == str(error) or (before is None and error is None):
            return
        if error is None:
            self._log.info("the audit trail is signed again")
        else:
            self._log.warning(
                "the audit trail can't be signed", code=error.code, reason=str(error), hint=error.hint
            )
