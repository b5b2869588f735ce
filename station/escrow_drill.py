"""The drill: auth values from escrow are those of a live TPM. Of that very TPM, and without a guess.

Owner and endorsement count no wrong tries. The lockout auth is tried last and once, and only when the EK is the
record's, the TPM's own counter is 0, and all that can be tried without risk has held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hal.call import Call
from hal.driver import Bindings
from hal.errors import EkMismatch
from hal.interfaces import Custody, EndorsementIdentity, Ownership
from hal.types import EndorsementKey, Hierarchy
from station.escrow import EscrowRecord

TEMPLATES: Final = ("L-1", "L-2")
"""EKs that a station may have enrolled, where none is persisted any more."""
SECONDS: Final = 300.0
"""For the whole drill: an EK may have to be derived."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`held` None: not tried, and `why`."""

    hierarchy: Hierarchy
    held: bool | None
    why: str = ""


def drill(board: Bindings, record: EscrowRecord, call: Call) -> list[Finding]:
    """One finding for each auth of the record. EkMismatch, and nothing tried, at any other TPM."""
    ownership, custody = board.get(Ownership), board.get(Custody)
    state = ownership.state(call)
    # Deriving a key takes the endorsement auth, and an empty one would be a try, too.
    templates = () if Hierarchy.ENDORSEMENT in state.auths_set else TEMPLATES
    ek = _the_ek(board.get(EndorsementIdentity), record.ek_name, templates, call)
    custody.holds_ek(call, ek)
    found: list[Finding] = []
    for hierarchy in (Hierarchy.OWNER, Hierarchy.ENDORSEMENT):
        if (auth := record.auths.get(hierarchy.value)) is None:
            continue
        if hierarchy not in state.auths_set:
            found.append(Finding(hierarchy, False, "the TPM has none set"))
        else:
            held = ownership.proves(call, ek, hierarchy, auth)
            found.append(Finding(hierarchy, held, "" if held else "the TPM's is another one"))
    if (lockout := record.auths.get(Hierarchy.LOCKOUT.value)) is None:
        return found
    if Hierarchy.LOCKOUT not in state.auths_set:
        found.append(Finding(Hierarchy.LOCKOUT, False, "the TPM has none set"))
    elif any(not item.held for item in found):
        found.append(Finding(Hierarchy.LOCKOUT, None, "not tried: the record is not the one in force"))
    else:
        held = custody.proves_lockout(call, ek, lockout)
        found.append(Finding(Hierarchy.LOCKOUT, held, "" if held else "the TPM's is another one"))
    return found


def _the_ek(
    identity: EndorsementIdentity, ek_name: bytes, templates: tuple[str, ...], call: Call
) -> EndorsementKey:
    """The key whose Name the record has: its public part is verified thereby."""
    report = identity.endorsements(call)
    for template in (None, *templates):
        if template is not None:
            report = identity.derive(call, template)
        for key in report.keys:
            if key.name == ek_name:
                return key
    raise EkMismatch(
        "this TPM's endorsement key is not the one of the escrow record: nothing was tried",
        hint="Take the record of this board's unit, or the board of this record.",
    )
