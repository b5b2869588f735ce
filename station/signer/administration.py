"""What people do to the issuing CA: keys, requests, installation, activation. In the signer while it runs, so that the
line goes on meanwhile, and in the `hallmark ca` command while it doesn't: the same code either way.

Who may is judged before: `service` by the peer's credentials, the command by the files' permissions.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from hal.call import Call
from hal.errors import ConfigError, KeyMissing, quote
from hal.interfaces import CaToken
from station import messages
from station.config import SignerSection
from station.messages.ca import CaAsked, CaSays
from station.signer import authority as ca
from station.signer import ceremony
from station.signer.authority import Authority, der, spki_of
from station.signer.clock import TrustedClock
from station.signer.generations import Generation, Generations, key_label, note
from station.signer.ledger import Ledger
from station.signer.revocation import Revocations

ACTIVE, NEXT, INSTALLED, FORMER = "active", "next", "installed", "former"
CERTIFICATES: Final = 32
"""In one installation, of all files together."""


class Administration:
    def __init__(
        self,
        station: str,
        section: SignerSection,
        folder: Path,
        ledger: Ledger,
        token: CaToken,
        generations: Generations,
        clock: TrustedClock,
    ) -> None:
        self._station, self._section, self._folder = station, section, folder
        self._ledger, self._token, self._generations, self._clock = ledger, token, generations, clock
        self._revocations = Revocations(ledger, token, generations, clock, section.crl_days)

    def answer(self, call: Call, asked: CaAsked, by: str) -> CaSays:
        """`by` is who asked, for the record. ConfigError, KeyMissing and what the token raises."""
        match asked:
            case messages.MakeCaRequest():
                return self._request(call, asked, by)
            case messages.InstallCa():
                return self._install(call, asked, by)
            case messages.ActivateCa():
                return self._activate(call, asked, by)
            case messages.Revoke():
                return self._revocations.revoke(asked.name, asked.reason, asked.why, by)
            case messages.MakeCrl():
                return self._revocations.make(call, asked.generation)
            case messages.AcceptClock():
                if not asked.reason.strip():
                    message = "expected a reason for accepting the clock"
                    raise ConfigError(message)
                shown = dt.datetime.fromtimestamp(asked.shown, dt.UTC)
                return messages.ClockAccepted(int(self._clock.accept(shown, by, asked.reason).timestamp()))

    def refresh_copies(self) -> None:
        """`ca-chain.pem` and `ca-root.pem` are those of what issues now."""
        active = self._generations.active(self._clock.shown())
        if active is not None:
            found = ca.load(self._folder)
            if found is None or found.above != active.authority.above:
                ca.store(self._folder, active.authority)

    def _request(self, call: Call, asked: messages.MakeCaRequest, by: str) -> messages.CaRequest:
        labels = self._generations.labels()
        new = asked.new_key or asked.label is not None
        label = self._label(asked, labels)
        subject = self._subject(asked, label, labels)
        if new:
            self._generations.note_key(label, self._clock.shown())
            ceremony.key_pair(call, self._token, label, asked.key_type)
        made = ceremony.request(call, self._token, label, subject)
        self._generations.note_key(label, self._clock.shown())
        note(self._ledger, self._clock.shown(), by, "request", f"key {label}")
        return messages.CaRequest(label, made)

    def _label(self, asked: messages.MakeCaRequest, labels: list[str]) -> str:
        if asked.label is not None:
            taken = (self._section.canary_key, self._section.wrap_key)
            if asked.label in taken:
                message = f"the key {asked.label!r} is the token's for other work; expected a name of its own"
                raise ConfigError(message)
            return asked.label
        if asked.new_key:
            return key_label(self._section.ca_key, labels or [self._section.ca_key])
        certified = {one.label for one in self._generations.all}
        waiting = [label for label in labels if label not in certified]
        if waiting:
            return waiting[-1]
        active = self._generations.active(self._clock.shown())
        return active.label if active else self._section.ca_key

    def _subject(self, asked: messages.MakeCaRequest, label: str, labels: list[str]) -> x509.Name:
        """As asked, or as the certificate that this key has, or by the station's name and the key's number."""
        held = [one for one in self._generations.all if one.label == label]
        if held and asked.common_name is None and asked.organization is None:
            return held[-1].authority.issuer.subject
        number = labels.index(label) + 1 if label in labels else len(labels) + 1
        name = f"{self._station} issuing CA" + (f" {number}" if number > 1 else "")
        return ceremony.named(asked.common_name or name, asked.organization)

    def _install(self, call: Call, asked: messages.InstallCa, by: str) -> messages.CaGeneration:
        certificates = _decoded(asked.certificates)
        (root,) = _decoded([asked.root]) if asked.root is not None else (None,)
        now = self._clock.shown()
        found = list(self._matching(call, certificates))
        fresh = [
            (label, spki)
            for label, spki in found
            if not any(self._generations.of(Authority((one,)).sha256) for one in _of_key(certificates, spki))
        ]
        if len(fresh) > 1:
            message = f"these certificates are for several keys: {', '.join(label for label, _ in fresh)}"
            raise ConfigError(message, hint="Install them one after the other.")
        label, spki = (fresh or found or [(self._section.ca_key, b"")])[0]
        # A certificate for later is checked as of when it begins; it can't be activated before.
        begins = [one.not_valid_before_utc for one in _of_key(certificates, spki)]
        made = ca.chain_from(certificates, root, spki, max([now, *begins]) if self._generations.all else now)
        generation = self._generations.install(label, made, now, by)
        self.refresh_copies()
        return self.view(generation)

    def _matching(self, call: Call, certificates: Sequence[x509.Certificate]) -> Iterator[tuple[str, bytes]]:
        """The token's CA keys that one of the certificates is for."""
        missing: list[KeyMissing] = []
        labels = dict.fromkeys([self._section.ca_key, *self._generations.labels()])
        for label in labels:
            try:
                spki = self._token.public_key(call, label)
            except KeyMissing as error:
                missing.append(error)
                continue
            if _of_key(certificates, spki):
                yield label, spki
        if len(missing) == len(labels):
            raise missing[0]

    def _activate(self, call: Call, asked: messages.ActivateCa, by: str) -> messages.CaGeneration:
        wanted = self._generations.get(asked.generation)
        if self._token.public_key(call, wanted.label) != wanted.authority.spki:
            message = f"the key {wanted.label!r} in the token is not that of generation {wanted.number}"
            raise KeyMissing(message)
        now = self._clock.shown()
        try:
            at = now if asked.at is None else dt.datetime.fromtimestamp(asked.at, dt.UTC)
        except (ValueError, OverflowError, OSError) as error:
            message = f"{asked.at} is no time: {error}"
            raise ConfigError(message) from error
        done = self._generations.activate(wanted.number, at, now, by)
        self.refresh_copies()
        return self.view(done)

    def view(self, generation: Generation) -> messages.CaGeneration:
        now = self._clock.shown()
        authority, since = generation.authority, generation.since
        active, following = self._generations.active(now), self._generations.next(now)
        state = FORMER if since is not None else INSTALLED
        if active is not None and active.number == generation.number:
            state = ACTIVE
        elif following is not None and following.number == generation.number:
            state = NEXT
        return messages.CaGeneration(
            number=generation.number,
            label=generation.label,
            state=state,
            subject=authority.issuer.subject.rfc4514_string()[:2000],
            not_before=int(authority.not_before.timestamp()),
            not_after=int(authority.not_after.timestamp()),
            since=None if since is None else int(since.timestamp()),
            chain=authority.ders,
            root=der(authority.above[-1]),
        )


def authority_of(generation: messages.CaGeneration) -> Authority:
    """The certificates of a generation that the signer has told of."""
    chain = tuple(x509.load_der_x509_certificate(one) for one in generation.chain)
    return Authority(chain, x509.load_der_x509_certificate(generation.root))


def _of_key(certificates: Sequence[x509.Certificate], spki: bytes) -> list[x509.Certificate]:
    return [one for one in certificates if spki_of(one) == spki]


def _decoded(ders: Sequence[bytes]) -> list[x509.Certificate]:
    if not 1 <= len(ders) <= CERTIFICATES:
        message = f"{len(ders)} certificates; expected 1 to {CERTIFICATES}"
        raise ConfigError(message)
    try:
        found = [x509.load_der_x509_certificate(one) for one in ders]
        for one in found:  # a key of an unknown kind is told here, not in the middle of the check
            one.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
    except (ValueError, TypeError) as error:
        message = f"a certificate that can't be read: {quote(str(error))}"
        raise ConfigError(message) from error
    return list(dict.fromkeys(found))
