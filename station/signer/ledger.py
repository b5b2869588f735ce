"""The signer's own memory: each certificate from its intent to its bytes, in one SQLite file that outlives power cuts.

What holds at any moment: a unit, a registration ID, a key (its SubjectPublicKeyInfo) and a serial number are in at most
one row each, and the bytes to be signed are in the row before the token signs them. Nobody else opens the live file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import apsw

from hal.errors import DuplicateKey, StationError, StoreUnavailable, quote
from station.configuration_set import Release, refuse_older
from station.signer import durable
from station.signer.ledger_schema import migrate

FILE: Final = "ledger.db"
LOCK: Final = "lock"
SQLITE_NEEDED: Final = (3, 51, 3)
"""Earlier ones can lose acknowledged commits (the WAL-reset bug of 3.7.0 to 3.51.2)."""
BUSY_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be signed. `issuer`: SHA-256 of the issuing CA's certificate; `serial`: 1 to 20 octets."""

    unit: str
    registration_id: str
    spki_sha256: bytes
    serial: bytes
    profile: str
    issuer: bytes
    csr: bytes
    tbs: bytes
    intended_at: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One row. `certificate` is None until it was signed; `chain` is the issuer's, PEM; `revoked`: why, or None."""

    id: int
    intent: Intent
    certificate: bytes | None
    chain: bytes
    revoked: str | None


_COLUMNS: Final = (
    "certificates.id, unit, registration_id, spki_sha256, serial, profile, issuer, csr, tbs, intended_at,"
    " certificate, chain, reason"
)
_SELECT: Final = (
    f"SELECT {_COLUMNS} FROM certificates JOIN issuers ON issuers.sha256 = issuer"  # noqa: S608 - constants
    " LEFT JOIN revocations ON entry = certificates.id"
)


class OrderShare(Protocol):
    """A work order that an intent is for: `take` counts it, or raises why it may not."""

    @property
    def name(self) -> str: ...

    def take(self, db: apsw.Connection, now: int) -> None: ...


class Ledger:
    """Thread-safe; each method is one durable transaction. StoreUnavailable when the disk won't take it."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._db = connection
        self._lock = threading.Lock()

    def find(self, unit: str, spki_sha256: bytes, registration_id: str) -> Entry | None:
        """The unit's entry for this key. DuplicateKey when unit, key or registration ID stands in another one."""
        with self.using() as db:
            rows = db.execute(
                f"{_SELECT} WHERE unit = ? OR spki_sha256 = ? OR registration_id = ?",
                (unit, spki_sha256, registration_id),
            ).fetchall()
        for entry in map(_entry, rows):
            known = entry.intent
            if known.unit != unit and known.spki_sha256 == spki_sha256:
                message = (
                    f"the key of unit {quote(unit)} already has a certificate, for unit {quote(known.unit)}"
                )
                raise DuplicateKey(message)
            if known.unit != unit:
                message = (
                    f"registration ID {quote(registration_id)} belongs to another unit, {quote(known.unit)}"
                )
                raise DuplicateKey(message)
            if known.spki_sha256 != spki_sha256:
                message = f"unit {quote(unit)} already has a certificate, for another key"
                raise DuplicateKey(message)
            if known.registration_id != registration_id:
                message = f"unit {quote(unit)} has its certificate under another registration ID"
                raise DuplicateKey(message)
        return _entry(rows[0]) if rows else None

    def accept_release(self, serial: int, digest: bytes) -> None:
        """Remembers the signed configuration set; ConfigurationUntrusted when a newer one was here before."""
        with self.using() as db, db:
            row = db.execute("SELECT serial, digest FROM releases ORDER BY serial DESC LIMIT 1").fetchone()
            refuse_older(Release(*row) if row else None, serial, digest)
            db.execute("INSERT INTO releases VALUES (?, ?) ON CONFLICT DO NOTHING", (serial, digest))

    def intend(
        self,
        intent: Intent,
        chain: bytes,
        configuration: bytes | None = None,
        attestation: bytes = b"",
        order: OrderShare | None = None,
    ) -> Entry | None:
        """Makes the intent durable, or gives the one that a parallel request made durable first.

        None when the serial number is another certificate's already. `configuration`: SHA-256 of the signed set that it
        was asked for with; None on a bench. `attestation`: the transcript that was checked, empty where there is none.

        `order`: whose share it takes, in the same transaction; QuotaSpent.
        """
        with self.using() as db, db:
            db.execute("INSERT INTO issuers VALUES (?, ?) ON CONFLICT DO NOTHING", (intent.issuer, chain))
            db.execute(
                "INSERT INTO certificates (unit, registration_id, spki_sha256, serial, profile, issuer, csr, tbs,"
                " intended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                _values(intent),
            )
            if db.changes() and order is not None:
                order.take(db, intent.intended_at)
            db.execute(
                "INSERT INTO origins (id, configuration, work_order) SELECT id, ?, ? FROM certificates WHERE unit = ?"
                " ON CONFLICT DO NOTHING",
                (configuration, order.name if order else None, intent.unit),
            )
            self._attest(db, intent, attestation)
        return self.find(intent.unit, intent.spki_sha256, intent.registration_id)

    def _attest(self, db: apsw.Connection, intent: Intent, attestation: bytes) -> None:
        """Of a parallel request the one stays whose bytes to be signed stay."""
        if attestation:
            db.execute(
                "INSERT INTO attestations (id, transcript) SELECT id, ? FROM certificates WHERE unit = ? AND tbs = ?"
                " ON CONFLICT DO UPDATE SET transcript = excluded.transcript",
                (attestation, intent.unit, intent.tbs),
            )

    def attestation(self, unit: str) -> bytes | None:
        """The transcript that the unit's certificate was asked for with."""
        with self.using() as db:
            found: bytes | None = db.execute(
                "SELECT transcript FROM attestations JOIN certificates USING (id) WHERE unit = ?", (unit,)
            ).get
        return found

    def renew(self, entry: Entry, intent: Intent, chain: bytes, attestation: bytes = b"") -> Entry:
        """Puts `intent` in the place of an unsigned one whose issuer is no more. The signed stay as they are."""
        with self.using() as db, db:
            db.execute("INSERT INTO issuers VALUES (?, ?) ON CONFLICT DO NOTHING", (intent.issuer, chain))
            db.execute(
                "UPDATE certificates SET (unit, registration_id, spki_sha256, serial, profile, issuer, csr, tbs,"
                " intended_at) = (?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE id = ? AND certificate IS NULL",
                (*_values(intent), entry.id),
            )
            self._attest(db, intent, attestation)
        return self._get(entry.id)

    def keep(self, entry: Entry, certificate: bytes, signed_at: int) -> Entry:
        """Makes the certificate durable; the first one stays, so that all who ask get the same bytes."""
        with self.using() as db, db:
            db.execute(
                "UPDATE certificates SET certificate = ?, signed_at = ?"
                " WHERE id = ? AND certificate IS NULL AND tbs = ?",
                (certificate, signed_at, entry.id, entry.intent.tbs),
            )
        return self._get(entry.id)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[apsw.Connection]:
        """One durable transaction, for rooms that keep something else in the ledger."""
        with self.using() as db, db:
            yield db

    def counts(self) -> tuple[int, int]:
        """How many were issued, and how many intents wait for their signature."""
        with self.using() as db:
            pending: int = db.execute("SELECT count(*) FROM certificates WHERE certificate IS NULL").get
            # Rows are never deleted, so the last id counts them; count(*) reads the whole table.
            rows: int = db.execute("SELECT coalesce(max(id), 0) FROM certificates").get
        return rows - pending, pending

    def _get(self, row: int) -> Entry:
        with self.using() as db:
            return _entry(db.execute(f"{_SELECT} WHERE certificates.id = ?", (row,)).fetchall()[0])

    @contextlib.contextmanager
    def using(self) -> Iterator[apsw.Connection]:
        """The connection for the rooms that keep tables of their own in the ledger; StoreUnavailable as here."""
        with self._lock, _disk_errors():
            yield self._db


@contextlib.contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Only one process at a time works with the token and the ledger of `folder`. StationError when another does."""
    durable.make_folder(folder)
    try:
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"{folder / LOCK} can't be opened: {error.strerror}"
        raise StoreUnavailable(message, hint="Run this as the signer's user, or as root.") from error
    try:
        durable.give_to_owner(fd, folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"another signer or `hallmark ca` is working in {folder}"
            raise StationError(message, hint="Stop it first: systemctl stop hallmark-signer.") from error
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Ledger]:
    """The ledger in `folder`, made or migrated when need be. Only under `sole_user`."""
    found = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if found < SQLITE_NEEDED:
        message = (
            f"SQLite {apsw.sqlite_lib_version()} can lose what it has committed; 3.51.3 or later is needed"
        )
        raise StoreUnavailable(message, hint="Install the apsw of requirements/run.txt.")
    durable.make_folder(folder)
    _make_file(folder)
    with _disk_errors():
        db = apsw.Connection(str(folder / FILE))
    try:
        with _disk_errors():
            db.set_busy_timeout(BUSY_SECONDS * 1000)
            # Before the first journal_mode=WAL: the other way round a power cut can leave a rollback journal behind
            # that undoes later commits (crash images: 1,516 of 3,424 unusable; this way none).
            db.execute("PRAGMA synchronous = EXTRA")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA secure_delete = ON")
            migrate(db)
            durable.sync_folder(folder)
        yield Ledger(db)
    finally:
        db.close()


def _make_file(folder: Path) -> None:
    """The ledger's file, the signer's own also when root runs `hallmark ca` before the signer's first start.

    SQLite gives the files that it makes beside it to the same owner.
    """
    try:
        fd = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"the signer's ledger can't be opened: {error.strerror}"
        raise StoreUnavailable(message, hint="Run this as the signer's user, or as root.") from error
    try:
        durable.give_to_owner(fd, folder)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        message = f"the signer's ledger can't be used: {type(error).__name__}: {error}"
        raise StoreUnavailable(message) from error


def _values(intent: Intent) -> tuple[Any, ...]:
    return (
        intent.unit,
        intent.registration_id,
        intent.spki_sha256,
        intent.serial,
        intent.profile,
        intent.issuer,
        intent.csr,
        intent.tbs,
        intent.intended_at,
    )


def _entry(row: tuple[Any, ...]) -> Entry:
    return Entry(row[0], Intent(*row[1:10]), row[10], row[11], row[12])
