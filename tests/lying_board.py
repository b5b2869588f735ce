"""An emulated board whose firmware lies: `lying_board.py LIE` and then the emulated board's own options. See LIES."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drivers.emulated.board import storage
from drivers.emulated.board.__main__ import main
from drivers.emulated.board.flash import Flash
from drivers.emulated.board.server import HEADER, Server
from drivers.emulated.board.storage import Files

HUGE: Final = 60_000
"""Octets of an oversized answer: as many as the framing's length field can say, nearly."""


def csr_signature() -> None:
    """Its certificate request has a wrong signature."""
    honest = storage.csr

    def csr(key: storage.Key, common_name: str) -> bytes:
        der = bytearray(honest(key, common_name))
        der[-1] ^= 1
        return bytes(der)

    storage.csr = csr


def csr_subject() -> None:
    """Its certificate request is for somebody else."""
    honest = storage.csr
    storage.csr = lambda key, common_name: honest(key, common_name[:0] + "somebody-else")


def proof() -> None:
    """It signs something else than the nonce that it was given."""
    honest = storage.sign
    storage.sign = lambda key, data: honest(key, os.urandom(len(data)))


def forgets() -> None:
    """It says that it installed a certificate, and keeps nothing."""
    Files.write = lambda self, name, data: None  # type: ignore[method-assign]


def worn_flash() -> None:
    """One octet of its flash has a bit that is stuck at 0."""
    honest = Flash._store

    def store(self: Flash, at: int, data: bytes) -> None:
        worn = 0x1000 - at
        if 0 <= worn < len(data):
            data = data[:worn] + bytes([data[worn] & 0xFE ^ 0x02]) + data[worn + 1 :]
        honest(self, at, data)

    Flash._store = store  # type: ignore[method-assign]


def oversized() -> None:
    """It answers every question with a message that is far too long."""
    Server.handle = lambda self, message: b"\0" * HUGE  # type: ignore[method-assign]


def malformed() -> None:
    """It answers every question in a sound frame with what is no CBOR."""

    def handle(self: Server, message: bytes) -> bytes:
        del self
        first, _, _, group, sequence, number = HEADER.unpack_from(message)
        body = b"\xff no CBOR"
        return HEADER.pack(first + 1, 0, len(body), group, sequence, number) + body

    Server.handle = handle  # type: ignore[method-assign]


LIES: Final[dict[str, Callable[[], None]]] = {
    lie.__name__.replace("_", "-"): lie
    for lie in (csr_signature, csr_subject, proof, forgets, worn_flash, oversized, malformed)
}

if __name__ == "__main__":
    LIES[sys.argv[1]]()
    sys.exit(main(sys.argv[2:]))
