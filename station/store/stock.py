"""Certificates that were not made here: lots of a pool, and vendors' manifests of what is in their elements already.

Each entry is for one key and goes to one unit, once, durably, before the device gets anything of it; the same unit gets
the same one again. Chains come in already verified, private keys only wrapped under the token's key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import apsw
import msgspec
from msgspec import Struct

from hal.errors import CertificateUntrusted, DuplicateKey, StockEmpty, quote
from station.store import audit, certificates, keys, visits

KEYS: Final = "keys"
"""A lot whose private keys come with it, wrapped: for boards that take a key."""
CERTIFICATES: Final = "certificates"
"""A lot for keys that are in the devices already."""
PRELOADED: Final = "preloaded"
"""A vendor's manifest: key and certificate are in the element already."""
KINDS: Final = (KEYS, CERTIFICATES, PRELOADED)

_chain: Final[msgspec.msgpack.Decoder[list[bytes]]] = msgspec.msgpack.Decoder(list[bytes])


class Lot(Struct, frozen=True):
    """What comes in at once. `sha256`: of the signed manifest, or of what stood in for one in bench mode."""

    lot: str
    kind: str
    origin: str
    sha256: bytes
    signer: str | None


class Entry(Struct, frozen=True):
    """One key. `key`: SHA-256 of its SPKI; `certificate`: of the leaf, empty where a manifest names only the key.

    `chain`: DER, leaf first, empty for PRELOADED; `wrapped`: the private key (PKCS#8) for KEYS.
    """

    key: bytes
    certificate: bytes = b""
    issuer: bytes = b""
    serial: str = ""
    common_name: str = ""
    not_after: int = 0
    chain: list[bytes] = []
    wrapped: bytes = b""


class LotView(Struct, frozen=True):
    """How a lot stands. `first_ends`: when the first of its free certificates ends, Unix seconds, None if unknown."""

    lot: str
    kind: str
    origin: str
    signer: str | None
    sha256: str
    imported_at: float
    entries: int
    free: int
    installed: int
    """Whose private key is not kept any more, or was never here, and whose unit passed."""
    first_ends: float | None


class Drawn(Struct, frozen=True):
    """What a unit got. `wrapped` is empty for keys that are in the device already, and once it is settled."""

    lot: str
    key: bytes
    chain: list[bytes]
    wrapped: bytes


def add_lot(db: apsw.Connection, now: int, lot: Lot, entries: Sequence[Entry], by: str) -> bool:
    """All of a lot, or nothing. False when the same lot is there already; DuplicateKey says what is known already."""
    known = db.execute("SELECT sha256 FROM stock_lots WHERE lot = ?", (lot.lot,)).get
    if known is not None:
        if known == lot.sha256:
            return False
        raise DuplicateKey(
            f"there is another lot {quote(lot.lot)} already", hint="Give the new lot a name of its own."
        )
    db.execute(
        "INSERT INTO stock_lots (lot, kind, origin, sha256, signer, entries, imported)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (lot.lot, lot.kind, lot.origin, lot.sha256, lot.signer, len(entries), now),
    )
    for entry in entries:
        _refuse_known(db, entry, kind=lot.kind)
        db.execute(
            "INSERT INTO stock (key, lot, certificate, issuer, serial, common_name, not_after, chain, wrapped)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.key,
                lot.lot,
                entry.certificate or None,
                entry.issuer or None,
                entry.serial or None,
                entry.common_name or None,
                entry.not_after or None,
                msgspec.msgpack.encode(entry.chain) if entry.chain else None,
                entry.wrapped or None,
            ),
        )
    fields: dict[str, audit.Value] = {
        "lot": lot.lot,
        "kind": lot.kind,
        "entries": len(entries),
        "sha256": lot.sha256.hex(),
        "signer": lot.signer,
        "by": by,
    }
    audit.append(db, now, "stock-imported", fields=fields)
    return True


def _refuse_known(db: apsw.Connection, entry: Entry, *, kind: str) -> None:
    """One unit, one key, one certificate: also among all that was ever seen, issued or delivered.

    A board that is known by its key may get the certificate for it later. But not a key that others made and had.
    """
    certified = db.execute("SELECT 1 FROM certificates WHERE key = ?", (entry.key,)).get
    if kind == KEYS or certified or keys.meaning(db, entry.key) == keys.CERTIFICATE:
        keys.refuse_if_known(db, entry.key)
    other = db.execute(
        "SELECT lot FROM stock WHERE key = ?1 OR certificate = ?2 OR (issuer, serial) = (?3, ?4) OR common_name = ?5",
        (entry.key, entry.certificate, entry.issuer, entry.serial, entry.common_name),
    ).get
    if other is not None:
        raise DuplicateKey(
            f"key, certificate or name of {_name(entry)} stands in lot {other} already",
            hint="Ask whoever made the lots: no key and no certificate may be in two of them.",
        )
    issued = db.execute(
        "SELECT registration_id FROM certificates JOIN units USING (unit) WHERE (issuer, serial) = (?, ?)",
        (entry.issuer, entry.serial),
    ).get
    if issued is not None:
        raise DuplicateKey(f"the certificate {_name(entry)} is unit {issued}'s already")


def _name(entry: Entry) -> str:
    return quote(entry.common_name or entry.key.hex()[:16])


def draw(db: apsw.Connection, now: int, visit: str, lot: str, key: bytes, name: str, least_end: int) -> Drawn:
    """The unit's certificate of this lot: the one it has, or a free one, its own from now on.

    `key`: SHA-256 of the SPKI of the key that the device shows; empty takes any whose private key is here, the first to
    end first. `name`: the common name it has to have, empty for any. `least_end`: how long it has to last, in
    milliseconds. StockEmpty, CertificateUntrusted (no certificate for this key), DuplicateKey (another unit has it).
    """
    here = visits.get_open(db, visit)
    unit = here.joined()
    has = db.execute("SELECT key, lot FROM stock WHERE unit = ?", (unit,)).fetchone()
    if has is not None and (has[1] != lot or key not in (b"", has[0])):
        raise DuplicateKey(
            f"the unit has a certificate of lot {has[1]} already, for another key or another lot"
        )
    if has is None:
        chosen = _with_key(db, lot, key, name, least_end) if key else _any(db, lot, name, least_end)
        _give(db, now, here, chosen)
    found = _drawn(db, unit)
    certificates.record(db, now, visit, f"pool:{lot}", found.chain)
    return found


def adopt(db: apsw.Connection, now: int, visit: str, lot: str, key: bytes, certificate: bytes) -> None:
    """The element's key and certificate (SHA-256 of each) are the unit's, if the vendor's manifest has them."""
    here = visits.get_open(db, visit)
    unit = here.joined()
    row = db.execute(
        "SELECT unit, certificate FROM stock JOIN stock_lots USING (lot) WHERE key = ? AND lot = ? AND kind = ?",
        (key, lot, PRELOADED),
    ).fetchone()
    if row is None:
        raise CertificateUntrusted(f"the element's key is not in the vendor's manifest {quote(lot)}")
    owner, listed = row
    if listed is not None and listed != certificate:
        raise CertificateUntrusted(
            f"the manifest {quote(lot)} lists another certificate for the element's key"
        )
    if owner is None:
        _give(db, now, here, key)
    elif owner != unit:
        _taken(db, owner)


def settle(db: apsw.Connection, now: int, visit: str, unit: str) -> bool:
    """With a PASS of a visit that saw the device prove its key: the wrapped private key goes. Whether there was one."""
    proven = db.execute(
        "SELECT 1 FROM actions WHERE visit = ? AND step = 'certificate' AND action = 'prove' AND done IS NOT NULL",
        (visit,),
    ).get
    if proven is None:
        return False
    had = db.execute("SELECT wrapped IS NOT NULL FROM stock WHERE unit = ?", (unit,)).get
    db.execute("UPDATE stock SET wrapped = NULL, settled = coalesce(settled, ?) WHERE unit = ?", (now, unit))
    return bool(had)


def lots(db: apsw.Connection) -> list[LotView]:
    """All lots in the order of their import."""
    rows = db.execute(
        "SELECT lot, kind, origin, signer, stock_lots.sha256, imported, entries,"
        " (SELECT count(*) FROM stock WHERE stock.lot = stock_lots.lot AND unit IS NULL),"
        " (SELECT count(*) FROM stock WHERE stock.lot = stock_lots.lot AND settled IS NOT NULL),"
        " (SELECT min(not_after) FROM stock WHERE stock.lot = stock_lots.lot AND unit IS NULL)"
        " FROM stock_lots ORDER BY imported, lot"
    )
    return [
        LotView(
            lot,
            kind,
            origin,
            signer,
            sha256.hex(),
            imported / 1000,
            entries,
            free,
            installed,
            None if ends is None else ends / 1000,
        )
        for lot, kind, origin, signer, sha256, imported, entries, free, installed, ends in rows
    ]


def name_of(db: apsw.Connection, key: bytes) -> str | None:
    """The common name that a lot's certificate has for this key, None when no lot has it."""
    found: str | None = db.execute("SELECT common_name FROM stock WHERE key = ?", (key,)).get
    return found


def free_chains(db: apsw.Connection, lot: str, limit: int) -> list[list[bytes]]:
    """Chains of the lot's free entries, for a check."""
    rows = db.execute(
        "SELECT chain FROM stock WHERE lot = ? AND unit IS NULL AND chain IS NOT NULL ORDER BY not_after LIMIT ?",
        (lot, limit),
    )
    return [_chain.decode(chain) for (chain,) in rows]


def _with_key(db: apsw.Connection, lot: str, key: bytes, name: str, least_end: int) -> bytes:
    row = db.execute(
        "SELECT lot, unit, common_name, not_after FROM stock WHERE key = ? AND chain IS NOT NULL", (key,)
    ).fetchone()
    if row is None or row[0] != lot:
        raise CertificateUntrusted(f"lot {quote(lot)} has no certificate for the key that is in this device")
    _, owner, common_name, not_after = row
    if owner is not None:
        _taken(db, owner)
    if name and common_name != name:
        raise CertificateUntrusted(
            f"the certificate for this device's key is for {quote(common_name)}, not for {name}"
        )
    if not_after < least_end:
        raise CertificateUntrusted(
            "the certificate for this device's key ends too soon to lie in a warehouse",
            hint="An engineer asks for another certificate for this key.",
        )
    return key


def _any(db: apsw.Connection, lot: str, name: str, least_end: int) -> bytes:
    """A free one with its private key, the first to end first; of this common name where one is asked for."""
    row = db.execute(
        "SELECT key FROM stock WHERE lot = ?1 AND unit IS NULL AND wrapped IS NOT NULL AND not_after >= ?2"
        " AND (?3 = '' OR common_name = ?3) ORDER BY not_after, key LIMIT 1",
        (lot, least_end, name),
    ).fetchone()
    if row is None:
        for_whom = f" for {name}" if name else ""
        raise StockEmpty(f"lot {quote(lot)} has no free certificate{for_whom} that lasts long enough")
    return bytes(row[0])


def _give(db: apsw.Connection, now: int, here: visits.OpenVisit, key: bytes) -> None:
    unit = here.joined()
    db.execute(
        "UPDATE stock SET unit = ?, visit = ?, drawn = ? WHERE key = ? AND unit IS NULL",
        (unit, here.visit, now, key),
    )
    keys.claim(db, now, unit, key, keys.CERTIFICATE, here.visit)
    fields = {"lot": db.execute("SELECT lot FROM stock WHERE key = ?", (key,)).get, "key": key.hex()}
    audit.append(db, now, "drawn", unit=unit, visit=here.visit, nest=here.nest, fields=fields)


def _drawn(db: apsw.Connection, unit: str) -> Drawn:
    lot, key, chain, wrapped = next(
        db.execute("SELECT lot, key, chain, wrapped FROM stock WHERE unit = ?", (unit,))
    )
    if chain is None:
        raise CertificateUntrusted(f"lot {quote(lot)} is a manifest: it holds no certificates to draw")
    return Drawn(lot, key, _chain.decode(chain), wrapped or b"")


def _taken(db: apsw.Connection, owner: str) -> None:
    name = db.execute("SELECT registration_id FROM units WHERE unit = ?", (owner,)).get
    raise DuplicateKey(
        f"the certificate for this key is another unit's already: unit {name}",
        hint=f"Set the board aside, and unit {name} too if it is at hand: one of them is a copy.",
    )


def digest_of(chain: Sequence[bytes]) -> bytes:
    """SHA-256 of the leaf."""
    return hashlib.sha256(chain[0]).digest()
