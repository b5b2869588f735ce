"""Raw octets to the status socket and back, for tests that no well-behaved client can play."""

from __future__ import annotations

import socket
from pathlib import Path


def read_answer(connection: socket.socket, seconds: float = 10) -> bytes:
    """One answer with its body, by its content-length; what came so far when the other side closes."""
    connection.settimeout(seconds)
    data = b""
    while True:
        head, mark, body = data.partition(b"\r\n\r\n")
        if mark:
            lengths = [
                line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
            ]
            if lengths and len(body) >= int(lengths[0]):
                return data
        part = connection.recv(65536)
        if not part:
            return data
        data += part


def talk(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(request)
        return read_answer(connection)
