"""Answers one worker: the station's side of a visit. Whatever a worker is told has been made durable before.

The order of durable writes is kept here: the unit is joined before its secrets are unwrapped, secrets are
sealed and stored before the worker may use them, the certificate is recorded before it goes to the device.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec
from cryptography import x509

from hal.errors import (
    AlreadyOwned,
    EkMismatch,
    EkUntrusted,
    HallmarkError,
    IdentityConflict,
    ProtocolViolation,
    ResidencyUnproven,
)
from hal.types import Hierarchy, KeyPurpose, TpmAttestation, X509Attestation, X509GroupAttestation
from station import messages
from station.archive import archive_record
from station.attestation import to_json
from station.enrollment import from_json
from station.escrow_media import Medium
from station.foreign import Terms, read_leaf
from station.images import ImageStore
from station.nest.attesting import Attesting
from station.nest.keys import VisitKeys
from station.nest.private_keys import PrivateKeys
from station.nest.stock import VisitStock
from station.nest.unit_secrets import UnitSecrets
from station.offered import Offered
from station.order_book import OrderBook
from station.recipe import Recipe
from station.signer.csr import read_csr
from station.signer_client import SignerClient
from station.store import Store
from station.tpm_structures import PublicArea
from station.trust.judge import Judge
from station.wire import Link, Problem

MOVE_SECONDS: Final = 6.0
"""How long a board that was moved from another nest may still be in a visit there: until that nest has noticed, and
has ended its worker."""

CLEAR: Final = ("tpm-identity", "clear")
"""The action that a permission to clear a TPM is for."""


def _nothing() -> None:
    """Nothing keeps a unit from passing but its own steps."""


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
    media: tuple[Medium, ...] = ()
    offered: Offered = field(default_factory=Offered)
    before_pass: Callable[[], None] = _nothing
    """Raises why no unit may pass now, whatever its steps said."""
    terms: Mapping[str, Terms] = field(default_factory=dict)
    """What certificates made elsewhere have to be, by the certificate step's source."""
    orders: OrderBook | None = None


IDENTITY: Final = "tpm-identity"
"""The step that proves the EK."""


class Watcher(Protocol):
    """The nest, which shows progress and knows whether the board is there."""

    def joined(self, unit: messages.Unit) -> None: ...

    def software_tpm(self) -> None:
        """The board's TPM is a software TPM."""

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
        self._key: str | None = None
        self._keys = VisitKeys(services.signer, recipe)
        self._secrets = UnitSecrets(services, visit)
        self._stock = VisitStock(services.store, visit, recipe.certificate(), services.terms)
        self._private = PrivateKeys(services.store, services.signer, visit, recipe.certificate(), self._stock)
        self._attesting = Attesting()
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
            messages.CopyEscrow: self._copy_escrow,
            messages.AskCredential: self._attesting.credential,
            messages.Proven: self._proven,
            messages.Issue: self._issue,
            messages.Challenge: lambda _message: self._keys.challenge(),
            messages.DeliverKey: self._deliver,
            messages.ProveKey: lambda message: self._keys.prove(self._joined(), message),
            messages.Draw: self._draw,
            messages.Adopt: self._adopt,
            messages.StockName: self._stock.name,
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
        if message.kind == "ek-name" and message.value not in self._judged and not self._recipe.knows_ek():
            raise EkUntrusted("a worker named an EK that this visit has no verdict on")
        if self._recipe.after is not None:
            self._services.store.require_pass(
                message.kind, message.value, self._recipe.sku, self._recipe.after
            )
        self._services.store.await_elsewhere_closed(self._visit, message.kind, message.value, MOVE_SECONDS)
        claims = list(message.claims)
        if any(kind == "ek-key" for kind, _ in claims):
            raise ProtocolViolation("a worker claimed an endorsement key, which only a proof can show")
        if message.kind == "ek-name" and not message.unproven:
            # The certificate vouches for the key alone: one key is one unit, whatever else the TPM says of its EK.
            claims.append(("ek-key", hashlib.sha256(self._proven_ek(message.value).spki).hexdigest()))
        if message.unproven:
            claims = []  # nobody has shown yet that this is the unit whose record they would change
        unit = self._services.store.join(
            self._visit, message.kind, message.value, message.registration_id, claims
        )
        self._unit = unit
        if message.kind == "ek-name":
            self._ek_name = bytes.fromhex(message.value)
            if self._services.offered.waits(self._ek_name):
                unit = self._unit = msgspec.structs.replace(unit, resumable=True)
            self._keep_transcript()
        if message.kind == "key":
            self._key = message.value
        self._watcher.joined(unit)
        return unit

    def _proven_ek(self, name: str) -> PublicArea:
        """The EK that this visit has proven; a TPM that hasn't shown to have it opens no unit's record."""
        ek = self._attesting.proven_ek
        if ek is None or ek.name.hex() != name:
            raise ResidencyUnproven(
                "the TPM has not shown that it has the endorsement key that it is known by"
            )
        return ek

    def _proven(self, message: messages.Proven) -> messages.Ok:
        self._attesting.proven(message)
        if self._unit is not None:
            if self._ek_name is not None:
                self._proven_ek(self._ek_name.hex())
            self._keep_transcript()
        return messages.Ok()

    def _refuse_unproven(self, step: str) -> None:
        """Nothing but the proof's own step is written into a unit's record before its TPM has shown its EK."""
        if step != IDENTITY and not self._is_proven():
            raise ResidencyUnproven("the TPM has not shown that it has the unit's endorsement key")

    def _is_proven(self) -> bool:
        """Whether the unit's TPM has shown that it has its EK. A unit that is known by its board's key has no EK."""
        ek = self._attesting.proven_ek
        return self._ek_name is None or (ek is not None and ek.name == self._ek_name)

    def _keep_transcript(self) -> None:
        if self._attesting.transcript is not None:
            self._services.store.record_attestation(self._visit, to_json(self._attesting.transcript))

    def _begin(self, message: messages.Begin) -> messages.Ok:
        self._refuse_unproven(message.step)
        self._services.store.begin(self._visit, message.step, message.action)
        return messages.Ok()

    def _done(self, message: messages.Done) -> messages.Ok:
        self._refuse_unproven(message.step)
        self._services.store.done(
            self._visit, message.step, message.action, message.facts, found=message.found
        )
        if message.facts.get("tpm_software") is True:
            self._watcher.software_tpm()
        if (message.step, message.action) == CLEAR:
            means = message.facts.get("tpm_cleared_by")
            self._services.store.spend_clear(self._visit, means if isinstance(means, str) else None)
        self._watcher.absent(None)
        return messages.Ok()

    def _finish(self, message: messages.Finish) -> messages.Ok:
        if not self._is_proven():
            raise ResidencyUnproven(
                "a unit can't pass whose TPM has not shown that it has its endorsement key"
            )
        self._check_enrollment(message.enrollment)
        self._services.before_pass()
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
        self._services.offered.over(self._visit)
        self._watcher.ended(None)
        self._keys.passed(self._joined())
        return messages.Ok()

    def _check_enrollment(self, content: bytes) -> None:
        """The cloud is told of this unit and of the key that was proven or certified here, whatever a worker says."""
        if not content:
            return
        unit, found = self._joined(), from_json(content)
        ek, chain = self._attesting.proven_ek, self._services.store.certificate(unit.unit)
        match found.attestation:
            case TpmAttestation(ek=named):
                holds = ek is not None and named == ek.octets
            case X509Attestation(certificate=leaf) | X509GroupAttestation(certificate=leaf):
                holds = bool(chain) and chain is not None and leaf == chain[0]
            case _:
                holds = True  # of symmetric keys it has only what the signer has sealed
        if not holds or found.registration_id != unit.registration_id:
            raise IdentityConflict(
                "the enrollment that was made for this unit names another key or registration ID than its own",
                hint="Set the board aside and call an engineer: the process that served it was not to be trusted.",
            )

    def _failed(self, message: messages.Failed) -> messages.Ok:
        problem = message.problem
        if problem.code == AlreadyOwned.__name__ and self._unit is not None and self._ek_name is not None:
            self._services.store.ask_owned(self._visit, self._ek_name, problem.message)
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
        self._services.offered.over(self._visit)
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
        if not self._is_proven():
            raise ResidencyUnproven(
                "no auth is set in a TPM that has not shown that it has its endorsement key"
            )
        self._secrets.protect(unit.unit, ek_name, message.auths)
        return messages.Ok()

    def _recover(self, message: messages.Recover) -> messages.Auths:
        unit, ek_name = self._joined(), self._bound(message.ek_name)
        auths = self._secrets.recover(unit.unit, ek_name)
        if not self._is_proven() and not self._services.offered.in_use(ek_name, self._visit):
            # The endorsement auth is what the proof needs. Whoever only claims to be this TPM gets nothing beyond it.
            auths = {name: value for name, value in auths.items() if name == Hierarchy.ENDORSEMENT.value}
        return messages.Auths(auths)

    def _copy_escrow(self, message: messages.CopyEscrow) -> messages.Copied:
        self._joined()
        copies = self._secrets.copy_escrow(self._bound(message.ek_name), self._recipe.escrow_copies())
        return messages.Copied(copies)

    def _issue(self, message: messages.Issue) -> messages.Issued:
        unit = self._joined()
        if message.profile not in self._recipe.profiles():
            raise ProtocolViolation(
                f"a worker asked for profile {message.profile!r}, which its recipe does not name"
            )
        request = read_csr(message.csr, unit.registration_id)
        self._services.store.claim_key(self._visit, hashlib.sha256(request.spki).digest())
        attestation = b""
        if message.profile in self._recipe.attested_profiles():
            if not self._attesting.covers(request.spki):
                raise ResidencyUnproven(
                    "the key of the certificate request has not been shown to be in the unit's TPM"
                )
            attestation = to_json(self._attesting.proven_transcript())
        store, orders = self._services.store, self._services.orders
        work_order = store.ask_signature(self._visit)
        order, signature = orders.request(work_order) if orders else (b"", b"")
        issued = self._services.signer.issued(
            messages.SignRequest(
                unit.unit,
                unit.registration_id,
                message.profile,
                message.csr,
                configuration=self._services.configuration,
                attestation=attestation,
                sku=self._recipe.sku,
                recipe=bytes.fromhex(self._recipe.digest),
                order=order,
                order_signature=signature,
            )
        )
        store.record_certificate(self._visit, message.profile, issued.chain, issued.work_order or None)
        return messages.Issued(issued.chain)

    def _deliver(self, message: messages.DeliverKey) -> messages.Delivered:
        if message.purpose == KeyPurpose.PRIVATE:
            return self._private.deliver(self._joined(), message)
        return self._keys.deliver(self._joined(), self._key, message)

    def _draw(self, message: messages.Draw) -> messages.Drawn:
        self._check_residency(message.key)
        return self._stock.draw(self._joined(), message)

    def _adopt(self, message: messages.Adopt) -> messages.Ok:
        if message.chain:
            self._check_residency(read_leaf(message.chain[0]).spki)
        return self._stock.adopt(self._joined(), message)

    def _check_residency(self, key: bytes) -> None:
        """Where the recipe says that the key is in the TPM, that was shown in this visit."""
        options = self._recipe.certificate()
        if options is not None and options.place == "tpm" and not self._attesting.covers(key):
            raise ResidencyUnproven("the certificate's key has not been shown to be in the unit's TPM")

    def _joined(self) -> messages.Unit:
        if self._unit is None:
            raise ProtocolViolation("a worker asked for what only a joined unit gets")
        return self._unit

    def _bound(self, ek_name: bytes) -> bytes:
        """Secrets go only to the TPM whose EK this visit has proven."""
        if self._ek_name is None or ek_name != self._ek_name:
            raise EkMismatch("the secrets on record are of another TPM")
        return ek_name
