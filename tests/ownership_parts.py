"""Visits of one real (software) TPM to a real store, with everything between worker and station but the sockets.

`Line.visit` takes the TPM through `tpm-identity` and `tpm-ownership`; what the link carried is in `Line.recorder`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hal.call import Call
from hal.driver import Bindings
from hal.errors import HallmarkError, KeyMissing
from hal.secret import Secret
from hal.types import Enrollment, TpmAttestation
from station import messages
from station.action import Circumstances, Trip
from station.enrollment import to_json
from station.escrow import EscrowRecord
from station.escrow_media import Medium
from station.escrow_opener import open_record
from station.images import ImageStore
from station.messages import Facts
from station.nest.service import Services, VisitService
from station.offered import Offered
from station.recipe import PlannedStep, Recipe
from station.runner import Runner
from station.signer_client import SignerClient
from station.steps import STEPS
from station.store import Store
from station.trust.ek_public import read_ek_public
from station.trust.judge import Judge
from station.trust.policy import EkPolicy
from station.trust.verdict import Verdict
from station.wire import Problem
from station.worker.desk import StationDesk
from tests import store_parts as parts
from tests.fixtures_tpm import Recorder
from tests.integration.test_escrow_cms import make_officer

R = TypeVar("R")


class AnyEk:
    """These trips' recipes do without a word for the EK."""

    def judge(
        self, policy: EkPolicy, ek_public: bytes, certificate: bytes | None, chain: list[bytes]
    ) -> Verdict:
        del policy, certificate, chain
        return Verdict(trust="none", ek_name=read_ek_public(ek_public).name.hex())


class Token:
    """Wraps under keys by name, as the signer does."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}

    def wrap(self, context: bytes, plain: Secret, key: str = "") -> bytes:
        secret = self.keys.setdefault(key, AESGCM.generate_key(256))
        return AESGCM(secret).encrypt(bytes(12), plain.reveal(), context)

    def unwrap(self, context: bytes, wrapped: bytes, key: str = "") -> Secret:
        if key not in self.keys:
            raise KeyMissing("gone")
        return Secret(AESGCM(self.keys[key]).decrypt(bytes(12), wrapped, context))

    def destroy_wrap_key(self, key: str) -> None:
        self.keys.pop(key, None)


class Watcher:
    def joined(self, unit: messages.Unit) -> None: ...

    def software_tpm(self) -> None:
        return None

    def progress(self, message: messages.Progress) -> None: ...

    def absent(self, within: float | None) -> None: ...

    def await_board(self) -> messages.Seen:
        raise AssertionError

    def ended(self, problem: Problem | None) -> None: ...

    def log(self, message: messages.Log) -> None: ...


class Desk(StationDesk):
    """Desk, journal, place and reporter of a worker, straight to the station's side of its visit, without a link."""

    def __init__(self, service: VisitService, recorder: Recorder, cut: Callable[[str], None]) -> None:
        self._service, self._recorder, self._cut = service, recorder, cut
        self._stack = contextlib.ExitStack()
        self.notes: list[str] = []

    def _ask(self, request: object, reply: type[R]) -> R:
        answer = self._service._answer(request)
        if isinstance(answer, Problem):
            raise answer.error()
        self._cut(type(request).__name__)
        assert isinstance(answer, reply)
        return answer

    def finish(self, step: str, action: str, facts: Facts, enrollment: Enrollment | None) -> None:
        del enrollment
        # A pass that only extracts the EK enrolls nothing.
        content = b""
        if step == "tpm-ownership":
            ek, name = self._service._attesting.proven_ek, self._service._joined().registration_id
            assert ek is not None
            content = to_json(Enrollment(name, name, TpmAttestation(ek.octets)))
        self._ask(messages.Finish(step, action, facts, content), messages.Ok)

    def enter(self, trip: Trip) -> None:
        self.leave()
        trip.board = self._stack.enter_context(self._recorder.visit())

    def leave(self) -> None:
        stack, self._stack = self._stack, contextlib.ExitStack()
        stack.close()

    def return_to(self, trip: Trip) -> None:
        raise AssertionError

    def phase(
        self, step: str, action: str, phase: str, *, seconds: float, note: str = "", hint: str = ""
    ) -> Callable[[int, int | None], None]:
        if note:
            self.notes.append(f"{note} | {hint}")
        return lambda done, total: None


class Cut(BaseException):
    """The worker, or the whole station, is gone."""


class Line:
    """One station, one TPM."""

    def __init__(self, folder: Path, store: Store, recorder: Recorder, **ownership: object) -> None:
        self.folder, self.store, self.recorder = folder, store, recorder
        self.token, self.offered = Token(), Offered()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.officer = make_officer(folder, "officer", self.key)
        self.media: tuple[Medium, ...] = ()
        self.ownership: dict[str, object] = {"attestation": "x509", **ownership}
        self.seen: set[bytes] = set()
        """Every auth value that any escrow record or offer had."""

    def recipe(self) -> Recipe:
        import msgspec

        steps = tuple(
            PlannedStep(STEPS[use], msgspec.convert(options, STEPS[use].options))
            for use, options in (
                ("tpm-identity", {"ek_certificate": "none"}),
                ("tpm-ownership", self.ownership),
            )
        )
        return Recipe("r.toml", parts.SKU, "final", "00" * 32, (), steps)

    def visit(self, cut: Callable[[str], None] = lambda said: None, *, patience: float = 60.0) -> Desk:
        """A visit to its end; raises what ended it, which is on record then, or the Cut."""
        recipe = self.recipe()
        services = Services(
            "s",
            self.store,
            cast("SignerClient", self.token),
            ImageStore(self.folder, self.folder / "none.pem"),
            (self.officer,),
            ("dps",),
            cast("Judge", AnyEk()),
            media=self.media,
            offered=self.offered,
        )
        name = parts.plug(self.store)
        service = VisitService(services, name, recipe, Watcher())
        desk = Desk(service, self.recorder, cut)
        trip = Trip(
            Circumstances("s", True, parts.SKU, ()), Bindings(), cast("Any", desk), Call.lasting(patience)
        )
        runner = Runner(trip, desk, desk, desk)
        try:
            runner.run(recipe.steps)
        except HallmarkError as error:
            service._answer(messages.Failed(runner.step, runner.action, Problem.of(error)))
            raise
        finally:
            with contextlib.suppress(HallmarkError):
                desk.leave()
            self.remember()
        return desk

    def remember(self) -> None:
        for summary in self.store.units(10):
            for record in self.escrows(summary.unit):
                self.seen |= {value.reveal() for value in record.auths.values()}

    def unit(self) -> str:
        return self.store.units(1)[0].unit

    def escrows(self, unit: str) -> list[EscrowRecord]:
        found = self.store.unit(unit)
        assert found is not None
        return [open_record(item.sealed, self.key) for item in found.escrows]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [dict(event.detail) for event in self.store.events(0, 500) if event.kind == kind]


def certificate_key(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    """PEM, as an officer keeps it."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
