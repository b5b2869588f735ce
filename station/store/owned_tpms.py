"""TPMs that somebody else owns: the unit is put aside, an engineer is asked, and a permitted Clear is permitted once.

Nothing is cleared here, and nothing by itself: the permission goes with the unit's next visit to its worker.
"""

from __future__ import annotations

from typing import Final

import apsw

from station.store import audit, decisions, known_boards, visits
from station.store.decisions import Decision

TPM_OWNED: Final = "tpm-owned"
"""The kind of question; its subject is the EK's Name in hexadecimal."""
CLEAR, REJECT = "clear", "reject"
MEANS: Final = {
    f"means {CLEAR}": "the board is ours to take: its next visit may clear the TPM, which erases what its owner kept",
    f"means {REJECT}": "the unit is retired; its TPM is left as it is",
}


def ask(db: apsw.Connection, now: int, visit: str, ek_name: bytes, message: str) -> Decision:
    """Puts the visit's unit aside and asks what becomes of it."""
    here = visits.get_open(db, visit)
    unit = here.joined()
    asked = decisions.ask(
        db,
        now,
        TPM_OWNED,
        ek_name.hex(),
        f"somebody else owns this unit's TPM: {message}",
        [CLEAR, REJECT],
        unit=unit,
        details=MEANS,
        visit=visit,
        nest=here.nest,
    )
    known_boards.quarantine(db, now, unit, asked)
    return asked


def permitted(db: apsw.Connection, unit: str) -> Decision | None:
    """The unused permission to clear this unit's TPM, None where there is none."""
    name = db.execute("SELECT value FROM identifiers WHERE kind = 'ek-name' AND unit = ?", (unit,)).get
    found = decisions.latest(db, TPM_OWNED, str(name)) if name is not None else None
    return found if found is not None and found.answer == CLEAR and found.used_at is None else None


def spend(db: apsw.Connection, now: int, visit: str, means: str | None) -> None:
    """The visit has come past the place where it might clear: the permission ends, used or not needed."""
    here = visits.get_open(db, visit)
    unit = here.joined()
    found = permitted(db, unit)
    if found is None:
        return
    decisions.use(db, now, found.id)
    fields: dict[str, audit.Value] = {"decision": found.id, "by": found.by, "means": means or "not needed"}
    audit.append(db, now, "tpm-cleared", unit=unit, visit=visit, nest=here.nest, fields=fields)


def _clear(db: apsw.Connection, now: int, made: Decision) -> None:
    if made.unit is not None:
        known_boards.release(db, now, made.unit, made)


def _reject(db: apsw.Connection, now: int, made: Decision) -> None:
    if made.unit is not None:
        known_boards.retire(db, now, made.unit, made, "rejected: somebody else owns its TPM")


EFFECTS: Final[known_boards.Effects] = {
    (TPM_OWNED, CLEAR): _clear,
    (TPM_OWNED, REJECT): _reject,
}
