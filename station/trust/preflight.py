"""What share of a lot the trust set can verify, before the lot is on the line. Counts, and why the others fail."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from hal.errors import EkMismatch, HallmarkError
from station.trust.ek_list import EkListFile, Entry
from station.trust.ek_public import read_ek_public
from station.trust.policy import CrlPolicy
from station.trust.trust_set import TrustSet, read_leaf

MOST_REASONS: Final = 100
"""Different reasons that are kept apart; further ones are counted together."""
OTHERS: Final = "other reasons"


@dataclass(slots=True)
class Share:
    """`verified` and `failed` of those with a certificate; `bare`: without one: the list alone can vouch for them."""

    lot: str
    total: int = 0
    verified: int = 0
    by_hand: int = 0
    failed: int = 0
    bare: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    crls: Counter[str] = field(default_factory=Counter)

    def described(self) -> dict[str, object]:
        certified = self.verified + self.failed
        return {
            "lot": self.lot,
            "total": self.total,
            "with_certificate": certified,
            "verified": self.verified,
            "verified_by_fallback": self.by_hand,
            "failed": self.failed,
            "share": self.verified / certified if certified else None,
            "reasons": dict(self.reasons.most_common()),
            "crls": dict(self.crls),
            "list_only": self.bare,
        }

    def lines(self) -> Iterator[str]:
        certified = self.verified + self.failed
        share = f" ({self.verified / certified:.1%})" if certified else ""
        yield f"lot {self.lot}: {self.total} EKs, {certified} with a certificate"
        yield f"  {self.verified} verify{share}, {self.by_hand} of them by the fallback"
        for reason, count in self.reasons.most_common():
            yield f"  {count} fail: {reason}"
        for state, count in self.crls.most_common():
            yield f"  {count} with revocation lists {state}"
        yield f"  {self.bare} without a certificate: only the list can vouch for them"


def preflight(trust: TrustSet, listed: EkListFile, now: dt.datetime) -> Share:
    """Judges each certificate of the list as a board's would be, but for the proof that the TPM has its key."""
    share = Share(listed.header.lot)
    for entry in listed.entries():
        share.total += 1
        if entry.certificate is None:
            share.bare += 1
            continue
        try:
            by_hand, crl = _verified(trust, entry, now)
        except HallmarkError as error:
            share.failed += 1
            reason = str(error)
            known = reason in share.reasons or len(share.reasons) < MOST_REASONS
            share.reasons[reason if known else OTHERS] += 1
        else:
            share.verified += 1
            share.by_hand += by_hand
            share.crls[crl] += 1
    return share


def _verified(trust: TrustSet, entry: Entry, now: dt.datetime) -> tuple[bool, str]:
    leaf = read_leaf(entry.certificate or b"")
    if entry.public is not None and read_ek_public(entry.public).spki != leaf.spki:
        raise EkMismatch("the certificate names another key than the entry")
    path, lists = trust.verify(leaf, (), CrlPolicy.WARN, now)
    return path.by_hand, lists.state
