"""Judges the audit trail from outside: every leaf and every root made anew from the rows, with hashlib and openssl.

RFC 6962, section 2.1, as its recursive definition; the records' form as docs/audit.md gives it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NAMES = ("seq", "at", "kind", "unit", "visit", "nest", "step", "fields")
TILE = 256
"""Leaves below one hash of the lowest kept level (8)."""
Say = Callable[[bool, str], None]
"""`judge`'s way to say no."""


def check(database: Path, ledger: Path, require: Say) -> None:
    """The trail as it is in the station's database, and what the signer knows of it."""
    # In this order: each of the three is never behind the one that was read before it.
    newest = _read(
        database, "SELECT size, root, note, key FROM audit_checkpoints ORDER BY trail DESC, size DESC LIMIT 1"
    )
    signed = _read(ledger, "SELECT size, root FROM trails WHERE closed_at IS NULL")
    tiles = _read(database, "SELECT place, hash FROM audit_tiles WHERE level = 8 ORDER BY place")
    rows = _read(database, f"SELECT {', '.join(NAMES)}, leaf FROM audit ORDER BY seq")
    leaves = [hashlib.sha256(b"\0" + canonical(row[:-1])).digest() for row in rows]
    require([row[0] for row in rows] == list(range(1, len(rows) + 1)), "the audit trail has a gap")
    changed = [row[0] for row, leaf in zip(rows, leaves, strict=True) if row[-1] != leaf]
    require(not changed, f"audit records {changed[:5]} are not what their leaves say")
    made = [(at, root(leaves[at * TILE : (at + 1) * TILE])) for at in range(len(leaves) // TILE)]
    require(tiles == made[: len(tiles)], "the audit tree's kept hashes are not those of its records")
    require(bool(newest) and bool(signed), "the audit trail was never signed")
    for who, size, found in (("station", *newest[0][:2]), ("signer", *signed[0])):
        require(
            size <= len(leaves), f"the {who} knows a checkpoint over {size} of {len(leaves)} audit records"
        )
        require(size // TILE <= len(tiles), "the audit tree lacks hashes of its records")
        require(found == root(leaves[:size]), f"the {who}'s checkpoint is not over the trail's records")
    require(newest[0][0] <= signed[0][0], "the signer has forgotten what it signed last")
    size, tree, note, key = newest[0]
    _signature(size, tree, note, key, require)


def root(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1, of leaf hashes."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + root(leaves[:half]) + root(leaves[half:])).digest()


def _read(path: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return db.execute(query).fetchall()


def canonical(row: Sequence[object]) -> bytes:
    record = dict(zip(NAMES, row, strict=True))
    record["fields"] = json.loads(str(record["fields"]))
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _signature(size: int, tree: bytes, note: bytes, key: bytes, require: Say) -> None:
    """A C2SP signed note: the text, an empty line, and a signature after four octets of the key's ID."""
    text, _, signature = note.decode().partition("\n\n")
    said = text.split("\n")[1:]
    require(said == [str(size), base64.b64encode(tree).decode()], "the signed note is over another head")
    with tempfile.TemporaryDirectory(prefix="judge-") as folder:
        public, signed = Path(folder, "key.der"), Path(folder, "signature")
        public.write_bytes(key)
        signed.write_bytes(base64.b64decode(signature.split()[-1])[4:])
        words = ("dgst", "-sha256", "-keyform", "DER", "-verify", str(public), "-signature", str(signed))
        done = subprocess.run(
            ["openssl", *words], input=f"{text}\n".encode(), capture_output=True, check=False
        )
    require(done.returncode == 0, "openssl refuses the audit checkpoint's signature")
