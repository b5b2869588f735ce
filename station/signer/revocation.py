"""What the station's CA has revoked, and its revocation lists (RFC 5280, 5): one for each name and key it has had.

A list is handled like a certificate: number and bytes are durable before the token signs, the list before it leaves.
A list that wasn't signed yet is signed as it stands, so that no number ever stands for two lists.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
from dataclasses import dataclass
from typing import Any, Final

import apsw
import structlog
from asn1crypto import crl as asn1_crl
from asn1crypto import x509 as asn1_x509
from cryptography import x509

from hal.call import Call
from hal.errors import ConfigError, KeyMissing, StationError, TokenError, quote
from hal.interfaces import CaToken
from station.messages.ca import CRL_LIMIT, Reason, RevocationList, Revoked
from station.signer.authority import Authority, spki_of
from station.signer.clock import TrustedClock
from station.signer.generations import Generation, Generations, note_in
from station.signer.ledger import Ledger
from station.signer.token_key import TokenKey, bytes_to_be_signed, signature_hash

REASONS: Final[dict[Reason, x509.ReasonFlags | None]] = {
    "unspecified": None,  # then the extension should be absent (RFC 5280, 5.3.1)
    "key-compromise": x509.ReasonFlags.key_compromise,
    "affiliation-changed": x509.ReasonFlags.affiliation_changed,
    "superseded": x509.ReasonFlags.superseded,
    "cessation-of-operation": x509.ReasonFlags.cessation_of_operation,
    "privilege-withdrawn": x509.ReasonFlags.privilege_withdrawn,
}

_BY_ID: Final = (
    "SELECT id, number, issuer, this_update, next_update, entries, tbs, crl FROM crls WHERE id = ?"
)
_LAST: Final = (
    "SELECT id, number, issuer, this_update, next_update, entries, tbs, crl FROM crls"
    " WHERE scope = ? ORDER BY number DESC LIMIT 1"
)
SIGNATURE_ROOM: Final = 1024
"""Octets of a list beside its TBSCertList: algorithm and signature."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _List:
    """A list's row. `crl` is None until it was signed."""

    id: int
    number: int
    issuer: bytes
    this_update: int
    next_update: int
    entries: int
    tbs: bytes
    crl: bytes | None


class Revocations:
    """Thread-safe."""

    def __init__(
        self, ledger: Ledger, token: CaToken, generations: Generations, clock: TrustedClock, days: int
    ) -> None:
        self._ledger, self._token, self._generations, self._clock = ledger, token, generations, clock
        self._days = dt.timedelta(days=days)
        self._lock = threading.Lock()

    def revoke(self, name: str, reason: Reason, why: str, by: str) -> Revoked:
        """Durable on return. `name`: a unit, a registration ID, or a serial number (hexadecimal).

        What was revoked before stays as it was. ConfigError when the ledger has no such certificate.
        """
        now = int(self._clock.now().timestamp())
        with self._ledger.using() as db, db:
            rows: list[tuple[Any, ...]] = db.execute(
                "SELECT id, unit, serial, tbs FROM certificates WHERE unit = ? OR registration_id = ? OR serial = ?",
                (name, name, _serial(name)),
            ).fetchall()
            if len(rows) != 1:
                known = "several certificates" if rows else "no certificate"
                message = f"this CA has issued {known} for {quote(name)}"
                hint = (
                    "Give the unit, its registration ID, or the certificate's serial number in hexadecimal."
                )
                raise ConfigError(message, hint=hint)
            ((entry, unit, serial, tbs),) = rows
            end = asn1_x509.TbsCertificate.load(tbs)["validity"]["not_after"].native
            db.execute(
                "INSERT INTO revocations VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (entry, now, reason, int(end.timestamp())),
            )
            new = db.changes() > 0
            if new:
                note_in(db, now, by, "revoke", f"unit {unit}, serial {serial.hex()}, {reason}: {why}")
            kept: Any = db.execute(
                "SELECT revoked_at, reason FROM revocations WHERE entry = ?", (entry,)
            ).fetchone()
        if new:
            _log.info("revoked", unit=unit, serial=serial.hex(), reason=reason, by=by)
        return Revoked(unit=unit, serial=serial, at=kept[0], reason=kept[1], new=new)

    def make(self, call: Call, number: int | None) -> RevocationList:
        """A list of generation `number`, or of the one that issues: newly made, with a number of its own."""
        with self._lock:
            now = self._clock.now()
            generation = self._generations.active(now) if number is None else self._generations.get(number)
            if generation is None:
                message = "no CA certificate is installed"
                raise KeyMissing(message, hint="An engineer runs `hallmark ca install`.")
            _check_may_sign_lists(generation.authority)
            last = self._last(generation)
            if last is not None and last.crl is None:
                last = self._signed(call, last)
            return _answer(self._signed(call, self._intended(generation, last, now)))

    def _intended(self, generation: Generation, last: _List | None, now: dt.datetime) -> _List:
        authority = generation.authority
        begin = max(now, _moment(last.this_update)) if last else now
        end = min(begin + self._days, authority.issuer.not_valid_after_utc)
        if end <= begin:
            message = (
                f"generation {generation.number} of the CA ended on {end:%Y-%m-%d}: it signs no more lists"
            )
            raise ConfigError(message)
        number = last.number + 1 if last else 1
        with self._ledger.using() as db, db:
            rows = self._revoked(db, authority, last.this_update if last else 0)
            builder = _builder(authority, rows, number, begin, end)

            def build(key: TokenKey) -> object:
                return builder.sign(key, signature_hash(key))

            tbs = bytes_to_be_signed(authority.spki, build)
            if len(tbs) > CRL_LIMIT - SIGNATURE_ROOM:
                message = f"a revocation list of {len(rows)} entries is longer than {CRL_LIMIT} octets"
                raise StationError(message)
            times = int(begin.timestamp()), int(end.timestamp())
            db.execute(
                "INSERT INTO crls (scope, number, issuer, this_update, next_update, entries, tbs)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (_scope(authority), number, authority.sha256, *times, len(rows), tbs),
            )
        made = self._last(generation)
        if made is None:
            message = "the ledger lost a revocation list that it had taken"
            raise StationError(message)
        return made

    def _signed(self, call: Call, wanted: _List) -> _List:
        generation = self._generations.of(wanted.issuer)
        if generation is None:
            message = "the ledger has a revocation list of a CA that it doesn't know"
            raise KeyMissing(message)
        signature = self._token.sign(call, generation.label, wanted.tbs)
        made = _put_together(wanted.tbs, signature)
        _verify(made, wanted.tbs, generation.authority)
        self._keep(wanted.id, made)
        _log.info(
            "revocation list", generation=generation.number, number=wanted.number, entries=wanted.entries
        )
        return self._get(_BY_ID, wanted.id) or wanted

    def _keep(self, row: int, made: bytes) -> None:
        with self._ledger.using() as db, db:
            db.execute("UPDATE crls SET crl = ? WHERE id = ? AND crl IS NULL", (made, row))

    def _last(self, generation: Generation) -> _List | None:
        return self._get(_LAST, _scope(generation.authority))

    def _get(self, query: str, value: bytes | int) -> _List | None:
        with self._ledger.using() as db:
            rows: list[tuple[Any, ...]] = db.execute(query, (value,)).fetchall()
        return _List(*rows[0]) if rows else None

    def _revoked(self, db: apsw.Connection, authority: Authority, since: int) -> list[tuple[Any, ...]]:
        """Serial, when and why, of all certificates that were issued under this name and key.

        An entry stays until it was in a list that is later than its certificate's end (RFC 5280, 5): until the list
        before was.
        """
        scope = _scope(authority)
        rows: list[tuple[Any, ...]] = []
        for one in self._generations.all:
            if _scope(one.authority) == scope:
                rows += db.execute(
                    "SELECT serial, revoked_at, reason FROM revocations JOIN certificates ON id = entry"
                    " WHERE issuer = ? AND not_after >= ? ORDER BY revoked_at, entry",
                    (one.authority.sha256, since),
                ).fetchall()
        return rows


def _scope(authority: Authority) -> bytes:
    issuer = authority.issuer
    return hashlib.sha256(issuer.subject.public_bytes() + spki_of(issuer)).digest()


def _serial(name: str) -> bytes:
    """A serial number from hexadecimal digits, as openssl prints them; empty for anything else."""
    digits = name.replace(":", "").removeprefix("0x")
    try:
        return bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits).lstrip(b"\0")
    except ValueError:
        return b""


def _check_may_sign_lists(authority: Authority) -> None:
    usage = authority.issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    if not usage.crl_sign:
        message = (
            f"{quote(authority.issuer.subject.rfc4514_string())} may not sign revocation lists (no cRLSign)"
        )
        hint = "Ask the root for a certificate whose key usage has cRLSign beside keyCertSign."
        raise ConfigError(message, hint=hint)


def _builder(
    authority: Authority, rows: list[tuple[Any, ...]], number: int, begin: dt.datetime, end: dt.datetime
) -> x509.CertificateRevocationListBuilder:
    key_id = authority.issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.issuer.subject)
        .last_update(begin.replace(microsecond=0))
        .next_update(end.replace(microsecond=0))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial, revoked_at, reason in rows:
        entry = x509.RevokedCertificateBuilder().serial_number(int.from_bytes(serial))
        entry = entry.revocation_date(_moment(revoked_at))
        flag = REASONS.get(reason)
        if flag is not None:
            entry = entry.add_extension(x509.CRLReason(flag), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder


def _put_together(tbs: bytes, signature: bytes) -> bytes:
    """CertificateList ::= SEQUENCE { tbsCertList, signatureAlgorithm, signatureValue } (RFC 5280, 5.1), DER."""
    to_be_signed = asn1_crl.TbsCertList.load(tbs, strict=True)
    made = asn1_crl.CertificateList(
        {
            "tbs_cert_list": to_be_signed,
            "signature_algorithm": to_be_signed["signature"],
            "signature": signature,
        }
    )
    return bytes(made.dump())


def _verify(made: bytes, tbs: bytes, authority: Authority) -> None:
    found = x509.load_der_x509_crl(made)
    public: Any = authority.issuer.public_key()
    if found.tbs_certlist_bytes != tbs:
        message = "the revocation list is not the intended one; it was not given out"
        raise TokenError(message)
    if not found.is_signature_valid(public):
        message = (
            "the token's signature does not verify with the issuing CA's certificate; no list was given out"
        )
        raise KeyMissing(
            message, hint="The CA key in the token is not the certificate's: see `hallmark ca status`."
        )


def _answer(made: _List) -> RevocationList:
    return RevocationList(made.number, made.this_update, made.next_update, made.entries, made.crl or b"")


def _moment(at: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)
