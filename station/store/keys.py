"""One unit, one key: every public key that a unit was seen with, and the one unit that it belongs to. For good.

Rows are never taken back: a key that was on one board is refused on every other, also years and restarts later. Private
keys don't come in here, nor do certificates: those have rooms of their own, and claim their keys here first.
"""

from __future__ import annotations

from typing import Final

import apsw

from hal.errors import DuplicateKey

IDENTITY: Final = "identity"
"""The key that a board without a TPM is known by."""
CERTIFICATE: Final = "certificate"
"""The key of the unit's certificate, wherever that came from."""
ENDORSEMENT: Final = "ek"
"""The EK of the unit's TPM."""

_MEANING: Final = {
    IDENTITY: "its identity",
    CERTIFICATE: "its certificate's",
    ENDORSEMENT: "its TPM's endorsement key",
}


def claim(db: apsw.Connection, now: int, unit: str, key: bytes, what: str, visit: str) -> None:
    """`key` (SHA-256 of the DER SubjectPublicKeyInfo) is this unit's from now on. Again is fine.

    DuplicateKey, with that unit's name, when it is another's.
    """
    refuse_if_known(db, key, unit)
    # A board may be known by a key whose certificate waits for it in stock; it is certified in no other way than that.
    lot = db.execute(
        "SELECT lot FROM stock WHERE key = ?1 AND unit IS NOT ?2 AND (unit IS NOT NULL OR ?3)",
        (key, unit, what == CERTIFICATE),
    ).get
    if lot is not None:
        raise DuplicateKey(
            f"this key stands in lot {lot}: its certificate is made already, and is drawn from there",
            hint="An engineer looks at the recipe's source, and at where this board comes from.",
        )
    db.execute(
        "INSERT INTO keys_seen (key, unit, what, visit, recorded) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (key) DO NOTHING",
        (key, unit, what, visit, now),
    )


def refuse_if_known(db: apsw.Connection, key: bytes, unit: str | None = None) -> None:
    """DuplicateKey when `key` is on record for another unit than this one."""
    row = db.execute(
        "SELECT keys_seen.unit, registration_id, what FROM keys_seen JOIN units USING (unit) WHERE key = ?",
        (key,),
    ).fetchone()
    if row is None or row[0] == unit:
        return
    _, registration_id, what = row
    raise DuplicateKey(
        f"this key is another unit's already: unit {registration_id} has it as {_MEANING.get(what, what)}",
        hint=f"Set the board aside, and unit {registration_id} too if it is at hand: one of them is a copy.",
    )


def meaning(db: apsw.Connection, key: bytes) -> str | None:
    """As what `key` was seen first: IDENTITY or CERTIFICATE; None when it wasn't."""
    found: str | None = db.execute("SELECT what FROM keys_seen WHERE key = ?", (key,)).get
    return found
