"""The issuing CA's generations: which certificates it has had, by which key of the token, and which issues when.

A generation is one certificate of the issuing CA with its chain, root and key. Several may be installed; one issues at
a time. Those before stay: their intents are finished with their key, and what they issued keeps its chain. Kept in the
ledger; nothing here calls the token.
"""

from __future__ import annotations

import datetime as dt
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apsw
from cryptography import x509

from hal.errors import ConfigError, quote
from station.signer import authority as ca
from station.signer.authority import Authority, der
from station.signer.ledger import Ledger

FROM_THE_BEGINNING: Final = 0
"""Since when the first generation issues."""


@dataclass(frozen=True, slots=True)
class Generation:
    """`label`: of its key in the token. `since`: when it begins, or began, to issue; None until somebody says."""

    number: int
    label: str
    authority: Authority
    since: dt.datetime | None


class Generations:
    """Those of one mode: bench CAs on a bench, the others in production. Thread-safe."""

    def __init__(self, ledger: Ledger, *, bench: bool) -> None:
        self._ledger, self._bench = ledger, bench
        self._lock = threading.Lock()
        self._read()

    @property
    def all(self) -> tuple[Generation, ...]:
        """By number."""
        return self._all

    @property
    def others(self) -> int:
        """How many generations are of the other mode, and never used in this one."""
        return self._others

    @property
    def issuers(self) -> list[bytes]:
        """Every issuing CA's certificate there ever was (DER): what a unit on record may have its certificate from."""
        return self._issuers

    def active(self, now: dt.datetime) -> Generation | None:
        """The one that issues at `now`."""
        begun = [one for one in self._decisions if one[0] <= now.timestamp()] or self._decisions[:1]
        return self.get(begun[-1][1]) if begun else None

    def next(self, now: dt.datetime) -> Generation | None:
        """The one that is to take over later."""
        coming = [number for at, number in self._decisions[1:] if at > now.timestamp()]
        return self.get(coming[0]) if coming else None

    def get(self, number: int) -> Generation:
        """ConfigError when there is none of that number."""
        for one in self._all:
            if one.number == number:
                return one
        known = ", ".join(str(one.number) for one in self._all) or "none is installed"
        message = f"there is no generation {number} of the issuing CA; expected one of: {known}"
        raise ConfigError(message, hint="See `hallmark ca status`.")

    def of(self, issuer: bytes) -> Generation | None:
        """The one whose certificate has this SHA-256."""
        return next((one for one in self._all if one.authority.sha256 == issuer), None)

    def labels(self) -> list[str]:
        """Of all CA keys in the token, those that have no certificate yet too."""
        with self._ledger.using() as db:
            return [label for (label,) in db.execute("SELECT label FROM ca_keys ORDER BY made_at, label")]

    def note_key(self, label: str, now: dt.datetime) -> None:
        """Remembers that a CA key of this label is in the token, or is about to be."""
        with self._ledger.using() as db, db:
            db.execute(
                "INSERT INTO ca_keys VALUES (?, ?) ON CONFLICT DO NOTHING", (label, int(now.timestamp()))
            )

    def install(self, label: str, made: Authority, now: dt.datetime, by: str) -> Generation:
        """Makes it durable. The first of a station issues at once, others when they are activated."""
        if made.bench != self._bench:
            message = (
                "this certificate was made by `hallmark ca init --bench`; this station is in production mode"
                if made.bench
                else "this certificate is of a production CA; this station is in bench mode"
            )
            hint = 'A bench station makes its CA with `hallmark ca init --bench`; mode = "production" takes this one.'
            raise ConfigError(message, hint=None if made.bench else hint)
        known = self.of(made.sha256)
        if known is not None:
            return known
        at = int(now.timestamp())
        with self._lock, self._ledger.using() as db, db:
            db.execute("INSERT INTO issuers VALUES (?, ?) ON CONFLICT DO NOTHING", (made.sha256, made.pem))
            db.execute("INSERT INTO ca_keys VALUES (?, ?) ON CONFLICT DO NOTHING", (label, at))
            db.execute(
                "INSERT INTO generations (label, issuer, root, installed_at) VALUES (?, ?, ?, ?)",
                (label, made.sha256, ca.pem([made.above[-1]]), at),
            )
            number = db.last_insert_rowid()
            if not self._decisions:
                _activate(db, number, FROM_THE_BEGINNING, at)
            note_in(db, at, by, "install", f"generation {number}: {made.issuer.subject.rfc4514_string()}")
        self._read()
        return self.get(number)

    def activate(self, number: int, since: dt.datetime, now: dt.datetime, by: str) -> Generation:
        """From `since` on generation `number` issues. Takes the place of what was to take over later."""
        wanted = self.get(number)
        authority = wanted.authority
        since = max(since, now)
        if not authority.not_before <= since < authority.not_after:
            message = (
                f"generation {number} is valid from {authority.not_before:%Y-%m-%d %H:%M} to"
                f" {authority.not_after:%Y-%m-%d %H:%M} UTC; it can't begin to issue at {since:%Y-%m-%d %H:%M}"
            )
            raise ConfigError(message, hint="Choose a later time with --at, or check the clock.")
        at = int(now.timestamp())
        with self._lock, self._ledger.using() as db, db:
            db.execute("DELETE FROM activations WHERE active_from > ?", (at,))
            _activate(db, number, int(since.timestamp()), at)
            note_in(db, at, by, "activate", f"generation {number} from {since:%Y-%m-%dT%H:%M:%SZ}")
        self._read()
        return self.get(number)

    def adopt(self, folder: Path, label: str, now: dt.datetime) -> None:
        """Takes in the chain of a release that kept it in files only."""
        found = ca.load(folder)
        if found is None or found.root is None or found.bench != self._bench or self.of(found.sha256):
            return
        if not self._all and not self._others:
            self.install(label, found, now, "the release before")

    def _read(self) -> None:
        with self._ledger.using() as db:
            rows: list[tuple[Any, ...]] = db.execute(
                "SELECT number, label, chain, root FROM generations JOIN issuers ON sha256 = issuer ORDER BY number"
            ).fetchall()
            decided: list[tuple[Any, ...]] = db.execute(
                "SELECT active_from, generation FROM activations ORDER BY active_from, id"
            ).fetchall()
            chains: list[tuple[Any, ...]] = db.execute("SELECT chain FROM issuers").fetchall()
        since = {number: dt.datetime.fromtimestamp(at, dt.UTC) for at, number in decided}
        found = [
            Generation(number, label, _authority(chain, root), since.get(number))
            for number, label, chain, root in rows
        ]
        self._all = tuple(one for one in found if one.authority.bench == self._bench)
        self._others = len(found) - len(self._all)
        mine = {one.number for one in self._all}
        self._decisions = [(at, number) for at, number in decided if number in mine]
        ever = (Authority(tuple(x509.load_pem_x509_certificates(chain))) for (chain,) in chains)
        self._issuers = [der(one.issuer) for one in ever if one.bench == self._bench]


def key_label(first: str, labels: list[str]) -> str:
    """The label for one key more: `first`, then first-2, first-3 ..."""
    if first not in labels:
        return first
    return next(name for number in range(2, len(labels) + 3) if (name := f"{first}-{number}") not in labels)


def note(ledger: Ledger, now: dt.datetime, by: str, what: str, detail: str) -> None:
    """Puts on record what somebody did to the CA."""
    with ledger.using() as db, db:
        note_in(db, int(now.timestamp()), by, what, detail)


def note_in(db: apsw.Connection, at: int, by: str, what: str, detail: str) -> None:
    """As `note`, in the caller's transaction."""
    db.execute("INSERT INTO acts (at, by, what, detail) VALUES (?, ?, ?, ?)", (at, quote(by), what, detail))


def _activate(db: apsw.Connection, number: int, since: int, at: int) -> None:
    db.execute(
        "INSERT INTO activations (generation, active_from, decided_at) VALUES (?, ?, ?)", (number, since, at)
    )


def _authority(chain: bytes, root: bytes) -> Authority:
    return Authority(tuple(x509.load_pem_x509_certificates(chain)), x509.load_pem_x509_certificate(root))
