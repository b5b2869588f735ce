"""The status socket's server: one thread that waits for all connections at once, and a few that compute answers.

So three hundred idle clients cost three hundred small objects and no threads, a slow reader is dropped without anyone
waiting for it, and a question that hangs in the store or the supervisor holds up one of the few, not the socket.
What paths answer is in `routes`; HTTP itself is in `http`.
"""

from __future__ import annotations

import functools
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import structlog

from station.status import events
from station.status.connection import Client
from station.status.http import Answer, Fate, Request
from station.status.routes import Follow, Groups, Routes
from station.status.view import Failure, Records, StationControl
from station.wire import listen

CONNECTIONS: Final = 512
BACKLOG: Final = 128
STREAMS: Final = 16
"""Event streams at once; one more is told to come back later."""
WORKERS: Final = 4
IDLE_SECONDS: Final = 120.0
"""A connection without a request. When all are taken, the one that has been idle longest goes earlier."""
REQUEST_SECONDS: Final = 10.0
"""For the whole of a request to arrive, for its answer to be computed, and without an octet of it being taken."""
HEARTBEAT_SECONDS: Final = 10.0
ROUND_SECONDS: Final = 2.0
"""The loop comes round at least this often; `beat` is called each time."""
EVENTS_AT_ONCE: Final = 200
CHUNK: Final = 64 * 1024
Found = TypeVar("Found")
SOCKET_MODE: Final = 0o666
"""Anyone on the machine may look; who may change something is decided per request."""


class StatusServer:
    """Serves `control` and `records` at a path, or on a listening socket that systemd passed.

    `beat` is called by the loop each time it comes round (for the watchdog), at least every `ROUND_SECONDS`.
    """

    def __init__(
        self,
        control: StationControl,
        records: Records,
        listener: Path | socket.socket,
        groups: Groups,
        *,
        beat: Callable[[], object] = lambda: None,
    ) -> None:
        self._routes, self._records, self._beat = Routes(control, records, groups), records, beat
        self._path = listener if isinstance(listener, Path) else None
        self._listener = listen(listener, SOCKET_MODE, BACKLOG) if isinstance(listener, Path) else listener
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._clients: set[Client] = set()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._log = structlog.get_logger()
        # Daemon threads: a question that hangs must not keep the process from ending.
        self._loop = threading.Thread(target=self._run, name="status", daemon=True)
        self._workers = [
            threading.Thread(target=self._work, name=f"status-{number}", daemon=True)
            for number in range(WORKERS)
        ]
        self._watch = events.Watch(records, lambda: self._post(self._new_events))

    def start(self) -> None:
        for thread in (self._loop, *self._workers):
            thread.start()
        self._watch.start()

    def stop(self, patience: float = 5.0) -> None:
        """Ends all connections and the threads; the socket's file goes, when we made it."""
        until = time.monotonic() + patience
        self._stop.set()
        self._wake_up()
        for _ in self._workers:
            self._jobs.put(None)
        for thread in (self._loop, *self._workers):
            thread.join(max(0.0, until - time.monotonic()))
        self._watch.stop(max(0.0, until - time.monotonic()))
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        if self._watch.is_alive() or any(thread.is_alive() for thread in (self._loop, *self._workers)):
            self._log.warning("a status request still hangs; it is left behind")
        else:
            os.close(self._wake)  # not before: a late worker would write into whatever gets this number next

    # --- the loop: everything below up to the workers runs in its thread

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        while not self._stop.is_set():
            self._beat()
            for key, mask in self._selector.select(ROUND_SECONDS):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data is None:
                    os.eventfd_read(self._wake)
                else:
                    self._guarded(key.data, functools.partial(self._ready, mask=mask))
            while not self._results.empty():
                self._results.get()()
            self._sweep(time.monotonic())
        for client in list(self._clients):
            self._close(client)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (
            OSError
        ) as error:  # gone again, or out of descriptors: then those that are idle go, oldest first
            self._log.warning("a status connection could not be taken", error=os.strerror(error.errno or 0))
            self._evict()
            return
        connection.setblocking(False)
        if len(self._clients) >= CONNECTIONS and not self._evict():
            connection.close()
            return
        client = Client(connection, time.monotonic())
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _evict(self) -> bool:
        idle = min(
            (client for client in self._clients if client.idle), key=lambda client: client.since, default=None
        )
        if idle is not None:
            self._close(idle)
        return idle is not None

    def _guarded(self, client: Client, act: Callable[[Client], None]) -> None:
        """One connection's trouble ends that connection only."""
        if client.closed:
            return
        try:
            act(client)
        except OSError:
            self._close(client)
        except Exception as error:  # noqa: BLE001 - the border of the loop: logged, and the other connections go on
            self._log.error("a status connection failed", exc_info=error)
            self._close(client)

    def _ready(self, client: Client, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush(client)
        elif mask & selectors.EVENT_READ:
            try:
                data = client.socket.recv(CHUNK)
            except BlockingIOError:
                return
            if client.exchange.streaming:  # a stream's reader has nothing to say but that it goes
                self._close(client)
                return
            if client.idle:
                client.since = time.monotonic()
            self._advance(client, client.exchange.receive(data))

    def _advance(self, client: Client, request: Request | None) -> None:
        """After something was read: hands a whole request on, sends what there is, or waits for more."""
        if request is not None:
            who = None if request.method == "GET" else client.peer()
            self._hand_on(client, lambda: self._routes.answer(request, who), self._answered)
            self._interest(client)
        elif client.exchange.out or client.exchange.broken:
            self._flush(client)

    def _flush(self, client: Client) -> None:
        exchange = client.exchange
        while exchange.out:
            try:
                sent = client.socket.send(memoryview(exchange.out)[:CHUNK])
            except BlockingIOError:
                break
            del exchange.out[:sent]
            client.since = time.monotonic()
        if not exchange.out and not client.working:
            match exchange.fate():
                case Fate.CLOSE:
                    self._close(client)
                    return
                case Fate.STREAM:
                    self._feed(client)
                case Fate.NEXT:
                    self._advance(client, exchange.next_request())
        self._interest(client)

    def _interest(self, client: Client) -> None:
        """What is waited for: that it takes more, that it says more (or goes), or nothing while others work."""
        if client.closed:
            return
        wanted = 0
        if client.exchange.out:
            wanted = selectors.EVENT_WRITE
        elif not client.working or client.exchange.streaming:
            wanted = selectors.EVENT_READ
        registered = self._selector.get_map().get(client.socket)
        if registered is None and wanted:
            self._selector.register(client.socket, wanted, client)
        elif registered is not None and not wanted:
            self._selector.unregister(client.socket)
        elif registered is not None and registered.events != wanted:
            self._selector.modify(client.socket, wanted, client)

    def _close(self, client: Client) -> None:
        if client.closed:
            return
        client.closed = True
        self._clients.discard(client)
        if self._selector.get_map().get(client.socket) is not None:
            self._selector.unregister(client.socket)
        client.socket.close()
        if not any(other.exchange.streaming for other in self._clients):
            self._watch.wanted.clear()

    def _sweep(self, now: float) -> None:
        """Deadlines: drops who is slow or has been idle for long, answers for a worker that hangs, sends heartbeats."""
        for client in list(self._clients):
            age, exchange = now - client.since, client.exchange
            if client.idle:
                if age > IDLE_SECONDS:
                    self._close(client)
            elif exchange.streaming and not exchange.out and not client.working:
                if age > HEARTBEAT_SECONDS:
                    self._guarded(
                        client, lambda client: self._send_lines(client, events.heartbeat(client.seq))
                    )
            elif age > REQUEST_SECONDS and client.working and not exchange.streaming:
                self._guarded(client, self._too_late)
            elif age > REQUEST_SECONDS:
                self._close(client)

    def _too_late(self, client: Client) -> None:
        client.turn += 1  # what the worker may still bring is for nobody
        client.exchange.broken = True
        hint = "Try again; if it repeats, the station's log says what it waits for."
        failure = Failure("DeadlineExceeded", f"no answer within {REQUEST_SECONDS:.0f} s", hint)
        self._answered(client, Answer.failure(503, failure))

    def _send_lines(self, client: Client, lines: bytes) -> None:
        client.exchange.stream(lines)
        self._flush(client)

    def _feed(self, client: Client) -> None:
        """Asks for the next events of a stream whose reader has taken all it was sent."""
        if client.more and not client.working:
            client.more, seq = False, client.seq
            self._hand_on(client, lambda: events.lines(self._records, seq, EVENTS_AT_ONCE), self._events_read)

    def _new_events(self) -> None:
        for client in [client for client in self._clients if client.exchange.streaming]:
            client.more = True
            if not client.exchange.out:
                self._feed(client)

    # --- the workers

    def _hand_on(
        self, client: Client, compute: Callable[[], Found], then: Callable[[Client, Found], None]
    ) -> None:
        """Has a worker compute something; the loop goes on with `then`, unless it is too late by then."""
        client.working, client.since, client.turn = True, time.monotonic(), client.turn + 1
        turn = client.turn

        def deliver(found: Found) -> None:
            if client.turn == turn:
                self._guarded(client, lambda client: then(client, found))

        def job() -> None:
            try:
                found = compute()
            except Exception as error:  # noqa: BLE001 - the border of the thread: logged, and this connection ends
                self._log.error("a status answer failed", exc_info=error)
                self._post(lambda: self._close(client))
            else:
                self._post(lambda: deliver(found))

        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _post(self, act: Callable[[], None]) -> None:
        """From any thread: has the loop call `act`."""
        self._results.put(act)
        self._wake_up()

    def _wake_up(self) -> None:
        os.eventfd_write(self._wake, 1)

    # --- the loop again: what the workers brought

    def _answered(self, client: Client, found: Answer | Follow) -> None:
        client.working, client.since = False, time.monotonic()
        if isinstance(found, Follow):
            if sum(other.exchange.streaming for other in self._clients) >= STREAMS:
                hint = f"At most {STREAMS} may follow at once; use ?follow=0 to read and leave."
                found = Answer.failure(503, Failure("TooManyStreams", "all event streams are taken", hint))
            else:
                client.exchange.begin_stream()
                client.seq, client.more = found.since, True
                self._watch.wanted.set()
        if isinstance(found, Answer):
            client.exchange.answer(found)
        self._flush(client)

    def _events_read(self, client: Client, found: tuple[bytes, int, int]) -> None:
        text, client.seq, count = found
        client.working, client.more = False, client.more or count == EVENTS_AT_ONCE
        if text:
            client.exchange.stream(text)
        self._flush(client)
