"""Auth values on record: sealed to the escrow officers for good, wrapped under the token's key until the unit passes.

Only octets that others have sealed or wrapped come in here. A wrapped copy is handed out for the same EK only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import apsw
import msgspec

from hal.errors import EkMismatch, StationError
from station.store import audit, visits, wrap_keys

_names: Final[msgspec.msgpack.Decoder[list[str]]] = msgspec.msgpack.Decoder(list[str])


def next_generation(db: apsw.Connection, ek_name: bytes) -> int:
    """The number that the next escrow row of this EK gets, from 1."""
    return int(
        db.execute("SELECT 1 + coalesce(max(generation), 0) FROM escrows WHERE ek_name = ?", (ek_name,)).get
    )


def protect(
    db: apsw.Connection,
    now: int,
    visit: str,
    ek_name: bytes,
    hierarchies: Sequence[str],
    sealed: bytes,
    wrapped: bytes,
    generation: int | None,
    key: str = "",
) -> int:
    """Adds the escrow row and the copy for resume. Both, before any of these auth values is set on the device.

    `key` is the token key that wrapped the copy (`wrap_keys`).
    """
    here = visits.get_open(db, visit)
    unit = here.joined()
    _check_ek(db, unit, ek_name)
    number = next_generation(db, ek_name)
    if generation is not None and generation != number:
        raise StationError(f"an escrow was sealed as generation {generation}, its turn is {number}")
    db.execute(
        "INSERT INTO escrows (ek_name, generation, unit, visit, hierarchies, sealed, recorded)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (ek_name, number, unit, visit, msgspec.msgpack.encode(sorted(hierarchies)), sealed, now),
    )
    db.execute(
        "INSERT INTO resume_copies (ek_name, generation, wrapped) VALUES (?, ?, ?)",
        (ek_name, number, wrapped),
    )
    if key:
        wrap_keys.note(db, ek_name, number, key)
    audit.append(
        db,
        now,
        "protected",
        unit=unit,
        visit=visit,
        nest=here.nest,
        fields={"generation": number, "hierarchies": ",".join(sorted(hierarchies))},
    )
    return number


def resume_copies(db: apsw.Connection, visit: str, ek_name: bytes) -> list[tuple[int, bytes]]:
    """(generation, wrapped), newest first: all that may be set on the device now. EkMismatch for any other EK's."""
    _check_ek(db, visits.get_open(db, visit).joined(), ek_name)
    return list(
        db.execute(
            "SELECT generation, wrapped FROM resume_copies WHERE ek_name = ? ORDER BY generation DESC",
            (ek_name,),
        )
    )


def forget(db: apsw.Connection, unit: str) -> bool:
    """Deletes a unit's copies for resume; the officers' stay. Whether there were any."""
    db.execute(
        "DELETE FROM resume_copies WHERE ek_name IN (SELECT ek_name FROM escrows WHERE unit = ?)", (unit,)
    )
    return db.changes() > 0


def standing(db: apsw.Connection, unit: str) -> tuple[list[str], bool]:
    """The hierarchies of the newest escrow for the unit's EK, and whether a copy for resume is still there."""
    row = db.execute(
        "SELECT hierarchies, EXISTS (SELECT 1 FROM resume_copies AS copy"
        " WHERE (copy.ek_name, copy.generation) = (escrows.ek_name, escrows.generation))"
        " FROM escrows WHERE unit = ? ORDER BY generation DESC LIMIT 1",
        (unit,),
    ).fetchone()
    return (_names.decode(row[0]), bool(row[1])) if row else ([], False)


def newest(db: apsw.Connection, visit: str, ek_name: bytes) -> tuple[int, bytes] | None:
    """(generation, sealed) of the newest record of the joined unit's own EK; EkMismatch for any other."""
    _check_ek(db, visits.get_open(db, visit).joined(), ek_name)
    row = db.execute(
        "SELECT generation, sealed FROM escrows WHERE ek_name = ? ORDER BY generation DESC LIMIT 1",
        (ek_name,),
    ).fetchone()
    return (int(row[0]), bytes(row[1])) if row else None


def places(db: apsw.Connection, ek_name: bytes, generation: int) -> list[str]:
    """Where else that record is durable, beside this database."""
    rows = db.execute(
        "SELECT place FROM escrow_copies WHERE (ek_name, generation) = (?, ?) ORDER BY recorded",
        (ek_name, generation),
    )
    return [str(place) for (place,) in rows]


def copied(db: apsw.Connection, now: int, visit: str, ek_name: bytes, generation: int, place: str) -> None:
    """The record is durable at `place`, too."""
    here = visits.get_open(db, visit)
    db.execute(
        "INSERT INTO escrow_copies (ek_name, generation, place, recorded) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (ek_name, generation, place, now),
    )
    if db.changes():
        fields: dict[str, audit.Value] = {"generation": generation, "place": place}
        audit.append(db, now, "escrow-copied", unit=here.joined(), visit=visit, nest=here.nest, fields=fields)


def _check_ek(db: apsw.Connection, unit: str, ek_name: bytes) -> None:
    owner = db.execute(
        "SELECT unit FROM identifiers WHERE kind = 'ek-name' AND value = ?", (ek_name.hex(),)
    ).get
    if owner != unit:
        raise EkMismatch("the TPM's EK is not the one that this visit joined its unit by")
