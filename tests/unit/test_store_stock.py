"""Lots of certificates made elsewhere: each to one unit, once, the same again after a crash, none seen before."""

from __future__ import annotations

import threading
from pathlib import Path

import apsw
import pytest

from hal.errors import CertificateUntrusted, DuplicateKey, StockEmpty
from station.store import Store
from station.store.stock import KEYS, PRELOADED
from tests import store_parts as parts
from tests.stock_parts import Pki, digest, entry, lot, new_key, preloaded_entry

PKI = Pki()
DAYS = 545


def joined(store: Store, board: int, nest: str = "A") -> str:
    visit = parts.plug(store, nest)
    parts.join(store, visit, board)
    return visit


def end(store: Store, visit: str, *, proven: bool = True) -> None:
    if proven:
        store.done(visit, "certificate", "prove", {})
    store.finish(visit, "enroll", "queue", {}, parts.enrollment(1), ["dps"], b"")


def test_a_unit_gets_the_certificate_for_its_key_and_the_same_again_after_a_crash(store_path: Path) -> None:
    key = new_key()
    chain = PKI.chain("board-1", key)
    with Store.open(store_path, ballast=4096) as store:
        assert store.add_lot(lot("L1"), [entry(chain), entry(PKI.chain("board-9", new_key()))])
        visit = joined(store, 1)
        drawn = store.draw(visit, "L1", digest(key), "board-1", DAYS)
        assert drawn.chain == chain
    with Store.open(store_path, ballast=4096) as store:
        store.recover()
        visit = joined(store, 1)
        assert store.draw(visit, "L1", digest(key), "board-1", DAYS).chain == chain
        assert [(view.entries, view.free) for view in store.lots()] == [(2, 1)]
        record = store.unit("board-1")
        assert record is not None
        assert record.certificate is not None
        assert record.certificate.profile == "pool:L1"
        assert [event.kind for event in record.events].count("drawn") == 1


def test_two_units_never_get_one_certificate_whoever_is_first(store: Store) -> None:
    chains = [PKI.chain(f"any-{number}", new_key(), days=1000 + number) for number in range(3)]
    store.add_lot(
        lot("L1", KEYS), [entry(chain, b"wrapped %d" % index) for index, chain in enumerate(chains)]
    )
    visits = [joined(store, board, f"N{board}") for board in range(1, 9)]
    start, got, empty = threading.Barrier(len(visits)), list[bytes](), list[str]()

    def ask(visit: str) -> None:
        start.wait()
        try:
            got.append(store.draw(visit, "L1", b"", "", DAYS).chain[0])
        except StockEmpty:
            empty.append(visit)

    threads = [threading.Thread(target=ask, args=(visit,)) for visit in visits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(chain[0] for chain in chains)
    assert len(empty) == len(visits) - len(chains)


def test_the_first_to_end_goes_first_but_never_one_that_could_end_in_a_warehouse(store: Store) -> None:
    lives = {days: PKI.chain(f"days-{days}", new_key(), days=days) for days in (2000, 1000, 400)}
    store.add_lot(lot("L1", KEYS), [entry(chain, b"w") for chain in lives.values()])
    assert store.draw(joined(store, 1, "A"), "L1", b"", "", DAYS).chain == lives[1000]
    assert store.draw(joined(store, 2, "B"), "L1", b"", "", DAYS).chain == lives[2000]
    with pytest.raises(StockEmpty, match="lasts long enough") as caught:
        store.draw(joined(store, 3, "C"), "L1", b"", "", DAYS)
    assert "hallmark pool import" in caught.value.hint


def test_where_the_name_counts_only_the_certificate_of_that_name_is_given(store: Store) -> None:
    chains = [PKI.chain(f"board-{number}", new_key()) for number in (1, 2)]
    store.add_lot(lot("L1", KEYS), [entry(chain, b"w") for chain in chains])
    assert store.draw(joined(store, 2), "L1", b"", "board-2", DAYS).chain == chains[1]
    with pytest.raises(StockEmpty, match="for board-3"):
        store.draw(joined(store, 3, "B"), "L1", b"", "board-3", DAYS)


def test_a_key_that_no_lot_has_another_lot_has_or_another_unit_has_is_refused(store: Store) -> None:
    keys = [new_key() for _ in range(3)]
    store.add_lot(lot("L1"), [entry(PKI.chain("one", keys[0]))])
    store.add_lot(lot("L2"), [entry(PKI.chain("two", keys[1]))])
    visit = joined(store, 1)
    for key in keys[1:]:
        with pytest.raises(CertificateUntrusted, match="'L1' has no certificate for the key"):
            store.draw(visit, "L1", digest(key), "", DAYS)
    with pytest.raises(CertificateUntrusted, match="for 'one', not for board-1"):
        store.draw(visit, "L1", digest(keys[0]), "board-1", DAYS)
    store.draw(visit, "L1", digest(keys[0]), "", DAYS)
    with pytest.raises(DuplicateKey, match="unit board-1"):
        store.draw(joined(store, 2, "B"), "L1", digest(keys[0]), "", DAYS)
    with pytest.raises(DuplicateKey, match="a certificate of lot L1 already"):
        store.draw(visit, "L2", digest(keys[1]), "", DAYS)


def test_a_key_in_stock_is_certified_in_no_other_way(store: Store) -> None:
    key = new_key()
    store.add_lot(lot("L1"), [entry(PKI.chain("one", key))])
    with pytest.raises(DuplicateKey, match="stands in lot L1"):
        store.claim_key(joined(store, 1), digest(key))


@pytest.mark.parametrize("same", ["key", "certificate", "name"])
def test_what_stands_in_two_lots_is_refused_with_the_whole_second_lot(store: Store, same: str) -> None:
    key = new_key()
    first = PKI.chain("one", key)
    second = {
        "key": PKI.chain("two", key),
        "certificate": first,
        "name": PKI.chain("one", new_key()),
    }[same]
    store.add_lot(lot("L1"), [entry(first)])
    with pytest.raises(DuplicateKey, match="stands in lot L1 already"):
        store.add_lot(lot("L2"), [entry(PKI.chain("fine", new_key())), entry(second)])
    assert [view.lot for view in store.lots()] == ["L1"]


def test_what_a_unit_has_already_comes_into_no_lot(store: Store) -> None:
    key = new_key()
    store.claim_key(joined(store, 1), digest(key))
    with pytest.raises(DuplicateKey, match="unit board-1 has it"):
        store.add_lot(lot("L1"), [entry(PKI.chain("one", key))])
    parts.trip(store, 2, "B")
    with pytest.raises(DuplicateKey, match="unit board-2"):
        store.add_lot(lot("L1"), [entry(parts.chain(2))])


def test_the_same_lot_again_is_fine_and_another_of_its_name_is_not(store: Store) -> None:
    entries = [entry(PKI.chain("one", new_key()))]
    assert store.add_lot(lot("L1"), entries)
    assert not store.add_lot(lot("L1"), entries)
    other = lot("L2")
    with pytest.raises(DuplicateKey, match="another lot 'L1'"):
        store.add_lot(type(other)("L1", other.kind, "x", other.sha256, None), entries)


def test_a_private_key_is_kept_until_its_unit_has_proven_it_and_leaves_no_trace(
    store: Store, store_path: Path
) -> None:
    mark = b"wrapped key that has to go " * 40
    store.add_lot(lot("L1", KEYS), [entry(PKI.chain("board-1", new_key()), mark)])
    visit = joined(store, 1)
    assert store.draw(visit, "L1", b"", "", DAYS).wrapped == mark
    end(store, visit, proven=False)
    visit = joined(store, 1)
    assert store.draw(visit, "L1", b"", "", DAYS).wrapped == mark, "a PASS without proof deletes nothing"
    end(store, visit)
    visit = joined(store, 1)
    assert store.draw(visit, "L1", b"", "", DAYS).wrapped == b""
    assert [view.installed for view in store.lots()] == [1]
    wal = store_path.with_name("station.db-wal")
    for _ in range(100):
        if wal.stat().st_size == 0:
            break
        store.wait_change(store.changes(), 0.05)
    for file in (store_path, wal):
        assert mark[:27] not in file.read_bytes()


def test_an_element_is_adopted_by_its_vendors_manifest_once(store: Store) -> None:
    key, other = new_key(), new_key()
    chain = PKI.chain("element-1", key)
    store.add_lot(lot("V1", PRELOADED), [preloaded_entry(key, chain[0]), preloaded_entry(other)])
    visit = joined(store, 1)
    for _ in range(2):
        store.adopt(visit, "preloaded:V1", chain, digest(key), "V1")
    with pytest.raises(DuplicateKey, match="unit board-1"):
        store.adopt(joined(store, 2, "B"), "preloaded:V1", chain, digest(key), "V1")
    third = joined(store, 3, "C")
    with pytest.raises(CertificateUntrusted, match="not in the vendor's manifest"):
        store.adopt(third, "preloaded:V1", PKI.chain("x", new_key()), digest(new_key()), "V1")
    store.adopt(third, "preloaded:V1", PKI.chain("no digest given", other), digest(other), "V1")


def test_another_certificate_than_the_manifest_lists_is_refused(store: Store) -> None:
    key = new_key()
    store.add_lot(lot("V1", PRELOADED), [preloaded_entry(key, PKI.leaf("element-1", key))])
    with pytest.raises(CertificateUntrusted, match="lists another certificate"):
        store.adopt(joined(store, 1), "preloaded:V1", PKI.chain("element-1", key), digest(key), "V1")
    assert store.lots()[0].free == 1


def test_stock_rows_are_never_deleted_nor_given_to_another(store: Store, store_path: Path) -> None:
    key = new_key()
    store.add_lot(lot("L1"), [entry(PKI.chain("one", key))])
    store.draw(joined(store, 1), "L1", digest(key), "", DAYS)
    unit = parts.join(store, parts.plug(store, "B"), 2).unit
    with apsw.Connection(str(store_path)) as db:
        for change in ("DELETE FROM stock", "UPDATE stock SET unit = NULL, drawn = NULL"):
            with pytest.raises(apsw.ConstraintError, match=r"never taken back|stays its own"):
                db.execute(change)
        with pytest.raises(apsw.ConstraintError, match="stays its own"):
            db.execute("UPDATE stock SET unit = ?", (unit,))


def test_a_board_may_be_known_by_a_key_in_stock_whose_certificate_it_then_gets(store: Store) -> None:
    key = new_key()
    store.add_lot(lot("L1"), [entry(PKI.chain("pooled-1", key))])
    visit = parts.plug(store)
    store.join(visit, "key", digest(key).hex(), "pooled-1", [])
    assert store.stock_name(digest(key)) == "pooled-1"
    assert store.draw(visit, "L1", digest(key), "pooled-1", DAYS).key == digest(key)


def test_a_lot_for_keys_of_boards_that_were_seen_before_comes_in_but_not_with_their_private_keys(
    store: Store,
) -> None:
    key, taken = new_key(), new_key()
    visit = parts.plug(store)
    store.join(visit, "key", digest(key).hex(), "incoming-1", [])
    with pytest.raises(DuplicateKey, match="incoming-1 has it as its identity"):
        store.add_lot(lot("L1", KEYS), [entry(PKI.chain("incoming-1", key), b"w")])
    store.add_lot(lot("L2"), [entry(PKI.chain("incoming-1", key))])
    with pytest.raises(DuplicateKey, match="incoming-1 has it as its identity"):
        store.draw(joined(store, 2, "B"), "L2", digest(key), "", DAYS)
    store.draw(visit, "L2", digest(key), "incoming-1", DAYS)
    third = parts.plug(store, "C")
    store.join(third, "key", digest(taken).hex(), "keyed-3", [])
    store.record_certificate(third, "p", PKI.chain("keyed-3", taken))
    with pytest.raises(DuplicateKey, match="keyed-3"):
        store.add_lot(lot("L3"), [entry(PKI.chain("another", taken))])
