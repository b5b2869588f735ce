"""Any order of writing, signing, restarting, rolling back, tampering: what was signed is never taken back unnoticed."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import cast

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hal.call import Call
from hal.errors import AuditBroken, HallmarkError
from hal.interfaces import CaToken
from station import messages, trail
from station.audit import note
from station.audit.verify import Trust, verify_export
from station.checkpoints import Checkpoints
from station.config import AuditSection
from station.signer import ledger
from station.signer.checkpoints import CheckpointSigner
from station.signer_client import SignerClient
from station.store import Store
from tests import audit_parts as audit
from tests.unit.test_audit_store import fill, records_of, tamper


class Token:
    """The two calls that checkpoints need, with a key in memory."""

    def public_key(self, call: Call, label: str) -> bytes:
        return audit.SPKI

    def sign(self, call: Call, label: str, data: bytes) -> bytes:
        return audit.PRIVATE.sign(data, ec.ECDSA(hashes.SHA256()))


class Signer:
    """The real `CheckpointSigner` over a real ledger, without a socket in between."""

    def __init__(self, book: ledger.Ledger) -> None:
        self._signer = CheckpointSigner(book, cast("CaToken", Token()), "audit")

    def audit_head(self) -> messages.TrailHead:
        return self._signer.head(Call())

    def sign_checkpoint(self, asked: messages.SignCheckpoint) -> messages.SignedCheckpoint:
        return self._signer.sign(Call(), asked)


class Line(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.path, self.copy = self.folder / "station.db", self.folder / "copy.db"
        self.stack = contextlib.ExitStack()
        self.signer = Signer(self.stack.enter_context(ledger.opened(self.folder / "signer")))
        self.signed: list[bytes] = []
        """The records under the newest checkpoint that was ever signed."""
        self.notes: list[bytes] = []
        self.tampered: set[int] = set()
        self.tampered_copy: set[int] = set()
        self.store = Store.open(self.path, ballast=4096)

    def teardown(self) -> None:
        self.store.close()
        self.stack.close()
        self._folder.cleanup()

    @rule(count=st.sampled_from([1, 2, 7, 130]))
    def write(self, count: int) -> None:
        fill(self.store, count)

    @rule()
    def sign(self) -> None:
        records = records_of(self.path)
        if not records:
            return
        newest = self.store.audit_checkpoint()
        covered = newest.size if newest else 0
        continues = records[: len(self.signed)] == self.signed or self.tampered
        unsound = any(seq > covered for seq in self.tampered)
        checkpoints = Checkpoints(self.store, cast("SignerClient", self.signer), AuditSection(), "line-1")
        try:
            signed = checkpoints.sign()
        except AuditBroken:
            assert unsound or records[: len(self.signed)] != self.signed
            return
        assert continues
        assert not unsound
        self.notes.append(signed.note)
        if not self.tampered:
            assert signed.size == len(records)
            self.signed = records

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = Store.open(self.path, ballast=4096)

    @rule()
    def back_up(self) -> None:
        self.store.close()
        shutil.copy(self.path, self.copy)
        self.tampered_copy = set(self.tampered)
        self.store = Store.open(self.path, ballast=4096)

    @precondition(lambda self: self.copy.exists())
    @rule()
    def roll_back(self) -> None:
        self.store.close()
        shutil.copy(self.copy, self.path)
        self.tampered = set(self.tampered_copy)
        self.store = Store.open(self.path, ballast=4096)

    @precondition(lambda self: not self.tampered)
    @rule(data=st.data())
    def tamper(self, data: st.DataObject) -> None:
        size = self.store.audit_size()
        if size:
            seq = data.draw(st.integers(1, size))
            self.store.close()
            tamper(self.path, f"UPDATE audit SET kind = 'harmless' WHERE seq = {seq}")
            self.tampered.add(seq)
            self.store = Store.open(self.path, ballast=4096)

    @invariant()
    def whoever_kept_the_newest_checkpoint_sees_what_was_done(self) -> None:
        """An export is either the continuation of all that was ever signed, or it does not hold."""
        if not self.notes:
            return
        newest = note.read_note(max(self.notes, key=lambda item: note.read_note(item).head.size))
        trust = Trust((audit.KEY,), None, (newest,))
        records = records_of(self.path)
        intact = not self.tampered and records[: len(self.signed)] == self.signed
        try:
            stream = io.BytesIO(b"".join(trail.lines(self.store, "line-1", 0)))
            verdict = verify_export(stream, trust)
        except HallmarkError:
            covered = self.store.audit_checkpoint()
            assert not intact or covered is None or covered.size < newest.head.size
        else:
            assert verdict.last >= newest.head.size
            assert all(seq > verdict.last for seq in self.tampered)
            assert records[: len(self.signed)] == self.signed


TestLine = Line.TestCase
TestLine.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
