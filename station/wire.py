"""Typed, bounded messages over unix sockets: how Hallmark's processes talk to each other.

A frame is a 4-octet big-endian length and that many octets of MessagePack, decoded strictly into one of the
message types that the receiver names. A frame that is too long or can't be decoded ends the connection: it
is never skipped.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from hal.errors import HallmarkError, PeerUnavailable, ProtocolViolation, by_code

FRAME_LIMIT: Final = 4 << 20
"""Octets of one frame: a visit brings the whole EK trust store. Firmware goes as a file descriptor beside a
frame, never in one.
"""
LENGTH: Final = struct.Struct(">I")
MAX_DESCRIPTORS: Final = 1
UNIX_PATH_LIMIT: Final = 107
"""Characters of a unix socket's path (sun_path less its NUL)."""

R = TypeVar("R")


class Problem(msgspec.Struct, frozen=True, tag="problem"):
    """A `HallmarkError` on its way between processes. Rebuilt from the tree by its code; unknown codes
    become the root.
    """

    code: str
    message: str
    hint: str

    @classmethod
    def of(cls, error: HallmarkError) -> Problem:
        return cls(error.code, str(error), error.hint)

    def error(self) -> HallmarkError:
        return by_code().get(self.code, HallmarkError)(self.message, hint=self.hint)


class Closed(PeerUnavailable):
    """The other side is gone: between frames, so nothing was cut."""


class Link(Generic[R]):
    """One connected socket. `receive` gives messages of the type named at construction. Sending is thread-safe."""

    def __init__(self, connection: socket.socket, receives: Any) -> None:
        self._socket = connection
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(receives)
        self._encoder = msgspec.msgpack.Encoder()
        self._send_lock = threading.Lock()
        self._descriptors: list[int] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def send(self, message: object, descriptor: int | None = None) -> None:
        """Sends one message, and with it a file descriptor. PeerUnavailable when the other side is gone."""
        body = self._encoder.encode(message)
        if len(body) > FRAME_LIMIT:
            text = f"a {type(message).__name__} of {len(body)} octets is over the frame limit"
            raise ProtocolViolation(text)
        frame = LENGTH.pack(len(body)) + body
        with self._send_lock:
            try:
                if descriptor is not None:
                    sent = socket.send_fds(self._socket, [frame], [descriptor])
                    frame = frame[sent:]
                self._socket.sendall(frame)
            except OSError as error:
                raise _unavailable(error) from error

    def receive(self) -> R:
        """The next message. `Closed` at the end of the stream, ProtocolViolation for anything that can't be decoded."""
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size, at_start=True))
        if length > FRAME_LIMIT:
            text = f"a frame of {length} octets is over the limit of {FRAME_LIMIT}"
            raise ProtocolViolation(text)
        body = self._exactly(length, at_start=False)
        try:
            message: R = self._decoder.decode(body)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            text = f"a message that can't be read: {error}"
            raise ProtocolViolation(text) from error
        return message

    def descriptor(self) -> int:
        """The file descriptor that came with the last message; the caller closes it."""
        if not self._descriptors:
            text = "a message that has to bring a file descriptor came without one"
            raise ProtocolViolation(text)
        return self._descriptors.pop(0)

    def close(self) -> None:
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors.clear()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EBADF):
                raise
        self._socket.close()

    def _exactly(self, count: int, *, at_start: bool) -> bytes:
        parts: list[bytes] = []
        left = count
        while left:
            try:
                part, descriptors, _flags, _address = socket.recv_fds(self._socket, left, MAX_DESCRIPTORS)
            except TimeoutError:
                raise
            except OSError as error:
                raise _unavailable(error) from error
            self._descriptors.extend(descriptors)
            if not part:
                if at_start and not parts:
                    text = "the other side closed the connection"
                    raise Closed(text)
                text = "the other side broke off in the middle of a message"
                raise PeerUnavailable(text)
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def _unavailable(error: OSError) -> PeerUnavailable:
    return PeerUnavailable(f"another Hallmark process is not reachable: {os.strerror(error.errno or 0)}")


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """Who is on the other side of a unix socket, as the kernel says (SO_PEERCRED, SO_PEERGROUPS)."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket) -> PeerCredentials:
        pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        so_peergroups = 59  # asm-generic/socket.h; Python has no name for it
        try:
            raw = connection.getsockopt(
                socket.SOL_SOCKET, so_peergroups, 1024
            )  # Python takes no larger buffer
        except OSError as error:
            if error.errno != errno.ERANGE:  # more than 256 groups: then only the primary one counts
                raise
            raw = b""
        groups = struct.unpack(f"{len(raw) // 4}I", raw)
        return cls(pid, uid, gid, frozenset({gid, *groups}))


def connect(path: Path, receives: Any) -> Link[Any]:
    """A link to the process that listens at `path`; PeerUnavailable when none does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise PeerUnavailable(f"nothing answers at {path.name}: {os.strerror(error.errno or 0)}") from error
    return Link(connection, receives)


def listen(path: Path, mode: int = 0o660, backlog: int = 64) -> socket.socket:
    """A listening unix socket at `path` with `mode`, replacing one that a killed process left behind."""
    if len(str(path)) > UNIX_PATH_LIMIT:
        text = f"the socket path {path} is longer than {UNIX_PATH_LIMIT} characters: choose a shorter --root"
        raise HallmarkError(text)
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o777 & ~mode)
    try:
        server.bind(str(path))
    finally:
        os.umask(umask)
    server.listen(backlog)
    return server
