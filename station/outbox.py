"""The outbox socket, station's side: the uploader leases enrollments here and reports what became of them.

Each connection has a thread, and its leases end with it. What a report says is durable before its `Ok`. Nothing of
clouds comes in here, and nothing but enrollments goes out: no secrets, no database.
"""

from __future__ import annotations

import os
import pwd
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import structlog

from hal.errors import ConfigurationUntrusted, HallmarkError, PeerUnavailable, ProtocolViolation, quote
from station.messages import Batch, Lease, Ok, Report, SinkHealth, UploaderSays
from station.store import Store
from station.wire import Closed, Link, PeerCredentials, Problem, listen

CONNECTIONS: Final = 8
"""At once; one more is told so and closed. An uploader needs one for each sink."""
LONGEST_WAIT: Final = 60.0
"""Seconds that a lease may wait for something to do."""
ROUND: Final = 1.0
"""Seconds between two looks whether a waiting uploader is still there."""
SOCKET_MODE: Final = 0o660
UPLOADER: Final = "hallmark-uploader"
"""The user that systemd runs the uploader as."""


class OutboxServer:
    """Serves the store's outbox at a path, or on a listening socket that systemd passed.

    Root, our own user and those in `users` (names; ones that don't exist don't matter) may connect. `on_health` hears
    how the uploader sees a sink, on the connection's thread.
    """

    def __init__(
        self,
        store: Store,
        listener: Path | socket.socket,
        on_health: Callable[[SinkHealth], None],
        users: Iterable[str] = (UPLOADER,),
        configuration: bytes = b"",
        head: Callable[[], bytes] = bytes,
    ) -> None:
        """`configuration`: digest of our signed set; an uploader with another one gets nothing. `head`: the audit
        trail's newest checkpoint, which goes with each batch.
        """
        self._configuration, self._head = configuration, head
        self._store, self._on_health = store, on_health
        self._path = listener if isinstance(listener, Path) else None
        self._listener = listen(listener, SOCKET_MODE) if isinstance(listener, Path) else listener
        self._users = frozenset({0, os.geteuid(), *_user_ids(users)})
        # Shared with systemd, maybe: it is waited for with poll, and never shut down.
        self._listener.setblocking(False)
        self._stop = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._connections: dict[str, tuple[socket.socket, threading.Thread]] = {}
        self._count = 0
        self._log = structlog.get_logger().bind(socket="outbox")
        self._acceptor = threading.Thread(target=self._accept, name="outbox", daemon=True)

    def start(self) -> None:
        self._acceptor.start()

    def stop(self) -> None:
        """Ends all connections; a report that has arrived is still recorded. The socket's file goes, if we made it."""
        self._stop.set()
        os.eventfd_write(self._wake, 1)
        self._acceptor.join()
        self._listener.close()
        os.close(self._wake)
        self._store.wake()
        with self._lock:
            threads = [thread for _, thread in self._connections.values()]
            for connection, _ in self._connections.values():
                # For reading only: an answer that is being made still goes out.
                connection.shutdown(socket.SHUT_RD)
        for thread in threads:
            thread.join()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            poll.poll()
            if self._stop.is_set():
                return
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                continue  # it went away before we came
            except OSError as error:
                # Out of descriptors or memory: the next connection may fare better, but not at full speed.
                self._log.error("a connection could not be accepted", error=os.strerror(error.errno or 0))
                self._stop.wait(ROUND)
                continue
            connection.setblocking(True)
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        link: Link[UploaderSays] = Link(connection, UploaderSays)
        peer = PeerCredentials.of(connection)
        with self._lock:
            full = len(self._connections) >= CONNECTIONS
            if not full and peer.uid in self._users:
                self._count += 1
                owner = f"{self._count} (pid {peer.pid})"
                thread = threading.Thread(
                    target=self._serve, args=(owner, link), name=f"outbox-{self._count}", daemon=True
                )
                self._connections[owner] = (connection, thread)
                thread.start()
                return
        reason = (
            f"the outbox has {CONNECTIONS} connections already"
            if full
            else f"uid {peer.uid} is not the uploader"
        )
        self._log.warning("a connection was refused", reason=reason)
        self._tell(link, PeerUnavailable(reason))
        link.close()

    def _serve(self, owner: str, link: Link[UploaderSays]) -> None:
        try:
            while not self._stop.is_set():
                self._answer(owner, link, link.receive())
        except Closed:
            self._log.debug("the uploader has gone", connection=owner)
        except HallmarkError as error:
            # What can't be read isn't skipped: this connection ends, its leases come back, the others go on.
            self._log.warning("a connection ended", connection=owner, error=quote(str(error), 200))
            self._tell(link, error)
        finally:
            self._store.release(owner)
            with self._lock:
                del self._connections[owner]
            link.close()

    def _answer(self, owner: str, link: Link[UploaderSays], message: UploaderSays) -> None:
        match message:
            case Lease():
                link.send(self._lease(owner, link, message))
            case Report():
                try:
                    self._store.report(message.outcomes, owner)
                except ProtocolViolation:
                    raise
                except HallmarkError as error:
                    # The leases stay with the connection: the uploader may report again when the disk has room.
                    link.send(Problem.of(error))
                else:
                    link.send(Ok())
            case SinkHealth():
                self._on_health(message)
                link.send(Ok())

    def _lease(self, owner: str, link: Link[UploaderSays], asked: Lease) -> Batch:
        if asked.most < 1 or not 0 <= asked.wait <= LONGEST_WAIT:
            raise ProtocolViolation(f"a lease of {asked.most} items within {asked.wait} seconds")
        if asked.configuration != self._configuration:
            error = ConfigurationUntrusted(
                "uploader and station run with different configuration sets",
                hint="Restart both: systemctl restart hallmark-station hallmark-uploader.",
            )
            self._on_health(SinkHealth(asked.sink, reachable=False, detail=f"{error}. {error.hint}"))
            raise error
        until = time.monotonic() + asked.wait
        while True:
            seen = self._store.changes()
            if items := self._store.lease(asked.sink, asked.most, owner):
                return Batch(items, self._head())
            left = until - time.monotonic()
            if left <= 0 or self._stop.is_set():
                return Batch([])
            if _gone(link):
                raise Closed("the uploader went while it was waiting")
            self._store.wait_change(seen, min(left, ROUND))

    def _tell(self, link: Link[UploaderSays], error: HallmarkError) -> None:
        try:
            link.send(Problem.of(error))
        except PeerUnavailable:
            self._log.debug("the uploader did not wait for the answer")


def _gone(link: Link[UploaderSays]) -> bool:
    poll = select.poll()
    poll.register(link.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def _user_ids(names: Iterable[str]) -> Iterable[int]:
    for name in names:
        try:
            yield pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
