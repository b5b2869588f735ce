"""One unit, one key: whoever comes first has it, across restarts, migrations and two nests at once."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import apsw
import pytest

from hal.errors import DuplicateKey
from station.store import Store, schema
from tests import store_parts as parts

KEY = hashlib.sha256(b"a key").digest()


def joined(store: Store, board: int, nest: str) -> str:
    visit = parts.plug(store, nest)
    parts.join(store, visit, board)
    return visit


def test_a_key_that_was_seen_on_one_unit_is_refused_on_another_also_after_a_restart(store_path: Path) -> None:
    with Store.open(store_path, ballast=4096) as store:
        visit = joined(store, 1, "A")
        store.claim_key(visit, KEY)
        store.claim_key(visit, KEY)
    with Store.open(store_path, ballast=4096) as store:
        other = joined(store, 2, "B")
        with pytest.raises(DuplicateKey, match="unit board-1 has it as its certificate's") as caught:
            store.claim_key(other, KEY)
        assert "unit board-1" in caught.value.hint


def test_two_nests_at_once_get_a_key_exactly_once(store: Store) -> None:
    nests = [f"N{number}" for number in range(8)]
    visits = [joined(store, number, nest) for number, nest in enumerate(nests, 1)]
    start, got, refused = threading.Barrier(len(nests)), list[str](), list[str]()

    def ask(visit: str) -> None:
        start.wait()
        try:
            store.claim_key(visit, KEY)
            got.append(visit)
        except DuplicateKey:
            refused.append(visit)

    threads = [threading.Thread(target=ask, args=(visit,)) for visit in visits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert len(refused) == len(nests) - 1


def test_the_key_that_a_board_is_known_by_is_no_other_units_certificate_key(store: Store) -> None:
    visit = joined(store, 1, "A")
    store.claim_key(visit, KEY)
    other = parts.plug(store, "B")
    with pytest.raises(DuplicateKey, match="board-1"):
        store.join(other, "key", KEY.hex(), "keyed-2", [])
    assert store.unit("keyed-2") is None
    assert store.join(other, "key", "ab" * 32, "keyed-2", []).registration_id == "keyed-2"
    with pytest.raises(DuplicateKey, match="keyed-2 has it as its identity"):
        store.claim_key(visit, bytes.fromhex("ab" * 32))


def test_keys_on_record_before_the_migration_are_known_after_it(store_path: Path) -> None:
    with Store.open(store_path, ballast=4096) as store:
        parts.trip(store, 1)
        store.join(parts.plug(store, "B"), "key", "cd" * 32, "keyed-2", [])
    with apsw.Connection(str(store_path)) as db:  # as the version before left it
        db.execute("DROP TABLE keys_seen")
        db.execute(schema.KEYS_SEEN)
    leaf = hashlib.sha256(_spki(parts.chain(1)[0])).digest()
    assert set(parts.rows(store_path, "SELECT key, what FROM keys_seen")) == {
        (leaf, "certificate"),
        (bytes.fromhex("cd" * 32), "identity"),
    }


def test_what_was_seen_is_never_forgotten(store: Store, store_path: Path) -> None:
    store.claim_key(joined(store, 1, "A"), KEY)
    with apsw.Connection(str(store_path)) as db:
        for change in ("DELETE FROM keys_seen", "UPDATE keys_seen SET what = 'x'"):
            with pytest.raises(apsw.ConstraintError, match="stay seen"):
                db.execute(change)


def _spki(certificate: bytes) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_a_tpms_endorsement_key_is_no_other_units_certificate_key(store: Store) -> None:
    first, second = parts.plug(store, "A"), parts.plug(store, "B")
    parts.join(store, first, 1, [("ek-key", KEY.hex())])
    parts.join(store, second, 2)
    with pytest.raises(DuplicateKey, match="unit board-1 has it as its TPM's endorsement key"):
        store.claim_key(second, KEY)
