"""The judge: what vouches for this EK, under the recipe's policy? Asked by a visit, for what its worker brought.

Decides and says why; records nothing, speaks to no device. Whether the TPM has that EK is for the residency proof.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Final, assert_never

from msgspec.structs import replace

from hal.errors import EkMismatch, EkRevoked, EkUntrusted
from station.store.ek_lists import Listing
from station.trust.ek_public import EkPublic, read_ek_public
from station.trust.policy import CrlPolicy, EkPolicy, EkTrust
from station.trust.trust_set import TrustSet, read_leaf
from station.trust.verdict import Verdict

CERTIFICATE: Final = "certificate"
LIST: Final = "list"
NONE: Final = "none"
NOT_LISTED_HINT: Final = (
    "Set the board aside; if a whole lot is refused, an engineer imports its list: `hallmark ek-list import`."
)


def today() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Judge:
    """`trust` gives what is believed now, `listed` the list that names an EK Name. Thread-safe if these are."""

    def __init__(
        self,
        trust: Callable[[], TrustSet],
        listed: Callable[[bytes], Listing | None],
        clock: Callable[[], dt.datetime] = today,
    ) -> None:
        self._trust, self._listed, self._clock = trust, listed, clock

    def judge(
        self, policy: EkPolicy, ek_public: bytes, certificate: bytes | None, chain: Sequence[bytes]
    ) -> Verdict:
        """The verdict on the EK of `ek_public` (TPM2B_PUBLIC); `certificate` and the TPM's own `chain` are DER.

        EkUntrusted when nothing vouches that the policy asks for, EkRevoked under every policy, EkMismatch when the
        certificate is another key's, ProtocolViolation when `ek_public` is no endorsement key's.
        """
        ek = read_ek_public(ek_public)
        listing = self._listed(ek.name)
        verdict = _named(Verdict(trust=NONE, ek_name=ek.name.hex()), listing)
        refusal = EkUntrusted("the TPM's endorsement key can't be trusted: it has no EK certificate")
        certified: Verdict | None = None
        if certificate is not None:
            try:
                certified = _named(
                    by_certificate(self._trust(), policy.crl, ek, certificate, chain, self._clock()), listing
                )
            except EkRevoked:
                raise
            except EkUntrusted as error:
                refusal = error
                verdict = replace(verdict, notes=[f"its certificate does not vouch for it: {error}"])
        return _weighed(policy.trust, verdict, certified, refusal)


def by_certificate(
    trust: TrustSet,
    crl: CrlPolicy,
    ek: EkPublic,
    certificate: bytes,
    chain: Sequence[bytes],
    now: dt.datetime,
) -> Verdict:
    """The verdict when `certificate` vouches for `ek`; else EkUntrusted, EkRevoked or EkMismatch."""
    leaf = read_leaf(certificate)
    if leaf.spki != ek.spki:
        raise EkMismatch("the EK certificate names another key than the TPM's endorsement key")
    path, lists = trust.verify(leaf, chain, crl, now)
    return Verdict(
        trust=CERTIFICATE,
        ek_name=ek.name.hex(),
        anchor=path.anchor.subject,
        anchor_sha256=path.anchor.sha256.hex(),
        chain=[item.sha256.hex() for item in path.certificates],
        method="fallback" if path.by_hand else "strict",
        source=trust.origin.kind,
        bundle_serial=trust.origin.serial,
        bundle_sha256=trust.origin.sha256.hex(),
        crl=lists.state,
        notes=[lists.detail] if lists.detail else [],
    )


def _named(verdict: Verdict, listing: Listing | None) -> Verdict:
    if listing is None:
        return verdict
    return replace(verdict, lot=listing.lot, list_sha256=listing.sha256.hex())


def _weighed(asked: EkTrust, bare: Verdict, certified: Verdict | None, refusal: EkUntrusted) -> Verdict:
    """What the policy makes of a certificate that vouches (`certified`) or doesn't, and of a list."""
    listed = bool(bare.lot)
    match asked:
        case EkTrust.CERTIFICATE:
            if certified is None:
                raise refusal
            return certified
        case EkTrust.CERTIFICATE_OR_LIST:
            if certified is not None:
                return certified
            if listed:
                return replace(bare, trust=LIST)
            raise EkUntrusted(f"{refusal}; nor is it in a vendor's list", hint=refusal.hint)
        case EkTrust.LIST:
            if not listed:
                raise EkUntrusted("the TPM's endorsement key is in no vendor's list", hint=NOT_LISTED_HINT)
            return replace(certified or bare, trust=LIST)
        case EkTrust.IF_PRESENT:
            if certified is not None:
                return certified
            if bare.notes:
                raise refusal
            return replace(bare, trust=LIST) if listed else bare
        case EkTrust.NONE:
            return replace(certified or bare, trust=NONE)
        case _:
            assert_never(asked)
