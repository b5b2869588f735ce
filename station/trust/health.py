"""What is the matter with what is believed: certificates that end, revocation lists that are due or missing.

Looks at a trust set that holds; says nothing of any device.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from hal.errors import quote
from station.trust.crl import RevocationList
from station.trust.reading import Certificate
from station.trust.trust_set import TrustSet

SOON: Final = dt.timedelta(days=90)
"""Before a certificate ends."""
CRL_SOON: Final = dt.timedelta(days=7)
"""Before a list is due: their makers renew them monthly to yearly."""
NOTE, WARNING, WRONG = "note", "warning", "wrong"


class Ailment(Struct, frozen=True):
    """`state`: wrong (counts no more), warning (soon) or note."""

    state: str
    what: str
    hint: str = ""


def examine(trust: TrustSet, now: dt.datetime) -> list[Ailment]:
    """All that an engineer should know, the worst first."""
    found = [*_certificates(trust, now), *_lists(trust, now)]
    if not trust.roots:
        found.append(Ailment(WRONG, "there is no EK root", "Import a bundle with the TPM vendors' roots."))
    return sorted(found, key=lambda item: (WRONG, WARNING, NOTE).index(item.state))


def _certificates(trust: TrustSet, now: dt.datetime) -> Iterator[Ailment]:
    for kind, items in (("root", trust.roots), ("intermediate", trust.intermediates)):
        for item in items:
            state = _state(item.start, item.end, now, SOON)
            if state is not None:
                yield Ailment(
                    state,
                    f"{kind} {quote(item.subject)} {_dates(item.start, item.end, now)}",
                    "Ask its maker for its successor and make a bundle with it.",
                )


def _lists(trust: TrustSet, now: dt.datetime) -> Iterator[Ailment]:
    authorities = [*trust.roots, *trust.intermediates]
    for item in trust.crls:
        newer = any(_succeeds(other, item) for other in trust.crls)
        state = None if newer else _state(item.this_update, item.next_update, now, CRL_SOON)
        if state is not None:
            yield Ailment(
                state,
                f"revocation list of {quote(item.issuer)} {_dates(item.this_update, item.next_update, now)}",
                "Fetch its maker's present list and make a bundle with it.",
            )
    for authority in authorities:
        if not any(_of(item, authority) for item in trust.crls):
            yield Ailment(NOTE, f"there is no revocation list of {quote(authority.subject)}")


def _of(item: RevocationList, authority: Certificate) -> bool:
    return authority.spki in item.signers and item.issuer_id == authority.subject_id


def _succeeds(other: RevocationList, item: RevocationList) -> bool:
    return (
        other.issuer_id == item.issuer_id
        and bool(other.signers & item.signers)
        and other.this_update > item.this_update
        and (other.for_cas, other.for_devices) == (item.for_cas, item.for_devices)
    )


def _state(start: dt.datetime, end: dt.datetime, now: dt.datetime, soon: dt.timedelta) -> str | None:
    if not start <= now <= end:
        return WRONG
    return WARNING if end - now < soon else None


def _dates(start: dt.datetime, end: dt.datetime, now: dt.datetime) -> str:
    if now < start:
        return f"begins on {start.date()} only"
    return f"ended on {end.date()}" if now > end else f"ends on {end.date()}"
