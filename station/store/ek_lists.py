"""Vendors' lists of endorsement keys: which lot names an EK Name, and which of a lot's EKs have been seen.

A list comes in over many small transactions, so that visits go on meanwhile, and counts from its last one on. Who
signed it has been checked before it comes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import apsw
import msgspec
from msgspec import Struct

from hal.errors import ConfigError, StationError
from station.messages import Facts
from station.store import audit

PAGE: Final = 10_000
"""Entries of one answer or one transaction, at most."""

_facts: Final[msgspec.msgpack.Decoder[Facts]] = msgspec.msgpack.Decoder(Facts)


class Listing(Struct, frozen=True):
    """The list that names an EK."""

    lot: str
    sha256: bytes


class EkList(Struct, frozen=True):
    """One list that counts. Times are Unix seconds; `sha256` is over the signed file's octets."""

    lot: str
    vendor: str
    created_at: float
    entries: int
    sha256: bytes
    signer: str
    imported_at: float


class ListedKey(Struct, frozen=True):
    """One EK of a list, and the unit that has it, None while none was seen."""

    ek_name: bytes
    unit: str | None


def find(db: apsw.Connection, ek_name: bytes) -> Listing | None:
    """The list that names this EK, the newest import first. One look-up, however long the lists are."""
    row = db.execute(
        "SELECT lot, sha256 FROM ek_list_entries JOIN ek_lists ON ek_lists.id = list"
        " WHERE ek_name = ? AND state = 'active' ORDER BY id DESC LIMIT 1",
        (ek_name,),
    ).fetchone()
    return None if row is None else Listing(*row)


def begin(
    db: apsw.Connection,
    now: int,
    lot: str,
    vendor: str,
    created: int,
    entries: int,
    sha256: bytes,
    signer: str,
) -> int | None:
    """A place for a new list's entries; None when this very list counts already. ConfigError for one that is older
    than what the lot has. `created`: milliseconds since 1970.
    """
    row = db.execute(
        "SELECT sha256, created FROM ek_lists WHERE lot = ? AND state = 'active'", (lot,)
    ).fetchone()
    if row is not None and row[0] == sha256:
        return None
    if row is not None and created <= row[1]:
        raise ConfigError(
            f"lot {lot} has a list that is as new or newer: an older one does not replace it",
            hint="Ask whoever signed it for a list with a later date, if this one is right.",
        )
    db.execute(
        "INSERT INTO ek_lists (lot, vendor, created, entries, sha256, signer, state, imported)"
        " VALUES (?, ?, ?, ?, ?, ?, 'importing', ?)",
        (lot, vendor, created, entries, sha256, signer, now),
    )
    return db.last_insert_rowid()


def add(db: apsw.Connection, _now: int, number: int, names: Sequence[bytes]) -> None:
    """Entries of a list that is coming in; sorted ones are written fastest."""
    db.executemany(
        "INSERT INTO ek_list_entries (ek_name, list) VALUES (?, ?)", ((name, number) for name in names)
    )


def finish(db: apsw.Connection, now: int, number: int) -> None:
    """From here on the list counts, and the one that its lot had before does not."""
    row = db.execute(
        "SELECT lot, vendor, entries, sha256, signer FROM ek_lists WHERE id = ? AND state = 'importing'",
        (number,),
    ).fetchone()
    if row is None:
        raise StationError("the EK list that is to count now is not coming in")
    lot, vendor, entries, sha256, signer = row
    db.execute("UPDATE ek_lists SET state = 'superseded' WHERE lot = ? AND state = 'active'", (lot,))
    db.execute("UPDATE ek_lists SET state = 'active', imported = ? WHERE id = ?", (now, number))
    audit.append(
        db,
        now,
        "ek-list-imported",
        fields={"lot": lot, "vendor": vendor, "entries": entries, "sha256": sha256.hex(), "signer": signer},
    )


def sweep(db: apsw.Connection, _now: int, after: bytes) -> bytes | None:
    """Removes what superseded and broken-off lists left behind the EK Name `after`, a page at most; how far it came,
    None when nothing is left. Not while a list is coming in.
    """
    if not db.execute("SELECT EXISTS (SELECT 1 FROM ek_lists WHERE state <> 'active')").get:
        return None
    last = db.execute(
        "SELECT max(ek_name) FROM (SELECT ek_name FROM ek_list_entries WHERE ek_name > ? ORDER BY ek_name LIMIT ?)",
        (after, PAGE),
    ).get
    if last is None:
        db.execute("DELETE FROM ek_lists WHERE state <> 'active'")
        return None
    db.execute(
        "DELETE FROM ek_list_entries WHERE ek_name > ? AND ek_name <= ?"
        " AND list IN (SELECT id FROM ek_lists WHERE state <> 'active')",
        (after, last),
    )
    return bytes(last)


def lists(db: apsw.Connection) -> list[EkList]:
    """Those that count, by lot."""
    return [
        EkList(lot, vendor, created / 1000, entries, sha256, signer, imported / 1000)
        for lot, vendor, created, entries, sha256, signer, imported in db.execute(
            "SELECT lot, vendor, created, entries, sha256, signer, imported FROM ek_lists"
            " WHERE state = 'active' ORDER BY lot LIMIT ?",
            (PAGE,),
        )
    ]


def entries_of(db: apsw.Connection, lot: str, after: bytes, limit: int) -> list[ListedKey]:
    """The lot's EKs with a Name over `after`, in order, and the units that have them."""
    rows = db.execute(
        "SELECT ek_name, unit FROM ek_list_entries LEFT JOIN identifiers"
        " ON kind = 'ek-name' AND value = lower(hex(ek_name)) AND strong = 1"
        " WHERE ek_name > ? AND list = (SELECT id FROM ek_lists WHERE lot = ? AND state = 'active')"
        " ORDER BY ek_name LIMIT ?",
        (after, lot, max(0, min(limit, PAGE))),
    )
    return [ListedKey(*row) for row in rows]


class MadeKey(Struct, frozen=True):
    """The EK of a unit that passed. `number` is the unit's, for paging; times are Unix seconds."""

    number: int
    unit: str
    registration_id: str
    sku: str
    work_order: str | None
    passed_at: float
    lot: str | None
    ek_public: bytes
    certificate: bytes | None


def made(db: apsw.Connection, after: int, limit: int) -> list[MadeKey]:
    """EKs of units that passed, with a number over `after`, in the order in which the units were first seen."""
    rows = db.execute(
        "SELECT units.id, units.unit, registration_id, sku, work_order, passed, value,"
        " (SELECT facts FROM actions WHERE actions.unit = units.unit AND step = 'tpm-identity'"
        "  AND action = 'endorsement-key' AND done IS NOT NULL ORDER BY actions.id DESC LIMIT 1)"
        " FROM units JOIN identifiers ON identifiers.unit = units.unit AND kind = 'ek-name' AND strong = 1"
        " WHERE units.id > ? AND passed IS NOT NULL AND retired IS NULL ORDER BY units.id LIMIT ?",
        (after, max(0, min(limit, PAGE))),
    )
    found: list[MadeKey] = []
    for number, unit, registration_id, sku, order, passed, name, packed in list(rows):
        facts = _facts.decode(packed) if packed is not None else {}
        public, certificate = facts.get("ek_public"), facts.get("ek_certificate")
        if isinstance(public, bytes):
            listing = find(db, bytes.fromhex(name))
            found.append(
                MadeKey(
                    number,
                    unit,
                    registration_id,
                    sku,
                    order,
                    passed / 1000,
                    listing.lot if listing else None,
                    public,
                    certificate if isinstance(certificate, bytes) else None,
                )
            )
    return found


def unlisted(db: apsw.Connection, after: str, limit: int) -> list[ListedKey]:
    """EKs of units that no list names, by EK Name in hex over `after`, in order."""
    rows = db.execute(
        "SELECT value, unit FROM identifiers WHERE kind = 'ek-name' AND strong = 1 AND value > ?1 AND NOT EXISTS"
        " (SELECT 1 FROM ek_list_entries JOIN ek_lists ON ek_lists.id = list AND state = 'active'"
        "  WHERE ek_name = unhex(value)) ORDER BY value LIMIT ?2",
        (after, max(0, min(limit, PAGE))),
    )
    return [ListedKey(bytes.fromhex(value), unit) for value, unit in rows]
