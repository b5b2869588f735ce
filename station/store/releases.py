"""Which signed configuration sets this station has run with: an older one than the newest is refused, for good.

Signatures are checked in `station.configuration_set`; here is only the memory that makes a roll-back visible.
"""

from __future__ import annotations

import apsw

from station.configuration_set import Release, refuse_older
from station.store import audit


def newest(db: apsw.Connection) -> Release | None:
    """The set with the highest serial number that was ever taken; None before the first."""
    row = db.execute("SELECT serial, digest FROM releases ORDER BY serial DESC LIMIT 1").fetchone()
    return Release(*row) if row else None


def accept(db: apsw.Connection, now: int, serial: int, digest: bytes) -> None:
    """Remembers the set; ConfigurationUntrusted when a newer one, or another of this number, was here before."""
    last = newest(db)
    refuse_older(last, serial, digest)
    if last is None or last.serial < serial:
        db.execute("INSERT INTO releases (serial, digest, taken) VALUES (?, ?, ?)", (serial, digest, now))
        audit.append(db, now, "configuration-taken", fields={"serial": serial, "sha256": digest.hex()})
