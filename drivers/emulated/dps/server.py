"""HTTP/1.1, in clear or over TLS, on loopback: a listener that can go away and come back on the same port.

Parses requests within bounds, asks the API rooms, and writes their answers with the weather's faults. A thread for each
connection: bench equipment with a handful of clients.
"""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from drivers.emulated.dps.device_api import DeviceApi
from drivers.emulated.dps.exchange import Answer, Request
from drivers.emulated.dps.refusal import Refusal
from drivers.emulated.dps.service_api import ServiceApi
from drivers.emulated.dps.store import Store
from drivers.emulated.dps.weather import LOSE_ANSWER, Fault, Weather

BODY_LIMIT: Final = 1 << 20
IDLE_SECONDS: Final = 120.0
SERVICE_ROOTS: Final = {"enrollments", "enrollmentGroups", "registrations"}


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of the server's certificate chain and key."""

    certificate: str
    key: str


class Cloud:
    """The whole emulated service behind one port. `open` and `close` any number of times."""

    def __init__(
        self,
        store: Store,
        weather: Weather,
        service: ServiceApi,
        device: DeviceApi,
        *,
        port: int = 0,
        tls: Tls | None = None,
    ) -> None:
        self.store, self.weather, self.service, self.device = store, weather, service, device
        self.port, self._tls = port, tls
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()
        self._context: tuple[int, ssl.SSLContext] | None = None
        self._stopping = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"https://localhost:{self.port}" if self._tls else f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Listens, on the port of the last time. OSError when another program has taken it."""
        with self._lock:
            if self._listener is not None:
                return
            self._stopping.clear()
            self._listener = _Listener(("127.0.0.1", self.port), self)
            self.port = self._listener.server_address[1]
            self._thread = threading.Thread(
                target=self._listener.serve_forever, args=(0.02,), name="dps-accept", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Gone as after a cut cable: connections end in the middle, new ones are refused."""
        with self._lock:
            if self._listener is None or self._thread is None:
                return
            self._stopping.set()
            self._listener.shutdown()
            self._thread.join()
            self._listener.server_close()
            self._listener.cut_connections()
            self._listener = self._thread = None

    def secured(self, connection: socket.socket) -> socket.socket:
        """The connection as the client wants it: TLS done where configured. A client certificate is asked for."""
        connection.settimeout(IDLE_SECONDS)
        return self._server_context().wrap_socket(connection, server_side=True) if self._tls else connection

    def _server_context(self) -> ssl.SSLContext:
        """Trusts as client certificates exactly what is enrolled: leaves, and the CAs of groups."""
        if self._tls is None:
            message = "no TLS is configured"
            raise ValueError(message)
        with self._lock:
            revision = self.store.revision
            if self._context is not None and self._context[0] == revision:
                return self._context[1]
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._tls.certificate, self._tls.key)
            anchors = "\n".join(_anchors(self.store))
            if anchors:
                context.verify_mode = ssl.CERT_OPTIONAL
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
                context.load_verify_locations(cadata=anchors)
            self._context = (revision, context)
            return context

    def answer(self, request: Request) -> tuple[Answer, Fault | None]:
        """The answer, and the fault to spoil it with."""
        is_service = bool(request.path) and request.path[0] in SERVICE_ROOTS
        fault = self.weather.next_fault() if is_service else None
        if self.weather.latency:
            self._stopping.wait(self.weather.latency)
        try:
            if fault is not None and fault.status != LOSE_ANSWER:
                headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
                raise Refusal(fault.status, "failed on order", headers=headers)
            if is_service:
                self.weather.count_operation()
            made = (self.service if is_service else self.device).handle(request)
        except Refusal as refusal:
            body = refusal.body(self.weather.now())
            made = Answer(refusal.status, body, {**refusal.headers, "x-ms-error-code": str(refusal.code)})
        self.weather.note(
            method=request.method,
            path="/" + "/".join(request.path),
            status=made.status,
            lost=fault is not None and fault.status == LOSE_ANSWER,
            body=_as_json(request.body),
        )
        return made, fault


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], cloud: Cloud) -> None:
        self.cloud = cloud
        self._live: set[socket.socket] = set()
        self._live_lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._live_lock:
            self._live.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._live_lock:
            self._live.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        with self._live_lock:
            for connection in self._live:
                with suppress(OSError):  # the client may have been faster
                    connection.shutdown(socket.SHUT_RDWR)

    def finish_request(self, request: Any, client_address: Any) -> None:
        connection = request
        try:
            connection = self.cloud.secured(request)
            _Handler(connection, client_address, self)
        except OSError as error:
            # Handshakes that fail and clients that leave are the network's everyday life: noted, not fatal.
            self.cloud.weather.note(method="-", path="-", status=0, lost=True, body=str(error))
        finally:
            if connection is not request:
                with suppress(OSError):
                    connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "emulated-dps"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1  # one segment for head and body: else each answer waits 40 ms for a delayed acknowledgement
    server: _Listener
    timeout = IDLE_SECONDS

    def _serve(self) -> None:
        cloud = self.server.cloud
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            self._write(
                Answer(411, {"errorCode": 411000, "trackingId": "", "message": "Content-Length is needed"})
            )
            self.close_connection = True
            return
        if int(length[:12]) > BODY_LIMIT:
            self._write(
                Answer(413, {"errorCode": 413000, "trackingId": "", "message": "the body is too long"})
            )
            self.close_connection = True
            return
        try:
            url = urlsplit(self.path)
            query = dict(parse_qsl(url.query, max_num_fields=16))
        except ValueError:
            self._write(
                Answer(400, {"errorCode": 400000, "trackingId": "", "message": "the address can't be read"})
            )
            self.close_connection = True
            return
        request = Request(
            self.command,
            tuple(unquote(part) for part in url.path.split("/") if part),
            query,
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(int(length)),
            _peer(self.connection),
        )
        answer, fault = cloud.answer(request)
        if fault is not None and fault.status == LOSE_ANSWER:
            self.close_connection = True
            return
        self._write(answer, raw=fault.raw if fault else None)

    do_GET = _serve  # noqa: N815 - the base class calls methods by these names
    do_PUT = _serve  # noqa: N815
    do_POST = _serve  # noqa: N815
    do_DELETE = _serve  # noqa: N815

    def _write(self, answer: Answer, raw: str | None = None) -> None:
        body = b"" if answer.body is None else json.dumps(answer.body).encode()
        body = raw.encode() if raw is not None else body
        if answer.status == HTTPStatus.NO_CONTENT:
            body = b""  # else it would be the beginning of the next answer
        self.send_response_only(answer.status, _phrase(answer.status))
        self.send_header("Date", format_datetime(self.server.cloud.weather.now(), usegmt=True))
        if answer.status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json; charset=utf-8")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Requests are noted by the weather, not on stderr."""


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"


def _peer(connection: socket.socket) -> tuple[bytes, ...]:
    """The client's verified chain, DER, leaf first; empty without TLS or certificate."""
    if not isinstance(connection, ssl.SSLSocket) or connection.getpeercert(binary_form=True) is None:
        return ()
    if hasattr(connection, "get_verified_chain"):  # Python 3.13 on
        return tuple(connection.get_verified_chain())
    chain = connection._sslobj.get_verified_chain()  # type: ignore[attr-defined]  # private until 3.13
    return tuple(ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain)


def _anchors(store: Store) -> list[str]:
    return [
        entry["certificate"]
        for kind in ("enrollment", "group")
        for record in store.all(kind)
        for pair in record["attestation"].get("x509", {}).values()
        for entry in pair.values()
    ]


def _as_json(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return body[:2000].decode("latin-1")
