"""From a request to a certificate that never changes: check, make the intent durable, sign, verify, make it durable.

A crash at any point leaves either nothing, or an intent whose same bytes are signed the next time, or the certificate.
What left this room is in the ledger; what is asked for again comes from there, also without the token or a clock.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from hal.call import Call
from hal.errors import (
    ConfigurationUntrusted,
    IssuanceRefused,
    KeyMissing,
    ProfileViolation,
    StationError,
    TokenError,
    quote,
)
from hal.interfaces import CaToken
from station.attestation import check_offline, from_json
from station.messages import SignRequest
from station.signer.authority import der
from station.signer.clock import TrustedClock
from station.signer.csr import Request, read_csr
from station.signer.generations import Generation, Generations
from station.signer.ledger import Entry, Intent, Ledger
from station.signer.orders import Orders
from station.signer.profiles import Profile, load_profile
from station.signer.token_key import TokenKey, bytes_to_be_signed, put_together, signature_hash

DRAWS: Final = 4
"""Serial numbers that are tried: a second one is needed once in 2**79 certificates, unless something is broken."""

_log = structlog.get_logger()


class Issuer:
    """Thread-safe: parallel requests for one unit get the same bytes."""

    def __init__(
        self,
        ledger: Ledger,
        token: CaToken,
        generations: Generations,
        profiles: Path,
        clock: TrustedClock,
        configuration: bytes = b"",
        orders: Orders | None = None,
    ) -> None:
        """`configuration`: digest of the signed set that `profiles` come from; empty on a bench."""
        self._configuration = configuration
        self._orders = orders or Orders(ledger, "", (), required=False)
        self._ledger, self._token, self._generations = ledger, token, generations
        self._profiles, self._clock = profiles, clock

    def issue(self, call: Call, asked: SignRequest) -> list[bytes]:
        """The certificate and its chain without the root, DER, leaf first. The same bytes each time.

        Raises CsrRejected, DuplicateKey, ProfileViolation, ClockUntrusted, TokenError and its kin, StoreUnavailable.
        """
        if asked.configuration != self._configuration:
            raise ConfigurationUntrusted(
                "station and signer run with different configuration sets",
                hint="Restart both: systemctl restart hallmark-signer hallmark-station.",
            )
        request = read_csr(asked.csr, asked.registration_id)
        digest = hashlib.sha256(request.spki).digest()
        entry = self._ledger.find(asked.unit, digest, asked.registration_id)
        if entry is not None:
            self._check_standing(entry)
        if entry is None or entry.certificate is None:
            entry = self._sign(call, self._intended(call, entry, asked, request, digest))
        leaf, chain = entry.certificate, x509.load_pem_x509_certificates(entry.chain)
        if leaf is None:
            message = "the ledger lost a certificate that it had taken"
            raise TokenError(message)
        return [leaf, *(der(certificate) for certificate in chain)]

    def _intended(
        self, call: Call, entry: Entry | None, asked: SignRequest, request: Request, digest: bytes
    ) -> Entry:
        """The durable intent: the one that is there, if the key that it is for can still sign it, or a new one."""
        now = self._clock.now()
        active = self._active(now)
        if entry is not None and self._signable(call, entry, active, now):
            return entry
        profile = load_profile(self._profiles, asked.profile)
        profile.check_request(request)
        self._check_attestation(profile, asked.attestation, request)
        if entry is not None:
            # Whatever the former key may have signed never left.
            _log.warning("an unsigned intent of a CA that is no more is made anew", unit=asked.unit)
            intent = self._intent(asked, request, digest, profile, now, active)
            return self._ledger.renew(entry, intent, active.authority.pem, asked.attestation)
        share = self._orders.share(asked, now)
        for _ in range(DRAWS):
            intent = self._intent(asked, request, digest, profile, now, active)
            found = self._ledger.intend(
                intent, active.authority.pem, self._configuration or None, asked.attestation, share
            )
            if found is not None:
                return found
        message = f"{DRAWS} serial numbers were all taken: this machine's random numbers repeat themselves"
        raise StationError(
            message, hint="Nothing was issued. An engineer looks at the machine: its random source is broken."
        )

    def _check_attestation(self, profile: Profile, attestation: bytes, request: Request) -> None:
        """Before any intent: what the station was shown is checked again, as far as one can who wasn't there."""
        if attestation:
            check_offline(from_json(attestation), request.spki)
        elif profile.file.key.resident:
            message = (
                f"profile {profile.name!r} is for keys that were shown to be in a TPM, and nothing was shown"
            )
            raise ProfileViolation(
                message, hint="An engineer takes another profile, or a recipe whose key place is a TPM."
            )

    def _check_standing(self, entry: Entry) -> None:
        """IssuanceRefused for what was issued and may not be given out any more."""
        if entry.revoked is not None:
            message = f"the certificate of unit {quote(entry.intent.unit)} was revoked ({entry.revoked})"
            raise IssuanceRefused(message, hint="The unit was scrapped or withdrawn: set the board aside.")
        (issuer, *_) = x509.load_pem_x509_certificates(entry.chain)
        if entry.certificate is not None and der(issuer) not in self._generations.issuers:
            message = f"unit {quote(entry.intent.unit)} has its certificate from a CA of the other mode"
            hint = "An engineer decides: a bench board gets no production identity under the same name."
            raise IssuanceRefused(message, hint=hint)

    def _active(self, now: dt.datetime) -> Generation:
        active = self._generations.active(now)
        if active is None:
            message = "no CA certificate is installed"
            raise KeyMissing(message, hint="An engineer runs `hallmark ca install`.")
        return active

    def _signable(self, call: Call, entry: Entry, active: Generation, now: dt.datetime) -> bool:
        """Whether the intent can be signed as it stands. A former CA's is, as long as CA and key are there."""
        former = self._generations.of(entry.intent.issuer)
        if former is None or now >= former.authority.not_after:
            return False
        if former.label == active.label and former.authority.spki == active.authority.spki:
            return True
        if self._has_key(call, former):
            return True
        if not self._has_key(call, active):  # then it is another token, and says nothing of the former key
            message = f"the token has neither the key {former.label!r} nor {active.label!r}"
            raise KeyMissing(message)
        return False

    def _has_key(self, call: Call, generation: Generation) -> bool:
        try:
            return self._token.public_key(call, generation.label) == generation.authority.spki
        except KeyMissing:
            return False

    def _intent(
        self,
        asked: SignRequest,
        request: Request,
        digest: bytes,
        profile: Profile,
        now: dt.datetime,
        active: Generation,
    ) -> Intent:
        serial = serial_number(digest)
        facts = {"registration_id": asked.registration_id, "unit": asked.unit}
        builder = profile.builder(request, facts, serial, now, active.authority)

        def build(key: TokenKey) -> object:
            return builder.sign(key, signature_hash(key))

        tbs = bytes_to_be_signed(active.authority.spki, build)
        return Intent(
            unit=asked.unit,
            registration_id=asked.registration_id,
            spki_sha256=digest,
            serial=serial.to_bytes((serial.bit_length() + 7) // 8),
            profile=profile.name,
            issuer=active.authority.sha256,
            csr=asked.csr,
            tbs=tbs,
            intended_at=int(now.timestamp()),
        )

    def _sign(self, call: Call, entry: Entry) -> Entry:
        if entry.certificate is not None:  # a parallel request was faster
            return entry
        issuing = self._generations.of(entry.intent.issuer)
        if issuing is None:
            message = "the ledger has an intent of a CA that it doesn't know"
            raise KeyMissing(message)
        signature = self._token.sign(call, issuing.label, entry.intent.tbs)
        certificate = put_together(entry.intent.tbs, signature)
        _verify(certificate, entry)
        kept = self._ledger.keep(entry, certificate, int(self._clock.shown().timestamp()))
        _log.info(
            "issued", unit=entry.intent.unit, profile=entry.intent.profile, serial=entry.intent.serial.hex()
        )
        return kept


def serial_number(spki_sha256: bytes) -> int:
    """A serial number of 20 octets at most, positive (RFC 5280, 4.1.2.2): half of it the key's, half of it drawn.

    80 random bits (CA/Browser Forum, Baseline Requirements, 7.1: at least 64) after 79 bits of the key's digest. So
    two stations, or two starts, whose random sources repeat each other still give different numbers to different keys.
    """
    return int.from_bytes(spki_sha256[:10]) >> 1 << 80 | int.from_bytes(os.urandom(10))


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
