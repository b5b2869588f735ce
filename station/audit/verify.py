"""Judges an export or a unit's proof, on any machine: needs the file, and what its reader trusts.

That is the checkpoints' public key, a root that was written down, or checkpoints that a receiver has kept. The first
thing that doesn't hold is named. Nothing in the file is taken for true because the file says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import msgspec

from hal.errors import AuditBroken, quote
from station.audit import export, note, record
from station.audit.export import CheckpointLine, EndLine, RecordLine
from station.audit.tree import HASH_SIZE, Growing, leaf_hash

HEX: Final = re.compile(r"^[0-9a-f]{64}$")
HINT: Final = (
    "Get the file from the station again; if it is the same, the record of what happened was tampered with."
)


@dataclass(frozen=True, slots=True)
class Trust:
    """What the reader knows from elsewhere. `root`: (size, root hash). `remembered`: checkpoints kept by a receiver."""

    keys: Sequence[note.CheckpointKey] = ()
    root: tuple[int, bytes] | None = None
    remembered: Sequence[note.Checkpoint] = ()

    @property
    def empty(self) -> bool:
        return not self.keys and self.root is None and not self.remembered


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found to hold: records `first` to `last` of `origin` are those that were signed or remembered."""

    station: str
    origin: str
    first: int
    last: int
    checkpoints: int
    root: bytes


def verify_export(stream: BinaryIO, trust: Trust) -> Verdict:
    """Reads the whole export. AuditBroken says what is wrong, and with which record."""
    return _Judge(trust).run(_lines(stream))


@dataclass(slots=True)
class _Judge:
    trust: Trust
    growing: Growing = field(default_factory=Growing)
    since: int = 0
    origin: str = ""
    checkpoints: int = 0
    covered: int = -1
    """The last size whose root is one that the reader trusts."""
    wanted: dict[int, bytes] = field(default_factory=dict)
    """Roots that the reader brought, by size, until they were met."""

    def run(self, lines: Iterator[bytes]) -> Verdict:
        header = export.read_header(next(lines, b""))
        self.since, self.origin = header.since, header.origin
        try:
            self.growing = Growing(header.since, [bytes.fromhex(peak) for peak in header.peaks])
        except ValueError as error:
            raise AuditBroken("the export's first line does not fit its records", hint=HINT) from error
        self._bring()
        self._meet()
        ended = False
        for line in lines:
            if ended:
                raise AuditBroken("the export goes on behind its end", hint=HINT)
            match self._read(line):
                case RecordLine() as found:
                    self._record(found)
                case CheckpointLine() as found:
                    self._checkpoint(found)
                case EndLine() as found:
                    self._end(found)
                    ended = True
        if not ended:
            raise AuditBroken(f"the export is cut off behind record {self.growing.size}", hint=HINT)
        self._covered()
        return Verdict(
            header.station,
            self.origin,
            self.since + 1,
            self.growing.size,
            self.checkpoints,
            self.growing.root(),
        )

    def _bring(self) -> None:
        """What the reader brought, in one table; two that disagree are found before the first record."""
        brought = [(checkpoint.head.size, checkpoint.head.root) for checkpoint in self.trust.remembered]
        for checkpoint in self.trust.remembered:
            if checkpoint.head.origin != self.origin:
                raise AuditBroken(
                    f"the remembered checkpoint is of another trail ({quote(checkpoint.head.origin)});"
                    f" this export is of {quote(self.origin)}: the store was replaced",
                    hint=HINT,
                )
            if self.trust.keys:
                note.verify(checkpoint, self.trust.keys)
        if self.trust.root is not None:
            brought.append(self.trust.root)
        for size, root in brought:
            if size < self.since:
                raise AuditBroken(
                    f"the export begins with record {self.since + 1}: what was remembered of the first {size} can't be"
                    " compared",
                    hint="Get an export from the beginning.",
                )
            if self.wanted.setdefault(size, root) != root:
                raise AuditBroken(f"two roots over {size} records were remembered: the trail was rewritten")

    def _meet(self) -> None:
        """Compares the root so far with one that the reader brought for this size."""
        size = self.growing.size
        root = self.wanted.pop(size, None)
        if root is None:
            return
        if self.growing.root() != root:
            raise AuditBroken(f"the first {size} records are not those whose root was remembered", hint=HINT)
        self.covered = size

    def _read(self, line: bytes) -> RecordLine | CheckpointLine | EndLine:
        try:
            return export.read_line(line)
        except AuditBroken as error:
            raise AuditBroken(
                f"behind record {self.growing.size} of the export: {error}", hint=HINT
            ) from error

    def _record(self, line: RecordLine) -> None:
        seq = self.growing.size + 1
        octets = bytes(line.record)
        leaf = leaf_hash(octets)
        try:
            found = record.read(octets)
        except (msgspec.MsgspecError, ValueError) as error:
            raise AuditBroken(f"record {seq} was changed: {error}", hint=HINT) from error
        if not HEX.fullmatch(line.leaf) or bytes.fromhex(line.leaf) != leaf:
            raise AuditBroken(
                f"record {seq} was changed: it hasn't the hash that was kept with it", hint=HINT
            )
        if found.seq != seq:
            raise AuditBroken(
                f"record {seq} is missing, or out of order: {found.seq} is in its place", hint=HINT
            )
        self.growing.append(leaf)
        self._meet()

    def _checkpoint(self, line: CheckpointLine) -> None:
        size = self.growing.size
        checkpoint = note.read_note(line.checkpoint.encode())
        head = checkpoint.head
        if head.origin != self.origin:
            raise AuditBroken(f"the checkpoint behind record {size} is of another trail", hint=HINT)
        if head.size != size:
            raise AuditBroken(
                f"the checkpoint behind record {size} is over {head.size} records: something was taken out or moved",
                hint=HINT,
            )
        if head.root != self.growing.root():
            after = max(self.covered, self.since)
            raise AuditBroken(
                f"records {after + 1} to {size} are not those that were signed: one was changed, taken out or put in",
                hint=HINT,
            )
        if self.trust.keys:
            note.verify(checkpoint, self.trust.keys)
            self.covered = size
        self.checkpoints += 1

    def _end(self, line: EndLine) -> None:
        if (line.end.records, line.end.checkpoints) != (self.growing.size - self.since, self.checkpoints):
            raise AuditBroken(
                "the export's end counts other records or checkpoints than there are", hint=HINT
            )

    def _covered(self) -> None:
        size = self.growing.size
        if self.wanted:
            raise AuditBroken(
                f"the trail ends with record {size}, but one of {max(self.wanted)} records was remembered:"
                " it was cut or rolled back",
                hint=HINT,
            )
        if size == self.since:
            raise AuditBroken("the export has no records", hint=HINT)
        if self.covered < size:
            raise AuditBroken(
                f"nothing that you trust covers records {max(self.covered, self.since) + 1} to {size}",
                hint="Give the checkpoints' key with --key, or a root over all of these records.",
            )


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines with their newline; the last one may lack it, and is then in no valid form."""
    while line := stream.readline(export.LINE_LIMIT + 1):
        if len(line) > export.LINE_LIMIT:
            raise AuditBroken("the export has a line that is longer than any of ours", hint=HINT)
        yield line


def read_root(text: str) -> bytes:
    """A root hash in hex; ValueError when it has another length."""
    root = bytes.fromhex(text)
    if len(root) != HASH_SIZE:
        raise ValueError(f"{len(root)} octets; a root has {HASH_SIZE}")
    return root


def keys_of(spkis: Iterable[bytes]) -> list[note.CheckpointKey]:
    return [note.checkpoint_key(spki) for spki in spkis]
