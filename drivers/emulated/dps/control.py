"""The emulator's own controls: HTTP on a unix socket, apart from the emulated API, and a client for it.

`curl --unix-socket CONTROL -X POST http://x/emulator/away`; also back, clear, `fail` {"count", "status", "retry_after",
"raw"} (status 0: carried out, the answer lost), `weather` {"rate_limit", "latency", "clock_offset", "fail_bulk"};
`GET /emulator/requests` and `GET /emulator/enrollments`.
"""

from __future__ import annotations

import http.client
import json
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

from drivers.emulated.dps.records import shown
from drivers.emulated.dps.server import Cloud
from drivers.emulated.dps.weather import Fault

DEFAULT_BULK_CODE: Final = 500_001
BODY_LIMIT: Final = 1 << 16


def bulk_pattern(text: str | None) -> tuple[str, int] | None:
    """PATTERN or PATTERN=ERRORCODE. ValueError when the code is no number of six digits."""
    if not text:
        return None
    pattern, _, code = text.partition("=")
    number = int(code) if code else DEFAULT_BULK_CODE
    if not 100_000 <= number <= 999_999:
        message = f"{code} is no errorCode of six digits"
        raise ValueError(message)
    return pattern, number


class ControlServer:
    def __init__(self, path: Path, cloud: Cloud) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._server = _Server(str(path), cloud)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="dps-control", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str, cloud: Cloud) -> None:
        self.cloud = cloud
        super().__init__(path, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def address_string(self) -> str:
        return "control"  # a unix client has no address, and the base class would index it

    def do_GET(self) -> None:
        cloud = self.server.cloud
        if self.path == "/emulator/requests":
            self._write(200, cloud.weather.noted())
        elif self.path == "/emulator/enrollments":
            self._write(200, [shown(record) for record in cloud.store.all("enrollment")])
        else:
            self._write(404, {"message": "GET /emulator/requests or /emulator/enrollments"})

    def do_POST(self) -> None:
        try:
            length = min(int(self.headers.get("Content-Length", "0")), BODY_LIMIT)
            given = json.loads(self.rfile.read(length) or b"{}")
            self._act(self.path.removeprefix("/emulator/"), given)
        except (ValueError, TypeError, AttributeError, OSError) as error:
            self._write(400, {"message": str(error)})
        else:
            self._write(200, {"endpoint": self.server.cloud.endpoint})

    def _act(self, action: str, given: dict[str, Any]) -> None:
        cloud, weather = self.server.cloud, self.server.cloud.weather
        if action == "away":
            cloud.close()
        elif action == "back":
            cloud.open()
        elif action == "clear":
            weather.clear()
        elif action == "fail":
            retry_after = given.get("retry_after")
            fault = Fault(
                int(given["status"]), None if retry_after is None else str(retry_after), given.get("raw")
            )
            weather.order(int(given.get("count", 1)), fault)
        elif action == "weather":
            weather.rate_limit = given.get("rate_limit", weather.rate_limit)
            weather.latency = float(given.get("latency", weather.latency))
            weather.clock_offset = float(given.get("clock_offset", weather.clock_offset))
            if "fail_bulk" in given:
                weather.fail_bulk = bulk_pattern(given["fail_bulk"])
        else:
            message = "POST /emulator/away, back, clear, fail or weather"
            raise ValueError(message)

    def _write(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Nothing to log: whoever controls knows what he did."""


class Control:
    """A client of the control socket, for the demo and tests."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def away(self) -> None:
        self._call("POST", "away")

    def back(self) -> None:
        self._call("POST", "back")

    def clear(self) -> None:
        self._call("POST", "clear")

    def fail(
        self, status: int, count: int = 1, retry_after: float | str | None = None, raw: str | None = None
    ) -> None:
        self._call("POST", "fail", {"status": status, "count": count, "retry_after": retry_after, "raw": raw})

    def weather(self, **settings: Any) -> None:
        self._call("POST", "weather", settings)

    def requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", "requests")
        return found

    def enrollments(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", "enrollments")
        return found

    def _call(self, method: str, name: str, value: object = None) -> Any:
        connection = http.client.HTTPConnection("emulator", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(10)
            connection.sock.connect(str(self._path))
            connection.request(method, f"/emulator/{name}", json.dumps(value) if value is not None else None)
            response = connection.getresponse()
            found = json.loads(response.read())
            if response.status != http.client.OK:
                message = f"the emulator refused {name}: {found.get('message')}"
                raise ValueError(message)
            return found
        finally:
            connection.close()
