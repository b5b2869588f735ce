"""From a request to a certificate that never changes: check, make the intent durable, sign, verify, make it durable.

A crash at any point leaves either nothing, or an intent whose same bytes are signed the next time, or the certificate.
What left this room is in the ledger; what is asked for again comes from there, also without the token or a clock.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from hal.call import Call
from hal.errors import ClockUntrusted, KeyMissing, TokenError
from hal.interfaces import CaToken
from station.messages import SignRequest
from station.signer.authority import Authority, der, spki_of
from station.signer.csr import Request, read_csr
from station.signer.ledger import Entry, Intent, Ledger
from station.signer.profiles import Profile, load_profile
from station.signer.token_key import TokenKey, bytes_to_be_signed, put_together, signature_hash

RELEASED: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
"""No clock that is right shows a time before this program was written: it finds clocks that were reset."""
CLOCK_TOLERANCE: Final = dt.timedelta(minutes=5)
"""How far a clock may be set back by ordinary time synchronisation."""

_log = structlog.get_logger()


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Issuer:
    """Thread-safe: parallel requests for one unit get the same bytes."""

    def __init__(
        self,
        ledger: Ledger,
        token: CaToken,
        ca_key: str,
        authority: Authority,
        profiles: Path,
        clock: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self._ledger, self._token, self._ca_key = ledger, token, ca_key
        self._authority, self._profiles, self._clock = authority, profiles, clock

    def issue(self, call: Call, asked: SignRequest) -> list[bytes]:
        """The certificate and its chain without the root, DER, leaf first. The same bytes each time.

        Raises CsrRejected, DuplicateKey, ProfileViolation, ClockUntrusted, TokenError and its kin, StoreUnavailable.
        """
        request = read_csr(asked.csr, asked.registration_id)
        digest = hashlib.sha256(request.spki).digest()
        entry = self._ledger.find(asked.unit, digest, asked.registration_id)
        if entry is None or entry.certificate is None:
            entry = self._sign(call, self._intended(entry, asked, request, digest))
        leaf, chain = entry.certificate, x509.load_pem_x509_certificates(entry.chain)
        if leaf is None:
            message = "the ledger lost a certificate that it had taken"
            raise TokenError(message)
        return [leaf, *(der(certificate) for certificate in chain)]

    def _intended(self, entry: Entry | None, asked: SignRequest, request: Request, digest: bytes) -> Entry:
        """The durable intent: the one that is there, if the token's key can still sign it, or a new one."""
        if entry is not None:
            (issuer, *_) = x509.load_pem_x509_certificates(entry.chain)
            if spki_of(issuer) == self._authority.spki:
                return entry
        now = self._clock()
        self._check_clock(now)
        profile = load_profile(self._profiles, asked.profile)
        profile.check_request(request)
        intent = self._intent(asked, request, digest, profile, now)
        if entry is not None:
            # Its issuer was replaced before it was signed. Whatever the old key may have signed never left.
            _log.warning("an unsigned intent of a former CA is made anew", unit=asked.unit)
            return self._ledger.renew(entry, intent, self._authority.pem)
        return self._ledger.intend(intent, self._authority.pem)

    def _intent(
        self, asked: SignRequest, request: Request, digest: bytes, profile: Profile, now: dt.datetime
    ) -> Intent:
        serial = (
            x509.random_serial_number()
        )  # 159 random bits: positive, 20 octets at most (RFC 5280, 4.1.2.2)
        facts = {"registration_id": asked.registration_id, "unit": asked.unit}
        builder = profile.builder(request, facts, serial, now, self._authority.issuer)

        def build(key: TokenKey) -> object:
            return builder.sign(key, signature_hash(key))

        tbs = bytes_to_be_signed(self._authority.spki, build)
        return Intent(
            unit=asked.unit,
            registration_id=asked.registration_id,
            spki_sha256=digest,
            serial=serial.to_bytes((serial.bit_length() + 7) // 8),
            profile=profile.name,
            issuer=self._authority.sha256,
            csr=asked.csr,
            tbs=tbs,
            intended_at=int(now.timestamp()),
        )

    def _sign(self, call: Call, entry: Entry) -> Entry:
        if entry.certificate is not None:  # a parallel request was faster
            return entry
        signature = self._token.sign(call, self._ca_key, entry.intent.tbs)
        certificate = put_together(entry.intent.tbs, signature)
        _verify(certificate, entry)
        kept = self._ledger.keep(entry, certificate, int(self._clock().timestamp()))
        _log.info(
            "issued", unit=entry.intent.unit, profile=entry.intent.profile, serial=entry.intent.serial.hex()
        )
        return kept

    def _check_clock(self, now: dt.datetime) -> None:
        start = self._authority.issuer.not_valid_before_utc
        newest = self._ledger.newest()
        if now < max(start, RELEASED):
            message = f"the clock shows {now:%Y-%m-%d %H:%M} UTC, which is before {max(start, RELEASED):%Y-%m-%d %H:%M}"
            raise ClockUntrusted(message)
        if newest is not None and now + CLOCK_TOLERANCE < (
            latest := dt.datetime.fromtimestamp(newest, dt.UTC)
        ):
            message = f"the clock shows {now:%Y-%m-%d %H:%M} UTC; the latest certificate is of {latest:%Y-%m-%d %H:%M}"
            raise ClockUntrusted(message)


def _verify(certificate: bytes, entry: Entry) -> None:
    """What the builder doesn't: that this is the intended certificate, signed by the issuer it names."""
    (issuer, *_) = x509.load_pem_x509_certificates(entry.chain)
    made = x509.load_der_x509_certificate(certificate)
    if made.tbs_certificate_bytes != entry.intent.tbs:
        message = "the certificate is not the intended one; nothing was issued"
        raise TokenError(message)
    try:
        made.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as error:
        message = (
            "the token's signature does not verify with the issuing CA's certificate; nothing was issued"
        )
        hint = "The CA key in the token is not the certificate's: see `hallmark ca status`."
        raise KeyMissing(message, hint=hint) from error
