"""Asks the station's status socket, as a script of a customer would: HTTP/1.1 over a unix socket, JSON."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, Final

SECONDS: Final = 10.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("hallmark", timeout=SECONDS)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


def ask(path: Path, what: str, method: str = "GET") -> Any:
    """The JSON at `what`; None while no station answers."""
    connection = _Connection(path)
    try:
        connection.request(method, what)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return json.loads(body) if body else {}
