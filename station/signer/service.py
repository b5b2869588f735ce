"""Answers the signer's socket: who may ask, one thread a connection, one reply a request.

Each request is answered whatever state the token is in; the reply then says what is wrong. Nothing is decided here
about certificates or tokens. A peer's frame that `station.wire` can't decode strictly ends its connection.
"""

from __future__ import annotations

import contextlib
import pwd
import select
import socket
import threading
from dataclasses import dataclass
from typing import Final

import structlog

from hal.call import Cancel
from hal.errors import (
    DeadlineExceeded,
    HallmarkError,
    PeerUnavailable,
    ProtocolViolation,
    StationError,
    TokenAbsent,
)
from hal.interfaces import SecretWrap
from hal.secret import Secret
from station import messages
from station.notify import Watchdog
from station.signer.administration import Administration
from station.signer.ceremony import CALL_SECONDS
from station.signer.checkpoints import CheckpointSigner
from station.signer.clock import TrustedClock
from station.signer.device_keys import DeviceKeys
from station.signer.generations import Generations
from station.signer.issuing import Issuer
from station.signer.ledger import Ledger
from station.signer.orders import Orders
from station.signer.overrun import Overrun
from station.signer.supervisor import Supervisor
from station.wire import Link, PeerCredentials, Problem

CONNECTIONS: Final = 32
"""At once. The station holds a few, `hallmark ca status` one for a moment."""
LOOP: Final = "accept"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, by the kernel's word. `may_change`: the CA itself, which the station only uses."""

    name: str
    may_change: bool


class Service:
    def __init__(
        self,
        supervisor: Supervisor,
        issuer: Issuer,
        generations: Generations,
        clock: TrustedClock,
        administration: Administration,
        ledger: Ledger,
        wrap: SecretWrap,
        wrap_key: str,
        label: str,
        overrun: Overrun,
        keys: DeviceKeys,
        checkpoints: CheckpointSigner,
        orders: Orders,
    ) -> None:
        self._orders = orders
        self._supervisor, self._issuer = supervisor, issuer
        self._generations, self._clock, self._administration = generations, clock, administration
        self._ledger, self._wrap, self._wrap_key, self._label = ledger, wrap, wrap_key, label
        self._overrun, self._keys, self._checkpoints = overrun, keys, checkpoints
        self._never = Cancel()  # a request that has begun is finished, also when the signer is to stop

    def answer(self, asked: messages.ToSigner, asker: Asker) -> messages.FromSigner:
        """The reply to one request; whatever goes wrong is a Problem."""
        try:
            return self._answer(asked, asker)
        except DeadlineExceeded:
            # Not the unit's fault, as a DeadlineExceeded of the device would be.
            message = "the CA token is too slow, or too much is asked of it"
            return Problem.of(
                TokenAbsent(message, hint="It goes on by itself; if it repeats, call an engineer.")
            )
        except HallmarkError as error:
            return Problem.of(error)
        except Exception:  # noqa: BLE001 - a bug met by one request is logged and told, and must not end the others
            _log.exception("a request failed in an unforeseen way", request=type(asked).__name__)
            message = "the signer failed in an unforeseen way; its log says more"
            return Problem.of(StationError(message))

    def _answer(self, asked: messages.ToSigner, asker: Asker) -> messages.FromSigner:
        match asked:
            case messages.SignerStatus():
                return self._state()
            case messages.CheckToken():
                self._supervisor.check(self._never)
                self._clock.now()
                return self._state()
            case messages.SignRequest():
                with self._overrun.call("sign", self._never) as call:
                    chain = self._issuer.issue(call, asked)
                    return messages.Issued(chain, self._orders.of_unit(asked.unit))
            case messages.OrderCounts():
                return self._orders.counts(asked.work_order)
            case messages.GiveBack():
                return self._orders.give_back(asked, self._clock.now())
            case messages.WrapSecret():
                with self._overrun.call("wrap", self._never) as call:
                    sealed = self._wrap.wrap(
                        call, self._label_of(asked.key), asked.context, Secret(asked.plain)
                    )
                    return messages.Wrapped(sealed)
            case messages.UnwrapSecret():
                with self._overrun.call("unwrap", self._never) as call:
                    label = self._label_of(asked.key)
                    plain = self._wrap.unwrap(call, label, asked.context, asked.wrapped)
                    return messages.Unwrapped(plain.reveal())
            case messages.Revoke() | messages.MakeCrl():
                with self._overrun.call("revocation", self._never) as call:
                    return self._administration.answer(call, asked, asker.name)
            case (
                messages.MakeCaRequest()
                | messages.InstallCa()
                | messages.ActivateCa()
                | messages.AcceptClock()
            ):
                if not asker.may_change:
                    message = "only root and the signer's own user may change the CA"
                    raise StationError(message, hint="Run the command with sudo.")
                with self._overrun.call("ca", self._never, CALL_SECONDS) as call:
                    return self._administration.answer(call, asked, asker.name)
            case messages.AuditHead():
                with self._overrun.call("audit head", self._never) as call:
                    return self._checkpoints.head(call)
            case messages.SignCheckpoint():
                with self._overrun.call("checkpoint", self._never) as call:
                    return self._checkpoints.sign(call, asked)
            case messages.ImportGroupKey() | messages.CheckGroupKey():
                if not asker.may_change:
                    message = "only root and the signer's own user may ask for group keys"
                    raise StationError(message, hint="Run the command with sudo.")
                with self._overrun.call("group key", self._never) as call:
                    return self._keys.group_key(call, asked)
            case messages.SealKey():
                with self._overrun.call("key", self._never) as call:
                    return self._keys.seal(call, asked)
            case messages.SealWrapped():
                with self._overrun.call("key", self._never) as call:
                    return self._keys.seal_wrapped(call, asked, self._label_of(asked.key))
            case messages.CheckKey():
                with self._overrun.call("key", self._never) as call:
                    self._keys.check(call, asked)
                return messages.Ok()
            case messages.ForgetKeys():
                self._keys.forget(asked.units)
                return messages.Ok()
            case messages.KeptKeys():
                return messages.Kept(self._keys.kept())
            case messages.DestroyWrapKey():
                if not asked.key:
                    message = "only keys of a work order or day are destroyed"
                    raise ProtocolViolation(message)
                with self._overrun.call("destroy", self._never) as call:
                    self._wrap.destroy(call, self._label_of(asked.key))
                _log.info("wrap key destroyed", key=asked.key)
                return messages.Ok()

    def _label_of(self, key: str) -> str:
        """The token's label: below the configured one, which no other key's begins with (see `station.config`)."""
        return f"{self._wrap_key}-{key}" if key else self._wrap_key

    def _state(self) -> messages.SignerState:
        seen = self._supervisor.condition
        issued, pending = self._ledger.counts()
        active = self._generations.active(self._clock.shown())
        authority = active.authority if active else None
        problem, hint = seen.problem, seen.hint
        if authority is None and not problem:
            problem, hint = "no CA certificate is installed", "An engineer runs `hallmark ca install`."
        clock = self._clock.problem()
        if clock is not None and not problem:
            problem, hint = str(clock), clock.hint
        return messages.SignerState(
            condition=seen.condition.value,
            label=self._label,
            problem=problem,
            hint=hint,
            subject=authority.issuer.subject.rfc4514_string()[:2000] if authority else "",
            not_after=f"{authority.not_after:%Y-%m-%dT%H:%M:%SZ}" if authority else "",
            issued=issued,
            pending=pending,
            chain=authority.ders if authority else [],
            issuers=self._generations.issuers,
            generations=[self._administration.view(one) for one in self._generations.all],
        )


class Listener:
    """Accepts until told to stop, then lets each connection finish the request that it is at."""

    def __init__(self, service: Service, allowed_groups: frozenset[int], own_uid: int) -> None:
        self._service, self._groups, self._own_uid = service, allowed_groups, own_uid
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, socket.socket] = {}

    def serve(self, server: socket.socket, stop: Cancel, watchdog: Watchdog) -> None:
        """Returns once `stop` is set and all connections are closed."""
        server.setblocking(False)
        poll = select.poll()
        poll.register(server, select.POLLIN)
        poll.register(stop.fileno(), select.POLLIN)
        while not stop.is_set():
            if any(fd == server.fileno() for fd, _ in poll.poll(int(watchdog.interval * 1000))):
                self._accept(server)
            watchdog.beat(LOOP)
        with self._lock:
            left = dict(self._open)
        for thread, connection in left.items():
            _end_input(connection)
            thread.join()

    def _accept(self, server: socket.socket) -> None:
        try:
            connection, _ = server.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # the peer is gone again
        connection.setblocking(True)
        peer = PeerCredentials.of(connection)
        with self._lock:
            full = len(self._open) >= CONNECTIONS
        if not self._may_ask(peer) or full:
            _log.warning("connection refused", uid=peer.uid, pid=peer.pid, full=full)
            connection.close()
            return
        thread = threading.Thread(
            target=self._talk, args=(connection, self._who(peer)), name=f"peer-{peer.pid}", daemon=True
        )
        with self._lock:
            self._open[thread] = connection
        thread.start()

    def _may_ask(self, peer: PeerCredentials) -> bool:
        return peer.uid in (0, self._own_uid) or bool(peer.groups & self._groups)

    def _who(self, peer: PeerCredentials) -> Asker:
        try:
            name = pwd.getpwuid(peer.uid).pw_name
        except KeyError:
            name = f"uid {peer.uid}"
        return Asker(name, may_change=peer.uid in (0, self._own_uid))

    def _talk(self, connection: socket.socket, asker: Asker) -> None:
        link: Link[messages.ToSigner] = Link(connection, messages.ToSigner)
        try:
            while True:
                link.send(self._service.answer(link.receive(), asker))
        except PeerUnavailable:
            pass  # closed, by them or by us: between requests nothing is lost
        except ProtocolViolation as error:
            _log.warning("a peer was cut off", problem=str(error))
        finally:
            with self._lock:
                self._open.pop(threading.current_thread(), None)
            link.close()


def _end_input(connection: socket.socket) -> None:
    """Whoever waits for the next request on it sees the end; a reply may still be sent."""
    with contextlib.suppress(OSError):  # it was closed in this very moment, which is what is wanted
        connection.shutdown(socket.SHUT_RD)
