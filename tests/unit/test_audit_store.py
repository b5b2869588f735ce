"""The trail in the store: each record with its leaf, a tree that fits them, and nothing that changes quietly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import AuditBroken, StationError
from station.audit import tree
from station.audit.record import canonical, encode_fields, read
from station.store import Store, audit_tree, schema
from tests import store_parts as parts
from tests.unit.test_audit_tree import nodes_of, plain_root

PLAIN = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
"""Python's own writer: for objects without fractions and with ASCII names it writes what RFC 8785 asks for."""


def records_of(path: Path) -> list[bytes]:
    """The canonical records by another hand than the station's, from the columns."""
    found = parts.rows(path, "SELECT seq, at, kind, unit, visit, nest, step, fields FROM audit ORDER BY seq")
    names = ("seq", "at", "kind", "unit", "visit", "nest", "step")
    return [
        PLAIN.encode(dict(zip(names, row[:7], strict=True)) | {"fields": json.loads(row[7])}).encode()
        for row in found
    ]


def fill(store: Store, count: int) -> None:
    for number in range(count):
        store.append_event("tested", fields={"number": number, "text": "größer\u2028<\x1f>"})


def test_each_record_is_stored_with_the_hash_of_its_canonical_form(store: Store, store_path: Path) -> None:
    parts.trip(store, 1)
    fill(store, 3)
    kept = [row[0] for row in parts.rows(store_path, "SELECT leaf FROM audit ORDER BY seq")]
    assert kept == [tree.leaf_hash(record) for record in records_of(store_path)]


@pytest.mark.parametrize("count", [1, 255, 256, 257, 700])
def test_the_tree_is_the_one_that_a_recomputation_from_the_rows_gives(
    store: Store, store_path: Path, count: int
) -> None:
    fill(store, count)
    records = records_of(store_path)
    for size in {0, 1, count // 2, count}:
        assert store.audit_root(size) == plain_root(records[:size])
    for old in (0, 1, count // 3, count - 1, count):
        proof = store.audit_consistency(old, count)
        assert proof == tree.consistency_proof(old, count, nodes_of(records))
    for seq in {1, count // 2 or 1, count}:
        assert store.audit_inclusion(seq, count) == tree.inclusion_proof(seq - 1, count, nodes_of(records))


def test_tiles_of_tiles_fit_too(store_path: Path) -> None:
    """65,536 records and some: two kept levels. Rows by hand, as a million appends would take minutes."""
    with Store.open(store_path, ballast=4096):
        pass
    db = apsw.Connection(str(store_path))
    count = 65_536 + 300
    leaves = [tree.leaf_hash(b"%d" % number) for number in range(count)]
    with db:
        db.executemany(
            "INSERT INTO audit (at, kind, fields, leaf) VALUES (0, 'k', '{}', ?)",
            ((leaf,) for leaf in leaves),
        )
    audit_tree.complete(db)
    growing = tree.Growing()
    for leaf in leaves:
        growing.append(leaf)
    assert audit_tree.root(db, count) == growing.root()
    assert db.execute("SELECT level, count(*) FROM audit_tiles GROUP BY level").fetchall() == [
        (8, 257),
        (16, 1),
    ]
    proof = audit_tree.inclusion(db, 40_000, count)
    assert tree.root_from_inclusion(39_999, count, leaves[39_999], proof) == growing.root()
    assert len(proof) <= 17
    db.close()


def test_a_store_of_the_first_version_gets_its_tree(store_path: Path) -> None:
    db = apsw.Connection(str(store_path))
    schema.migrate(db, schema.MIGRATIONS[:1])
    for number in range(300):
        db.execute(
            "INSERT INTO audit (at, kind, unit, fields) VALUES (?, 'old', 'u', ?)",
            (number, '{"a":1,"b":"x"}'),
        )
    db.close()
    with Store.open(store_path, ballast=4096) as store:
        fill(store, 300)
        assert store.audit_root(600) == plain_root(records_of(store_path))
    assert parts.rows(store_path, "SELECT count(*) FROM audit_tiles") == [(2,)]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit",
        "UPDATE audit SET at = 0",
        "DELETE FROM audit_tiles",
        "UPDATE audit_tiles SET place = 9",
        "DELETE FROM audit_checkpoints",
        "UPDATE audit_checkpoints SET root = randomblob(32)",
        "DELETE FROM audit_trails",
        "UPDATE audit_trails SET id = 'another'",
        "UPDATE audit_trails SET origin = 'another'",
        "INSERT INTO audit (at, kind, fields) VALUES (0, 'k', '{}')",
    ],
)
def test_rows_of_the_trail_are_never_changed_or_deleted(
    store: Store, store_path: Path, statement: str
) -> None:
    fill(store, 256)
    db = apsw.Connection(str(store_path))
    db.execute("INSERT INTO audit_checkpoints VALUES (1, 1, randomblob(32), x'00', x'00', 0)")
    db.execute("UPDATE audit_trails SET origin = 'test'")
    with pytest.raises(apsw.ConstraintError, match=r"append-only|without its leaf"):
        db.execute(statement)
    db.close()


def test_a_row_taken_away_is_found_and_its_number_never_given_again(store_path: Path) -> None:
    with Store.open(store_path, ballast=4096) as store:
        fill(store, 10)
    tamper(store_path, "DELETE FROM audit WHERE seq = 10")
    with Store.open(store_path, ballast=4096) as store:
        assert store.append_event("tested") == 11
        with pytest.raises(AuditBroken, match="record 10 "):
            store.audit_root(11)


def test_a_changed_row_no_longer_fits_its_leaf(store_path: Path) -> None:
    with Store.open(store_path, ballast=4096) as store:
        fill(store, 10)
    tamper(store_path, "UPDATE audit SET at = at + 1 WHERE seq = 4")
    with Store.open(store_path, ballast=4096) as store:
        assert [leaf.seq for leaf in store.audit_leaves(0) if not leaf.sound] == [4]


def tamper(path: Path, statement: str) -> None:
    """What somebody does who can write the file: triggers don't stop them."""
    db = apsw.Connection(str(path))
    for name in ("audit_keep_rows", "audit_keep_content"):
        db.execute(f"DROP TRIGGER IF EXISTS {name}")
    db.execute(statement)
    db.close()


@pytest.mark.parametrize("value", [1.5, b"octets", 1 << 53, ["list"]])
def test_what_has_no_canonical_form_is_refused_and_nothing_is_written(store: Store, value: Any) -> None:
    with pytest.raises(StationError, match="field 'given'"):
        store.append_event("tested", fields={"given": value})
    assert store.last_event() == 0


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VALUES = st.none() | st.booleans() | TEXT | st.integers(-(1 << 53) + 1, (1 << 53) - 1)
NAMES = st.text(st.characters(codec="ascii"), max_size=10)


@given(TEXT, TEXT | st.none(), st.dictionaries(NAMES, VALUES, max_size=5))
def test_canonical_records_are_those_of_another_writer_and_read_back(
    kind: str, unit: str | None, fields: dict[str, str | int | bool | None]
) -> None:
    made = canonical(7, 1, kind, unit, None, "A", None, encode_fields(fields))
    whole = {"seq": 7, "at": 1, "kind": kind, "unit": unit, "visit": None, "nest": "A", "step": None}
    assert made == PLAIN.encode(whole | {"fields": fields}).encode()
    assert read(made).fields == fields


@pytest.mark.parametrize(
    "octets",
    [
        b'{"at":1,"fields":{},"kind":"k","nest":null,"seq":1,"step":null,"unit":null,"visit": null}',
        b'{"fields":{},"at":1,"kind":"k","nest":null,"seq":1,"step":null,"unit":null,"visit":null}',
        b'{"at":1,"at":1,"fields":{},"kind":"k","nest":null,"seq":1,"step":null,"unit":null,"visit":null}',
        b'{"at":1,"fields":{},"kind":"\\u006b","nest":null,"seq":1,"step":null,"unit":null,"visit":null}',
        b'{"at":1,"fields":{"x":1.0},"kind":"k","nest":null,"seq":1,"step":null,"unit":null,"visit":null}',
        b'{"at":1,"fields":{},"kind":"k","nest":null,"seq":1,"step":null,"unit":null,"visit":null,"x":1}',
        b"",
    ],
)
def test_a_record_in_any_other_form_is_refused(octets: bytes) -> None:
    with pytest.raises(ValueError):
        read(octets)
