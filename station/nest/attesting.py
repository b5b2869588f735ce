"""The station's side of a visit's proofs: it makes the challenges, judges the answers, and keeps the transcript.

A worker talks to the board, so a worker may be the board's: what it says of keys is believed only after the TPM has
given back a secret that the worker could not know, and the TPM's own attestation key has signed it. Pure but for
randomness; what is durable is `service`'s.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Final

from hal.errors import EkMismatch, ProtocolViolation, ResidencyUnproven
from station import messages
from station.attestation import (
    NONCE_LENGTH,
    Activation,
    Certification,
    Transcript,
    check_ak,
    check_certification,
    check_device_key,
    check_ek,
)
from station.credential import SECRET_LENGTH, MadeCredential, make_credential
from station.messages.worker import ATTESTATION_KEY, DEVICE_KEY
from station.tpm_structures import PublicArea, public_area

MOST_CHALLENGES: Final = 64
"""In one visit: more is no retrying any more."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """The challenge that waits for its answer."""

    purpose: str
    ek: PublicArea
    area: PublicArea
    made: MadeCredential
    secret: bytes
    nonce: bytes
    ek_certificate: bytes | None


class Attesting:
    """One visit's. `proven_ek` and `covers` say what has been shown so far."""

    def __init__(self) -> None:
        self._asked: _Asked | None = None
        self._count = 0
        self._ek: PublicArea | None = None
        self._ak: PublicArea | None = None
        self._key: PublicArea | None = None
        self.transcript: Transcript | None = None

    @property
    def proven_ek(self) -> PublicArea | None:
        """The EK whose TPM has shown that it is there."""
        return self._ek

    def covers(self, spki: bytes) -> bool:
        """Whether the key of this SubjectPublicKeyInfo (DER) was proven to be in that TPM."""
        return self._key is not None and self._key.spki == spki

    def proven_transcript(self) -> Transcript:
        """The transcript with the device key in it."""
        if self.transcript is None or self.transcript.key is None:
            raise ResidencyUnproven("no key has been shown to be in the TPM")
        return self.transcript

    def credential(self, asked: messages.AskCredential) -> messages.Credential:
        """A credential for exactly this EK and this key, after their attributes were looked at."""
        self._asked = None
        self._count += 1
        if self._count > MOST_CHALLENGES:
            raise ProtocolViolation(f"more than {MOST_CHALLENGES} challenges in one visit")
        ek, area = public_area(asked.ek_public), public_area(asked.public)
        check_ek(ek)
        if asked.purpose == ATTESTATION_KEY:
            check_ak(area)
        elif asked.purpose == DEVICE_KEY:
            check_device_key(area)
            if self._ek is None:
                raise ResidencyUnproven("a device key before the TPM has shown that it has its EK")
            if ek.octets != self._ek.octets:
                raise EkMismatch("the device key was to be proven against another endorsement key")
        else:
            raise ProtocolViolation(f"a challenge for {asked.purpose!r}")
        secret, nonce = secrets.token_bytes(SECRET_LENGTH), secrets.token_bytes(NONCE_LENGTH)
        made = make_credential(ek, area.name, secret)
        self._asked = _Asked(asked.purpose, ek, area, made, secret, nonce, asked.ek_certificate or None)
        return messages.Credential(made.id_object, made.encrypted_secret, nonce)

    def proven(self, answer: messages.Proven) -> None:
        """The answer to the last challenge; ResidencyUnproven when it proves nothing. Each challenge has one answer."""
        asked, self._asked = self._asked, None
        if asked is None:
            raise ProtocolViolation("an answer to no challenge")
        if not hmac.compare_digest(answer.secret, asked.secret):
            raise ResidencyUnproven("the TPM gave back another secret than the one in the credential")
        made = asked.made
        activation = Activation(
            asked.area.octets, made.id_object, made.encrypted_secret, made.seed, asked.secret
        )
        if asked.purpose == ATTESTATION_KEY:
            self._begin(asked, activation)
        else:
            self._finish(asked, activation, answer)

    def _begin(self, asked: _Asked, activation: Activation) -> None:
        if self._ek is not None and asked.ek.octets != self._ek.octets:
            raise EkMismatch("another endorsement key than the one that this visit began with")
        self._ek, self._ak, self._key = asked.ek, asked.area, None
        self.transcript = Transcript(asked.ek.octets, activation, ek_certificate=asked.ek_certificate)

    def _finish(self, asked: _Asked, activation: Activation, answer: messages.Proven) -> None:
        if self._ak is None or self.transcript is None:
            raise ResidencyUnproven("a device key before the TPM has shown its attestation key")
        certification = Certification(asked.nonce, answer.attest, answer.signature)
        check_certification(self._ak, asked.area, certification)
        self._key = asked.area
        before = self.transcript
        self.transcript = Transcript(
            before.ek_public, before.ak, activation, certification, before.ek_certificate
        )
