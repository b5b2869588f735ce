"""Power cuts and kills for the store: a VFS that records what SQLite does to its files, and images of any moment of it.

The file system modelled is an unkind one: what was not synced may be there, missing, or there in part (by sectors), and
a deleted file may come back unless its directory was synced.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import apsw

SECTOR: Final = 512


@dataclass(frozen=True, slots=True)
class Op:
    """`kind`: write, sync, truncate, delete (synced or not), or ack (something was promised)."""

    kind: str
    file: str = ""
    offset: int = 0
    data: bytes = b""
    token: object = None
    synced: bool = False


class _File(apsw.VFSFile):
    def __init__(
        self, name: apsw.URIFilename | str | None, flags: list[int], note: Callable[[Op], None]
    ) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(path).name if path else ""
        self._note = note
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - apsw's name
        self._note(Op("write", self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's name
        super().xSync(flags)
        self._note(Op("sync", self._name))

    def xTruncate(self, size: int) -> None:  # noqa: N802 - apsw's name
        self._note(Op("truncate", self._name, size))
        super().xTruncate(size)


class Recorder(apsw.VFS):
    """The default VFS while it lives: calls `note` before each write, truncation and deletion, and after each sync."""

    def __init__(self, note: Callable[[Op], None]) -> None:
        self._note = note
        super().__init__("recorder", "unix", makedefault=True)

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's name
        return _File(name, flags, self._note)

    def xDelete(self, name: str, syncdir: bool) -> None:  # noqa: N802 - apsw's name
        self._note(Op("delete", Path(name).name, synced=syncdir))
        super().xDelete(name, syncdir)


class Killer:
    """A `note` that ends the process with SIGKILL at the n-th operation."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, op: Op) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(slots=True)
class _Content:
    durable: bytearray | None = None
    pending: list[Op] = field(default_factory=list)


def image(log: list[Op], until: int, folder: Path, keep: Callable[[Op], bool]) -> list[object]:
    """Makes in `folder` what is left when the power goes after `until` operations, and gives what was promised by then.

    `keep` says of each write (a sector), truncation or deletion that was not synced whether it reached the disk.
    """
    files: dict[str, _Content] = {}
    promised: list[object] = []
    for op in log[:until]:
        content = files.setdefault(op.file, _Content())
        if op.kind == "ack":
            promised.append(op.token)
        elif op.kind == "sync":
            content.durable = _applied(content, lambda _: True)
            content.pending = []
        elif op.kind == "delete" and op.synced:
            files[op.file] = _Content()
        else:
            content.pending.append(op)
    for name, content in files.items():
        left = _applied(content, keep)
        if name and left is not None:
            (folder / name).write_bytes(left)
    return promised


def sectors(chance: float, seed: int) -> Callable[[Op], bool]:
    """A `keep` that lets each unsynced piece through with this chance."""
    dice = random.Random(seed)
    return lambda _: dice.random() < chance


def _applied(content: _Content, keep: Callable[[Op], bool]) -> bytearray | None:
    data = None if content.durable is None else bytearray(content.durable)
    for op in content.pending:
        if op.kind == "delete":
            data = None if keep(op) else data
            continue
        data = bytearray() if data is None else data
        if op.kind == "truncate":
            if keep(op):
                del data[op.offset :]
            continue
        for start in range(0, len(op.data), SECTOR):
            piece, offset = op.data[start : start + SECTOR], op.offset + start
            if keep(op):
                data.extend(bytes(max(0, offset + len(piece) - len(data))))
                data[offset : offset + len(piece)] = piece
    return data
