"""The export of a trail, as JSON Lines: a header, then records and checkpoints in their order, then an end.

A record's line carries the hash that the store keeps beside it, so that a reader can say which record was changed. A
checkpoint stands behind the last record that it covers. Reading from a store, and judging, are elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from hal.errors import AuditBroken
from station.audit.note import NOTE_LIMIT
from station.audit.record import RECORD_LIMIT

VERSION: Final = 1
LINE_LIMIT: Final = max(RECORD_LIMIT, 2 * NOTE_LIMIT) + 1024
"""Octets."""
KEYS_LIMIT: Final = 64
PEAKS_LIMIT: Final = 64


class Header(Struct, frozen=True, forbid_unknown_fields=True):
    """`since`: the records before are not in it; `peaks` (hex) are the hashes that they come down to.

    `keys`: DER SubjectPublicKeyInfo, base64, of those that signed checkpoints: for information, never for trust.
    """

    hallmark_audit_export: int
    station: str
    origin: str
    since: int
    peaks: list[str]
    keys: list[str]


class RecordLine(Struct, frozen=True, forbid_unknown_fields=True):
    leaf: str
    record: msgspec.Raw


class CheckpointLine(Struct, frozen=True, forbid_unknown_fields=True):
    checkpoint: str


class Counts(Struct, frozen=True, forbid_unknown_fields=True):
    records: int
    checkpoints: int


class EndLine(Struct, frozen=True, forbid_unknown_fields=True):
    end: Counts


_encoder: Final = msgspec.json.Encoder()
_header: Final = msgspec.json.Decoder(Header)
_record: Final = msgspec.json.Decoder(RecordLine)
_checkpoint: Final = msgspec.json.Decoder(CheckpointLine)
_end: Final = msgspec.json.Decoder(EndLine)


def header(station: str, origin: str, since: int, peaks: Sequence[bytes], keys: Sequence[bytes]) -> bytes:
    encoded = [base64.b64encode(key).decode() for key in keys]
    return _line(Header(VERSION, station, origin, since, [peak.hex() for peak in peaks], encoded))


def record(octets: bytes, leaf: bytes) -> bytes:
    return _line(RecordLine(leaf.hex(), msgspec.Raw(octets)))


def checkpoint(note: bytes) -> bytes:
    return _line(CheckpointLine(note.decode()))


def end(records: int, checkpoints: int) -> bytes:
    return _line(EndLine(Counts(records, checkpoints)))


def read_header(line: bytes) -> Header:
    """AuditBroken when it isn't one of this version in its own form."""
    try:
        found = _header.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AuditBroken("this is no export of an audit trail") from error
    if found.hallmark_audit_export != VERSION:
        raise AuditBroken(
            f"an export of version {found.hallmark_audit_export}; this Hallmark reads {VERSION}"
        )
    if found.since < 0 or len(found.peaks) > PEAKS_LIMIT or len(found.keys) > KEYS_LIMIT:
        raise AuditBroken("the export's first line can't be")
    if _line(found) != line:
        raise AuditBroken("the export's first line was changed: it is not in the form that it is written in")
    return found


def read_line(line: bytes) -> RecordLine | CheckpointLine | EndLine:
    """AuditBroken for anything else, or for the same in another form than it is written in."""
    for begins, decoder in ((b'{"leaf"', _record), (b'{"checkpoint"', _checkpoint), (b'{"end"', _end)):
        if line.startswith(begins):
            try:
                found: RecordLine | CheckpointLine | EndLine = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise AuditBroken("a line that can't be read") from error
            if _line(found) != line:
                raise AuditBroken("a line that is not in the form that it is written in")
            return found
    raise AuditBroken("a line that is neither a record, nor a checkpoint, nor the end")


def _line(value: Header | RecordLine | CheckpointLine | EndLine) -> bytes:
    return _encoder.encode(value) + b"\n"
