"""Which key each unit was given, in the signer's ledger: never a key in clear, and no key for two units.

What holds at any moment: a unit and a registration ID have at most one key for each purpose, and a key is one unit's.
A row is durable before its key leaves the signer, sealed. What is kept to deliver a key again goes when the board has
it for good; the print stays, so that the key is known again. Nothing here wraps, seals or makes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hal.errors import DuplicateKey, quote
from hal.types import KeyPurpose
from station.messages import KEPT_LIMIT
from station.signer.ledger import Ledger


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One row; see the table in `ledger`. `kept` and `verifier` are wrapped under a token key, `upload` is sealed."""

    unit: str
    purpose: KeyPurpose
    registration_id: str
    origin: str
    print: bytes
    kept: bytes | None
    verifier: bytes | None
    upload: bytes
    spki: bytes
    made_at: int
    bound: bool = False
    """Whether it may go only to a transport key that the unit's own key vouches for."""


_COLUMNS = "unit, purpose, registration_id, origin, print, kept, verifier, upload, spki, made_at, bound"


class KeyLedger:
    """Thread-safe; each method is one durable transaction. StoreUnavailable when the disk won't take it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def find(self, unit: str, purpose: KeyPurpose) -> KeyEntry | None:
        with self._ledger.using() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM device_keys WHERE unit = ? AND purpose = ?",  # noqa: S608 - constants
                (unit, purpose.value),
            ).fetchall()
        return _entry(rows[0]) if rows else None

    def add(self, entry: KeyEntry) -> KeyEntry:
        """Makes it durable, or gives the one that a parallel request made durable first.

        DuplicateKey when the key, or the registration ID, is another unit's: whatever made it, it was not unique.
        """
        with self._ledger.using() as db, db:
            for unit, known in db.execute(
                "SELECT unit, print FROM device_keys"
                " WHERE unit <> ?1 AND (print = ?2 OR (registration_id, purpose) = (?3, ?4))",
                (entry.unit, entry.print, entry.registration_id, entry.purpose.value),
            ):
                if known == entry.print:
                    message = f"the key made for unit {quote(entry.unit)} is unit {quote(unit)}'s already"
                    raise DuplicateKey(
                        message,
                        hint="Stop the line and call an engineer: what makes the keys gives one twice.",
                    )
                message = (
                    f"registration ID {quote(entry.registration_id)} belongs to another unit, {quote(unit)}"
                )
                raise DuplicateKey(message)
            db.execute(
                f"INSERT INTO device_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
                " ON CONFLICT (unit, purpose) DO NOTHING",
                (
                    entry.unit,
                    entry.purpose.value,
                    entry.registration_id,
                    entry.origin,
                    entry.print,
                    entry.kept,
                    entry.verifier,
                    entry.upload,
                    entry.spki,
                    entry.made_at,
                    entry.bound,
                ),
            )
        found = self.find(entry.unit, entry.purpose)
        if found is None:
            message = f"the key of unit {quote(entry.unit)} was not recorded"
            raise DuplicateKey(message)
        return found

    def kept(self) -> list[str]:
        """Units with a key that could still be delivered, oldest first, at most `KEPT_LIMIT`."""
        with self._ledger.using() as db:
            rows = db.execute(
                "SELECT DISTINCT unit FROM device_keys WHERE kept IS NOT NULL ORDER BY made_at LIMIT ?",
                (KEPT_LIMIT,),
            ).fetchall()
        return [str(unit) for (unit,) in rows]

    def forget(self, units: Sequence[str]) -> None:
        """Deletes what was kept of these units' keys, from the file and from its log. Others stay as they are."""
        with self._ledger.using() as db:
            with db:
                db.executemany(
                    "UPDATE device_keys SET kept = NULL WHERE unit = ? AND kept IS NOT NULL",
                    [(unit,) for unit in units],
                )
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _entry(row: tuple[Any, ...]) -> KeyEntry:
    entry = KeyEntry(*row)
    return replace(entry, purpose=KeyPurpose(entry.purpose), bound=bool(entry.bound))
