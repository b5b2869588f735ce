"""The Merkle tree over the audit trail: leaf hashes stand beside their records, and each 256 of them have a tile.

Reads and appends only. What is signed, by whom and when, doesn't belong here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import apsw

from hal.errors import AuditBroken
from station.audit import tree
from station.audit.record import canonical
from station.audit.tree import leaf_hash, node_hash

TILE_LEVELS: Final = 8
"""Levels between two that are kept, as in c2sp.org/tlog-tiles."""
TILE: Final = 1 << TILE_LEVELS
PAGE: Final = 500
"""Records of one answer."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One record as it is exported: its canonical octets, made anew from the row, and the hash kept with the row."""

    seq: int
    record: bytes
    leaf: bytes

    @property
    def sound(self) -> bool:
        """False: the row was changed after it was written."""
        return leaf_hash(self.record) == self.leaf


def size(db: apsw.Connection) -> int:
    """Records of the trail. Record n is leaf n - 1."""
    return int(db.execute("SELECT coalesce(max(seq), 0) FROM audit").get)


def root(db: apsw.Connection, leaves: int) -> bytes:
    """The root over the first `leaves` records. AuditBroken when one of them is missing."""
    return tree.root(leaves, _nodes(db))


def peaks(db: apsw.Connection, leaves: int) -> list[bytes]:
    """The hashes of `tree.peaks`: what a reader needs to go on from there."""
    node = _nodes(db)
    return [node(level, index) for level, index in tree.peaks(leaves)]


def inclusion(db: apsw.Connection, seq: int, leaves: int) -> list[bytes]:
    """The proof that record `seq` is among the first `leaves`."""
    return tree.inclusion_proof(seq - 1, leaves, _nodes(db))


def consistency(db: apsw.Connection, old: int, new: int) -> list[bytes]:
    return tree.consistency_proof(old, new, _nodes(db))


def leaves(db: apsw.Connection, since: int, limit: int = PAGE) -> list[Leaf]:
    """Records with a number over `since`, in order, at most `limit`."""
    rows = db.execute(
        "SELECT seq, at, kind, unit, visit, nest, step, fields, leaf FROM audit WHERE seq > ? ORDER BY seq LIMIT ?",
        (since, max(0, min(limit, PAGE))),
    )
    return [_leaf(*row) for row in rows]


def leaves_of(db: apsw.Connection, unit: str, since: int, limit: int = PAGE) -> list[Leaf]:
    """Those that tell of one unit: by its name, or by a visit that joined it."""
    rows = db.execute(
        "SELECT seq, at, kind, unit, visit, nest, step, fields, leaf FROM audit WHERE unit = ?1 AND seq > ?2"
        " UNION ALL"
        " SELECT seq, at, kind, unit, visit, nest, step, fields, leaf FROM audit WHERE unit IS NULL AND seq > ?2"
        " AND visit IN (SELECT visit FROM visits WHERE unit = ?1) ORDER BY seq LIMIT ?3",
        (unit, since, max(0, min(limit, PAGE))),
    )
    return [_leaf(*row) for row in rows]


def grown(db: apsw.Connection, leaves: int) -> None:
    """Called for each new leaf: keeps the hash of each tile that is complete now."""
    level = TILE_LEVELS
    while leaves % (1 << level) == 0:
        _keep(db, level, (leaves >> level) - 1)
        level += TILE_LEVELS


def complete(db: apsw.Connection) -> None:
    """Adds the tiles that a store of an older version has not got. In one transaction of its own."""
    with db:
        level, last = TILE_LEVELS, size(db)
        while last >> level:
            kept = 1 + int(
                db.execute("SELECT coalesce(max(place), -1) FROM audit_tiles WHERE level = ?", (level,)).get
            )
            for place in range(kept, last >> level):
                _keep(db, level, place)
            level += TILE_LEVELS


def _keep(db: apsw.Connection, level: int, place: int) -> None:
    db.execute(
        "INSERT INTO audit_tiles (level, place, hash) VALUES (?, ?, ?)",
        (level, place, _combined(_below(db, level - TILE_LEVELS, place << TILE_LEVELS, TILE))),
    )


def _nodes(db: apsw.Connection) -> tree.Node:
    """Node hashes from tiles and leaves; each run of hashes is read once."""
    read: dict[tuple[int, int], list[bytes]] = {}

    def node(level: int, index: int) -> bytes:
        base = level - level % TILE_LEVELS
        width = 1 << (level - base)
        first = index * width
        tile = first >> TILE_LEVELS
        if (base, tile) not in read:
            read[base, tile] = list(_below(db, base, tile << TILE_LEVELS, TILE, short=True))
        start = first % TILE
        found = read[base, tile][start : start + width]
        if len(found) != width:
            raise AuditBroken(_missing(base, (tile << TILE_LEVELS) + len(read[base, tile])))
        return _combined(iter(found))

    return node


def _below(
    db: apsw.Connection, level: int, first: int, count: int, *, short: bool = False
) -> Iterator[bytes]:
    """`count` hashes of a kept level from place `first` on; with `short` those that there are, without a gap."""
    if level == 0:
        rows = db.execute(
            "SELECT seq - 1, leaf FROM audit WHERE seq BETWEEN ? AND ? ORDER BY seq",
            (first + 1, first + count),
        )
    else:
        rows = db.execute(
            "SELECT place, hash FROM audit_tiles WHERE level = ? AND place BETWEEN ? AND ? ORDER BY place",
            (level, first, first + count - 1),
        )
    found = []
    for place, (kept, octets) in enumerate(rows, first):
        if kept != place:
            raise AuditBroken(_missing(level, place))
        found.append(octets)
    if not short and len(found) != count:
        raise AuditBroken(_missing(level, first + len(found)))
    return iter(found)


def _missing(level: int, place: int) -> str:
    if level == 0:
        return f"record {place + 1} of the audit trail is missing"
    return (
        f"the hash over records {(place << level) + 1} to {place + 1 << level} of the audit trail is missing"
    )


def _combined(hashes: Iterator[bytes]) -> bytes:
    """The root over a power of two of hashes."""
    row = list(hashes)
    while len(row) > 1:
        row = [node_hash(row[at], row[at + 1]) for at in range(0, len(row), 2)]
    return row[0]


def _leaf(
    seq: int,
    at: int,
    kind: str,
    unit: str | None,
    visit: str | None,
    nest: str | None,
    step: str | None,
    fields: str,
    leaf: bytes,
) -> Leaf:
    return Leaf(seq, canonical(seq, at, kind, unit, visit, nest, step, fields.encode()), leaf)
