"""The worker's side of the socket: asks the station, and hears its cancel. One question at a time, one answer each."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from hal.call import Cancel
from hal.errors import HallmarkError, PeerUnavailable, ProtocolViolation
from hal.secret import Secret
from hal.types import (
    Certified,
    Credential,
    EndorsementKey,
    Enrollment,
    FirmwareImage,
    KeyPurpose,
    SealedKey,
    Sighting,
    TransportKey,
)
from station import messages
from station.action import DeliveredKey
from station.enrollment import to_json
from station.messages import Facts
from station.wire import Link, Problem

R = TypeVar("R")
MOST_OFFERED: Final = 16
"""Certificates of the TPM's own chain that the station is asked to look at, as `messages.JudgeEk` bounds it."""
PROGRESS_INTERVAL: Final = 0.1
"""Seconds between two progress messages of one phase."""
ORPHAN_GRACE: Final = 2.0
"""Seconds that a worker whose station is gone has to let go of its board."""
ORPHANED: Final = 70
"""Exit code of a worker whose station is gone (EX_SOFTWARE)."""


class StationDesk:
    """Desk, Journal and Reporter of the runner, over the link. Its thread reads; the visit's thread asks."""

    def __init__(self, link: Link[messages.StationSays], cancel: Cancel) -> None:
        self._link, self._cancel = link, cancel
        self._replies: queue.Queue[object] = queue.Queue()
        self._images: dict[str, FirmwareImage] = {}
        self._over = threading.Event()
        threading.Thread(target=self._listen, name="station", daemon=True).start()

    def close(self) -> None:
        """The visit is over: the station may go now."""
        self._over.set()

    # --- Desk ---

    def judge_ek(self, ek: EndorsementKey, chain: Sequence[bytes]) -> Facts:
        offered = list(chain[:MOST_OFFERED])
        return self._ask(messages.JudgeEk(ek.public, ek.certificate, offered), messages.EkVerdict).facts

    def join(
        self,
        kind: str,
        value: str,
        registration_id: str,
        claims: list[tuple[str, str]],
        *,
        unproven: bool = False,
    ) -> messages.Unit:
        return self._ask(
            messages.Join(kind, value, registration_id, claims, unproven=unproven), messages.Unit
        )

    def protect(self, ek_name: bytes, auths: Mapping[str, Secret]) -> None:
        revealed = {name: secret.reveal() for name, secret in auths.items()}
        self._ask(messages.Protect(ek_name, revealed), messages.Ok)

    def recover(self, ek_name: bytes) -> dict[str, Secret]:
        reply = self._ask(messages.Recover(ek_name), messages.Auths)
        return {name: Secret(value) for name, value in reply.auths.items()}

    def copy_escrow(self, ek_name: bytes) -> int:
        return self._ask(messages.CopyEscrow(ek_name), messages.Copied).copies

    def credential(
        self, purpose: str, ek_public: bytes, public: bytes, ek_certificate: bytes | None
    ) -> tuple[Credential, bytes]:
        asked = messages.AskCredential(purpose, ek_public, public, ek_certificate or b"")
        made = self._ask(asked, messages.Credential)
        return Credential(made.id_object, made.encrypted_secret), made.nonce

    def proven(self, secret: bytes, certified: Certified | None) -> None:
        attest, signature = (certified.attest, certified.signature) if certified else (b"", b"")
        self._ask(messages.Proven(secret, attest, signature), messages.Ok)

    def issue(self, profile: str, csr: bytes) -> list[bytes]:
        return self._ask(messages.Issue(profile, csr), messages.Issued).chain

    def challenge(self) -> bytes:
        return self._ask(messages.Challenge(), messages.Challenged).nonce

    def deliver_key(self, purpose: KeyPurpose, transport: TransportKey, identity: bytes) -> DeliveredKey:
        request = messages.DeliverKey(purpose.value, transport.point, identity, transport.signature)
        reply = self._ask(request, messages.Delivered)
        sealed = SealedKey(purpose, reply.registration_id, reply.encapsulated, reply.ciphertext)
        return DeliveredKey(sealed, reply.upload, reply.spki)

    def prove_key(self, mac: bytes) -> None:
        self._ask(messages.ProveKey(mac), messages.Ok)

    def draw(self, key: bytes) -> list[bytes]:
        return self._ask(messages.Draw(key), messages.Drawn).chain

    def adopt(self, chain: Sequence[bytes]) -> None:
        self._ask(messages.Adopt(list(chain)), messages.Ok)

    def stock_name(self, key: bytes) -> str:
        return self._ask(messages.StockName(key), messages.Named).name

    def image(self, name: str) -> FirmwareImage:
        """The trusted bytes, once a visit. The station has checked the manifest; this checks what came through."""
        if name not in self._images:
            reply = self._ask(messages.FetchImage(name), messages.Image)
            with os.fdopen(self._link.descriptor(), "rb") as stream:
                stream.seek(0)
                data = stream.read(reply.size + 1)
            if len(data) != reply.size or hashlib.sha256(data).digest() != reply.sha256:
                raise ProtocolViolation(f"image {name!r} did not arrive whole")
            self._images[name] = FirmwareImage(reply.name, data, reply.sha256, reply.version)
        return self._images[name]

    # --- Journal ---

    def begin(self, step: str, action: str) -> None:
        self._ask(messages.Begin(step, action), messages.Ok)

    def done(self, step: str, action: str, facts: Facts, *, found: bool) -> None:
        self._ask(messages.Done(step, action, facts, found), messages.Ok)

    def finish(self, step: str, action: str, facts: Facts, enrollment: Enrollment | None) -> None:
        content = to_json(enrollment) if enrollment else b""
        self._ask(messages.Finish(step, action, facts, content), messages.Ok)

    def failed(self, step: str, action: str, error: HallmarkError) -> None:
        self._ask(messages.Failed(step, action, Problem.of(error)), messages.Ok)

    # --- the board's place ---

    def absent(self, within: float) -> None:
        self._ask(messages.Absence(within), messages.Ok)

    def present(self) -> Sighting:
        seen = self._ask(messages.Present(), messages.Arrived).sighting
        return sighting(seen)

    # --- Reporter and log: no answer ---

    def phase(
        self, step: str, action: str, phase: str, *, seconds: float, note: str = "", hint: str = ""
    ) -> Callable[[int, int | None], None]:
        self._link.send(messages.Progress(step, action, phase, seconds, note=note[:2000], hint=hint[:2000]))
        last = time.monotonic()

        def progress(done: int, total: int | None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PROGRESS_INTERVAL or done == total:
                last = now
                self._link.send(messages.Progress(step, action, phase, seconds, done, total, note[:2000]))

        return progress

    def log(self, level: str, event: str, **fields: str | float | bool | None) -> None:
        self._link.send(messages.Log(level, event[:2000], fields))

    # --- the link ---

    def _ask(self, request: object, reply: type[R]) -> R:
        self._link.send(request)
        answer = self._replies.get()
        if isinstance(answer, Problem):
            raise answer.error()
        if isinstance(answer, HallmarkError):
            self._replies.put(answer)  # the link is dead: every later question gets the same answer
            raise answer
        if not isinstance(answer, reply):
            raise ProtocolViolation(
                f"the station answered {type(request).__name__} with {type(answer).__name__}"
            )
        return answer

    def _listen(self) -> None:
        try:
            while True:
                message = self._link.receive()
                if isinstance(message, messages.Cancel):
                    self._cancel.set(message.problem.error())
                else:
                    self._replies.put(message)
        except HallmarkError as error:
            gone = PeerUnavailable("the station is gone")
            gone.__cause__ = error
            self._cancel.set(gone)
            self._replies.put(gone)
        # Without its station nothing can be made durable, so nothing more may be done to the board: not even by
        # a call that hangs in a C library and never looks at its cancel.
        if not self._over.wait(ORPHAN_GRACE):
            os._exit(ORPHANED)


def sighting(seen: messages.Seen) -> Sighting:
    return Sighting(
        seen.place, seen.port, seen.vendor_id, seen.product_id, seen.serial_number, seen.description
    )
