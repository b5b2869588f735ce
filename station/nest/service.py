"""Answers one worker: the station's side of a visit. Whatever a worker is told has been made durable before.

The order of durable writes is kept here: the unit is joined before its secrets are unwrapped, secrets are
sealed and stored before the worker may use them, the certificate is recorded before it goes to the device.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
from cryptography import x509

from hal.errors import (
    EkMismatch,
    EkUntrusted,
    HallmarkError,
    ProtocolViolation,
    ResidencyUnproven,
    StationError,
)
from hal.secret import Secret
from station import messages
from station.archive import archive_record
from station.escrow import EscrowRecord, seal
from station.images import ImageStore
from station.recipe import Recipe
from station.signer.csr import read_csr
from station.signer_client import SignerClient
from station.store import Store
from station.trust.judge import Judge
from station.wire import Link, Problem

MOVE_SECONDS: Final = 6.0
"""How long a board that was moved from another nest may still be in a visit there: until that nest has noticed, and
has ended its worker."""
_auths: Final = msgspec.msgpack.Encoder(order="sorted")
_auths_decoder: Final = msgspec.msgpack.Decoder(dict[str, bytes])


@dataclass(frozen=True, slots=True)
class Services:
    """What a visit's answers are made with. One for the whole station."""

    station: str
    store: Store
    signer: SignerClient
    images: ImageStore
    officers: tuple[x509.Certificate, ...]
    sinks: tuple[str, ...]
    judge: Judge
    configuration: bytes = b""
    """Digest of the signed set that all of these come from; empty on a bench."""


class Watcher(Protocol):
    """The nest, which shows progress and knows whether the board is there."""

    def joined(self, unit: messages.Unit) -> None: ...

    def progress(self, message: messages.Progress) -> None: ...

    def absent(self, within: float | None) -> None:
        """The board may be away for so long; None ends that."""

    def await_board(self) -> messages.Seen:
        """The board's sighting as soon as it is there; DeviceGone when it doesn't come back in time."""

    def ended(self, problem: Problem | None) -> None:
        """The visit has its verdict, durably: None is PASS."""

    def log(self, message: messages.Log) -> None: ...


class VisitService:
    """Serves one worker's requests until its visit has a verdict or its link ends."""

    def __init__(self, services: Services, visit: str, recipe: Recipe, watcher: Watcher) -> None:
        self._services, self._visit, self._recipe, self._watcher = services, visit, recipe, watcher
        self._unit: messages.Unit | None = None
        self._ek_name: bytes | None = None
        self._judged: set[str] = set()
        """EK Names (hex) that this visit has a verdict on."""
        self.ended = False
        self._answers: dict[type, Callable[..., object]] = {
            messages.JudgeEk: self._judge_ek,
            messages.Join: self._join,
            messages.Begin: self._begin,
            messages.Done: self._done,
            messages.Absence: self._absence,
            messages.Present: self._present,
            messages.Protect: self._protect,
            messages.Recover: self._recover,
            messages.Issue: self._issue,
            messages.Finish: self._finish,
            messages.Failed: self._failed,
        }

    def serve(self, link: Link[messages.WorkerSays]) -> None:
        """Returns when the verdict is durable and told; raises PeerUnavailable or ProtocolViolation when the
        link fails.
        """
        while not self.ended:
            message = link.receive()
            if isinstance(message, messages.Progress):
                self._watcher.progress(message)
            elif isinstance(message, messages.Log):
                self._watcher.log(message)
            elif isinstance(message, messages.FetchImage):
                self._image(link, message)
            else:
                link.send(self._answer(message))

    def _answer(self, message: object) -> object:
        answer = self._answers.get(type(message))
        if answer is None:
            raise ProtocolViolation(f"a worker sent {type(message).__name__} in mid-visit")
        try:
            return answer(message)
        except HallmarkError as error:
            return Problem.of(error)

    # --- identity ---

    def _judge_ek(self, message: messages.JudgeEk) -> messages.EkVerdict:
        """The policy is the recipe's own, whatever the worker thinks."""
        policy = self._recipe.ek_policy()
        if policy is None:
            raise ProtocolViolation("a worker asked about an EK, and its recipe has no tpm-identity step")
        verdict = self._services.judge.judge(policy, message.ek_public, message.certificate, message.chain)
        self._services.store.record_verdict(self._visit, bytes.fromhex(verdict.ek_name), verdict)
        self._judged.add(verdict.ek_name)
        return messages.EkVerdict(verdict.facts())

    def _join(self, message: messages.Join) -> messages.Unit:
        if message.kind == "ek-name" and message.value not in self._judged:
            raise EkUntrusted("a worker named an EK that this visit has no verdict on")
        self._services.store.await_elsewhere_closed(self._visit, message.kind, message.value, MOVE_SECONDS)
        unit = self._services.store.join(
            self._visit, message.kind, message.value, message.registration_id, message.claims
        )
        self._unit = unit
        if message.kind == "ek-name":
            self._ek_name = bytes.fromhex(message.value)
        self._watcher.joined(unit)
        return unit

    def _begin(self, message: messages.Begin) -> messages.Ok:
        self._services.store.begin(self._visit, message.step, message.action)
        return messages.Ok()

    def _done(self, message: messages.Done) -> messages.Ok:
        self._services.store.done(
            self._visit, message.step, message.action, message.facts, found=message.found
        )
        self._watcher.absent(None)
        return messages.Ok()

    def _finish(self, message: messages.Finish) -> messages.Ok:
        record = archive_record(self._services.station, self._services.store, self._joined().unit)
        self._services.store.finish(
            self._visit,
            message.step,
            message.action,
            message.facts,
            enrollment=message.enrollment,
            sinks=self._services.sinks,
            archive=record,
        )
        self.ended = True
        self._watcher.ended(None)
        return messages.Ok()

    def _failed(self, message: messages.Failed) -> messages.Ok:
        problem = message.problem
        self._services.store.fail(
            self._visit,
            message.step,
            message.action,
            problem.code,
            problem.message,
            problem.hint,
            problem.error().outcome,
        )
        self.ended = True
        self._watcher.ended(message.problem)
        return messages.Ok()

    # --- the board's place ---

    def _absence(self, message: messages.Absence) -> messages.Ok:
        self._watcher.absent(message.within)
        return messages.Ok()

    def _present(self, _message: messages.Present) -> messages.Arrived:
        return messages.Arrived(self._watcher.await_board())

    def _image(self, link: Link[messages.WorkerSays], message: messages.FetchImage) -> None:
        try:
            if message.name not in self._recipe.images():
                raise ProtocolViolation(
                    f"a worker asked for image {message.name!r}, which its recipe does not name"
                )
            image, descriptor = self._services.images.sealed(message.name)
        except HallmarkError as error:
            link.send(Problem.of(error))
            return
        try:
            link.send(image, descriptor)
        finally:
            os.close(descriptor)

    # --- secrets and certificates ---

    def _protect(self, message: messages.Protect) -> messages.Ok:
        unit, ek_name = self._joined(), self._bound(message.ek_name)
        if not self._services.officers:
            raise StationError(
                "no escrow officer is configured, so no auth may be set",
                hint="An engineer names an officer's certificate under [escrow] and runs `hallmark check`.",
            )
        store = self._services.store
        generation = store.next_generation(ek_name)
        sealed = seal(
            self._services.officers,
            EscrowRecord(
                ek_name=ek_name,
                unit=unit.unit,
                station=self._services.station,
                generation=generation,
                auths={name: Secret(value) for name, value in message.auths.items()},
            ),
        )
        plain = Secret(_auths.encode(message.auths))
        wrapped = self._services.signer.wrap(_context(unit.unit, ek_name, generation), plain)
        store.protect(self._visit, ek_name, sorted(message.auths), sealed, wrapped, generation)
        return messages.Ok()

    def _recover(self, message: messages.Recover) -> messages.Auths:
        unit, ek_name = self._joined(), self._bound(message.ek_name)
        copy = self._services.store.resume_copy(self._visit, ek_name)
        if copy is None:
            raise StationError("this unit's auths are only in escrow: the copy for resuming is gone")
        generation, wrapped = copy
        plain = self._services.signer.unwrap(_context(unit.unit, ek_name, generation), wrapped)
        return messages.Auths(_auths_decoder.decode(plain.reveal()))

    def _issue(self, message: messages.Issue) -> messages.Issued:
        unit = self._joined()
        if message.profile not in self._recipe.profiles():
            raise ProtocolViolation(
                f"a worker asked for profile {message.profile!r}, which its recipe does not name"
            )
        if self._ek_name is not None and message.key_proof.get("ek_name") not in (None, self._ek_name):
            raise ResidencyUnproven(
                "the key's residency proof is against another endorsement key than the unit's"
            )
        request = read_csr(message.csr, unit.registration_id)
        self._services.store.claim_key(self._visit, hashlib.sha256(request.spki).digest())
        chain = self._services.signer.issue(
            messages.SignRequest(
                unit.unit,
                unit.registration_id,
                message.profile,
                message.csr,
                configuration=self._services.configuration,
            )
        )
        self._services.store.record_certificate(self._visit, message.profile, chain)
        return messages.Issued(chain)

    def _joined(self) -> messages.Unit:
        if self._unit is None:
            raise ProtocolViolation("a worker asked for what only a joined unit gets")
        return self._unit

    def _bound(self, ek_name: bytes) -> bytes:
        """Secrets go only to the TPM whose EK this visit has proven."""
        if self._ek_name is None or ek_name != self._ek_name:
            raise EkMismatch("the secrets on record are of another TPM")
        return ek_name


def _context(unit: str, ek_name: bytes, generation: int) -> bytes:
    """What a wrapped copy is bound to: it opens for this unit, this EK and this generation only."""
    return b"hallmark resume\x00" + unit.encode() + b"\x00" + ek_name + b"\x00" + str(generation).encode()
