"""The audit trail, signed by a real signer with a key in a real SoftHSM2 token; openssl is the judge.

And what becomes of it when somebody puts an old store back, rewrites it, or takes the token away.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import apsw
import msgspec
import pytest

from hal.call import Call
from hal.errors import AuditBroken, AuditUnavailable, KeyMissing, PeerUnavailable
from hal.types import TokenCondition
from station import messages
from station.archive import ArchiveRecord, archive_record
from station.audit import note, proof, tree
from station.audit.verify import Trust
from station.checkpoints import Checkpoints
from station.config import AuditSection
from station.outbox import OutboxServer
from station.signer_client import SignerClient
from station.store import Store
from station.store.checkpoints import Signed
from station.uploader.outbox import Outbox
from tests import store_parts as parts
from tests.fixtures_signer import BenchCa, bench_ca
from tests.unit.test_audit_store import fill, records_of, tamper
from tests.unit.test_audit_tree import plain_root

RESTAMP = (
    "audit_keep_content",
    "audit_tiles_keep_rows",
    "audit_tiles_keep_content",
)


class Line:
    """A store and its signer, and what the station's checkpoints say."""

    def __init__(self, ca: BenchCa, path: Path) -> None:
        self.ca, self.path = ca, path

    def store(self) -> Store:
        return Store.open(self.path, ballast=4096)

    def checkpoints(self, store: Store, mode: str = "on", **terms: int) -> Checkpoints:
        return Checkpoints(store, self.ca.client, AuditSection(mode=mode, **terms), "line-1")  # type: ignore[arg-type]

    def sign(self) -> Signed:
        with self.store() as store:
            return self.checkpoints(store).sign()

    def write(self, count: int) -> None:
        with self.store() as store:
            fill(store, count)


@pytest.fixture
def line(signer: BenchCa, store_path: Path) -> Line:
    return Line(signer, store_path)


def openssl_verifies(signed: Signed, folder: Path) -> bool:
    """By the specification and nothing of ours: text, blank line, name, base64 of key ID and signature."""
    text, _, last = signed.note.decode().rpartition("\n\n")
    (folder / "text").write_text(text + "\n")
    (folder / "sig").write_bytes(base64.b64decode(last.split(" ")[2])[4:])
    (folder / "key.der").write_bytes(signed.key)
    command = [
        "openssl",
        "dgst",
        "-sha256",
        "-keyform",
        "DER",
        "-verify",
        "key.der",
        "-signature",
        "sig",
        "text",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).stdout == b"Verified OK\n"


def test_a_checkpoint_is_over_every_record_and_openssl_verifies_it(line: Line, tmp_path: Path) -> None:
    line.write(300)
    signed = line.sign()
    assert openssl_verifies(signed, tmp_path)
    origin, size, root = signed.note.decode().split("\n")[:3]
    assert origin.startswith("hallmark/line-1/")
    assert (size, base64.b64decode(root)) == ("300", plain_root(records_of(line.path)))
    chain = line.ca.client.state().chain
    assert chain
    assert all(signed.key not in certificate for certificate in chain), "the audit key is none of the CA's"


def test_the_same_head_again_gives_the_same_octets_and_a_grown_one_another(line: Line) -> None:
    line.write(5)
    first = line.sign()
    assert line.sign().note == first.note
    line.write(1)
    second = line.sign()
    assert (first.size, second.size) == (5, 6)
    with line.store() as store:
        assert [item.note for item in store.audit_checkpoints(0)] == [first.note, second.note]


def test_a_station_that_died_before_it_kept_its_checkpoint_goes_on(line: Line) -> None:
    """The signer is ahead of the store by one checkpoint, which is asked for again or overtaken."""
    line.write(5)
    with line.store() as store:
        origin, root = store.audit_origin("hallmark/line-1"), store.audit_root(5)
    lost = line.ca.client.sign_checkpoint(messages.SignCheckpoint(origin, 5, root, []))
    assert line.sign().note == lost.note
    line.write(7)
    assert line.sign().size == 12


def test_a_signer_that_died_before_it_signed_signs_the_same_head(line: Line) -> None:
    line.write(5)
    first = line.sign()
    line.ca.stop()
    db = apsw.Connection(str(line.ca.paths.signer_state / "ledger.db"))
    db.execute("UPDATE trails SET note = NULL, key = NULL")
    db.close()
    line.ca.start()
    with line.store() as store:
        found = line.checkpoints(store).sign()
    assert (found.size, found.root) == (first.size, first.root)


def test_a_store_that_was_rolled_back_is_noticed(line: Line, tmp_path: Path) -> None:
    line.write(5)
    line.sign()
    shutil.copy(line.path, tmp_path / "backup.db")
    line.write(5)
    line.sign()
    shutil.copy(tmp_path / "backup.db", line.path)
    with pytest.raises(
        AuditBroken, match="rolled back: 10 records were signed, and the store has 5"
    ) as caught:
        line.sign()
    assert "new-trail" in caught.value.hint
    line.write(7)  # longer than what was signed: then the past is another one
    with pytest.raises(AuditBroken, match="its first 10 records are not those that were signed"):
        line.sign()


def test_a_store_whose_past_was_rewritten_consistently_is_noticed(line: Line) -> None:
    """Whoever can write the file can make leaf hashes and tiles fit again; what was signed they can't."""
    line.write(300)
    line.sign()
    db = apsw.Connection(str(line.path))
    for name in RESTAMP:
        db.execute(f"DROP TRIGGER {name}")
    db.execute("UPDATE audit SET kind = 'harmless' WHERE seq = 17")
    for seq, record in enumerate(records_of(line.path), 1):
        db.execute("UPDATE audit SET leaf = ? WHERE seq = ?", (tree.leaf_hash(record), seq))
    db.execute("DELETE FROM audit_tiles")
    db.close()
    line.write(1)
    with pytest.raises(AuditBroken, match="rewritten"):
        line.sign()


def test_a_row_that_was_changed_before_it_was_signed_is_not_covered_up(line: Line) -> None:
    line.write(5)
    tamper(line.path, "UPDATE audit SET kind = 'harmless' WHERE seq = 3")
    with pytest.raises(AuditBroken, match="record 3 of the audit trail was changed"):
        line.sign()
    assert line.ca.client.audit_head().size == 0


def test_another_store_is_signed_only_after_a_person_began_a_new_trail(line: Line, tmp_path: Path) -> None:
    line.write(5)
    line.sign()
    old = line.path.rename(tmp_path / "old.db")
    line.write(3)
    with pytest.raises(AuditBroken, match="the store was replaced"):
        line.sign()
    configuration = line.ca.paths.database
    configuration.parent.mkdir(parents=True, exist_ok=True)
    line.path.rename(configuration)
    line.path = configuration
    line.ca.stop()
    done = line.ca.hallmark("audit", "new-trail", "--reason", "disk replaced, ticket 4711")
    assert done.returncode == 0, done.stderr
    line.ca.start()
    signed = line.sign()
    assert signed.size == 4
    (told,) = parts.rows(line.path, "SELECT fields FROM audit WHERE kind = 'audit-trail-begun'")
    assert "ticket 4711" in told[0]
    line.path = old
    with pytest.raises(AuditBroken, match="ended on purpose"):
        line.sign()


def test_a_store_that_was_restored_on_purpose_begins_a_new_trail_over_its_old_records(line: Line) -> None:
    database = line.ca.paths.database
    database.parent.mkdir(parents=True, exist_ok=True)
    line.path = database
    line.write(5)
    first = line.sign()
    shutil.copy(database, database.with_suffix(".backup"))
    line.write(5)
    line.sign()
    shutil.copy(database.with_suffix(".backup"), database)
    line.ca.stop()
    assert line.ca.hallmark("audit", "new-trail", "--reason", "restored from backup").returncode == 0
    line.ca.start()
    second = line.sign()
    assert second.size == 6
    assert first.note.split(b"\n")[0] != second.note.split(b"\n")[0]


def test_a_trail_that_only_has_to_be_signed_goes_on_without_the_token_and_says_so(line: Line) -> None:
    with line.store() as store:
        checkpoints = line.checkpoints(store, "on")
        fill(store, 2)
        line.ca.stop()
        checkpoints.start()
        checkpoints.require()
        checkpoints.before_pass()
        view = checkpoints.view()
        assert (view.mode, view.signed, view.records) == ("on", 0, 2)
        assert "signer" in view.problem
        line.ca.start()
        checkpoints.stop()
        assert checkpoints.view().signed == 2
        assert checkpoints.view().problem == ""


def test_a_trail_that_is_required_stops_units_while_it_cannot_be_signed(line: Line) -> None:
    with line.store() as store:
        checkpoints = line.checkpoints(store, "required")
        fill(store, 2)
        checkpoints.require()
        away = line.ca.tokens.rename(line.ca.root / "away")
        fill(store, 1)
        with pytest.raises(AuditUnavailable, match="which can't be signed now") as caught:
            checkpoints.before_pass()
        assert caught.value.retryable
        with pytest.raises(AuditUnavailable):
            checkpoints.require()
        away.rename(line.ca.tokens)
        line.ca.wait_for(TokenCondition.READY)
        checkpoints.require()
        checkpoints.before_pass()
        assert checkpoints.head() == checkpoints.sign().note


def test_a_trail_that_is_required_is_signed_before_its_records_are_too_many(line: Line) -> None:
    with line.store() as store:
        checkpoints = line.checkpoints(store, "required", max_records=3)
        fill(store, 3)
        checkpoints.require()
        fill(store, 3)
        checkpoints.require()
        assert checkpoints.view().signed == 3
        fill(store, 1)
        checkpoints.require()
        assert checkpoints.view().signed == 7


def test_a_required_trail_that_was_rolled_back_refuses_units_for_good(line: Line) -> None:
    line.write(5)
    line.sign()
    tamper(line.path, "DELETE FROM audit WHERE seq = 5")
    with line.store() as store, pytest.raises(AuditBroken):
        line.checkpoints(store, "required").require()


def test_a_trail_that_is_off_asks_nobody(store: Store, tmp_path: Path) -> None:
    checkpoints = Checkpoints(store, SignerClient(tmp_path / "nobody"), AuditSection(mode="off"), "line-1")
    checkpoints.start()
    fill(store, 3)
    checkpoints.require()
    checkpoints.before_pass()
    checkpoints.stop()
    assert checkpoints.head() == b""
    assert checkpoints.view().mode == "off"
    with pytest.raises(PeerUnavailable):
        checkpoints.sign()


@pytest.fixture
def keyless(short_root: Path) -> Iterator[BenchCa]:
    """A signer whose token has no audit key: it was made by an earlier release."""
    with bench_ca(short_root, start=False) as ca:
        text = ca.paths.configuration.read_text()
        ca.paths.configuration.write_text(text.replace("[signer]\n", '[signer]\naudit_key = "none-such"\n'))
        ca.start()
        yield ca


def test_a_token_without_an_audit_key_is_told_what_to_do(keyless: BenchCa, store: Store) -> None:
    fill(store, 1)
    checkpoints = Checkpoints(store, keyless.client, AuditSection(), "line-1")
    with pytest.raises(KeyMissing, match="none-such") as caught:
        checkpoints.sign()
    assert "hallmark ca init" in caught.value.hint
    keyless.stop()
    assert keyless.hallmark("ca", "init", "--bench").returncode == 0
    keyless.start()
    assert checkpoints.sign().size == 1


def test_the_thread_signs_when_a_visit_has_ended(line: Line) -> None:
    with line.store() as store:
        checkpoints = line.checkpoints(store)
        checkpoints.start()
        parts.trip(store, 1)
        seen = store.changes()
        while store.audit_checkpoint() is None:
            assert store.wait_change(seen, 20), "no checkpoint came"
            seen = store.changes()
        checkpoints.stop()
        signed = store.audit_checkpoint()
        assert signed is not None
        assert signed.size == store.audit_size()


@pytest.mark.parametrize(
    ("size", "root", "origin"),
    [
        (0, b"\0" * 32, "hallmark/x"),
        (1, b"\0" * 31, "hallmark/x"),
        (1, b"\0" * 32, "two words"),
        (1, b"\0" * 32, "a\nb"),
    ],
)
def test_what_is_no_tree_head_is_never_signed(
    shared_signer: BenchCa, size: int, root: bytes, origin: str
) -> None:
    with pytest.raises(AuditBroken, match="no tree head"):
        shared_signer.client.sign_checkpoint(messages.SignCheckpoint(origin, size, root, []))


def test_notes_of_a_real_token_are_read_back(line: Line) -> None:
    line.write(1)
    signed = line.sign()
    found = note.read_note(signed.note)
    assert note.verify(found, [note.checkpoint_key(signed.key)]).spki == signed.key


def test_the_newest_checkpoint_goes_with_each_batch_and_the_archive_record_proves_the_unit(
    line: Line, tmp_path: Path
) -> None:
    with line.store() as store:
        checkpoints = line.checkpoints(store)
        unit = parts.trip(store, 1).unit
        signed = checkpoints.sign()
        server = OutboxServer(store, line.ca.root / "outbox.sock", lambda _: None, head=checkpoints.head)
        server.start()
        with Outbox(line.ca.root / "outbox.sock") as outbox:
            batch = outbox.lease(Call.lasting(10), "dps", 10, 1.0)
        server.stop()
        assert (len(batch.items), batch.head) == (1, signed.note)
        record = msgspec.json.decode(archive_record("line-1", store, unit), type=ArchiveRecord)
        assert record.audit is not None
        proven = proof.verify(record.audit, Trust(keys=(note.checkpoint_key(signed.key),)))
        assert {"visit-opened", "visit-closed"} <= {item.kind for item in proven.records}
