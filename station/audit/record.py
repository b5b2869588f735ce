"""One record of the trail and its canonical octets, which are what is hashed: each record has one form only.

The form is JSON in the subset of RFC 8785 (JCS) that has no fractions: names sorted, no spaces, UTF-8, integers within
2^53. All eight names are always there. The leaf's hash is RFC 6962's. Where records come from doesn't belong here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from hal.errors import StationError, quote
from station.audit.tree import leaf_hash

Value = str | int | bool | None
INTEGER_LIMIT: Final = (1 << 53) - 1
"""RFC 8785, 3.2.2.3: what each JSON reader keeps exactly."""
RECORD_LIMIT: Final = 64 * 1024
"""Octets: 32 fields of 600 characters, each of which JSON may write with six, are below it."""

_encoder: Final = msgspec.json.Encoder(order="sorted")


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """`seq` counts from 1 without gaps; `at`: Unix milliseconds. `unit`, `visit`, `nest`, `step`: None where there is
    none.
    """

    seq: int
    at: int
    kind: str
    unit: str | None
    visit: str | None
    nest: str | None
    step: str | None
    fields: dict[str, Value]


_decoder: Final = msgspec.json.Decoder(Record)


def encode_fields(fields: Mapping[str, Value]) -> bytes:
    """The fields as they are kept. StationError for what has no canonical form: that is a fault in our own code."""
    for name, value in fields.items():
        plain = value is None or isinstance(value, str | int)
        if not name.isascii() or not plain:
            raise StationError(f"field {quote(name)} of an audit record is a {type(value).__name__}")
        if isinstance(value, int) and abs(value) > INTEGER_LIMIT:
            raise StationError(f"field {quote(name)} of an audit record is out of range")
    return _encoder.encode(fields)


def canonical(
    seq: int,
    at: int,
    kind: str,
    unit: str | None,
    visit: str | None,
    nest: str | None,
    step: str | None,
    fields: bytes,
) -> bytes:
    """The record's octets; `fields` as `encode_fields` made them."""
    return _encoder.encode(
        {
            "seq": seq,
            "at": at,
            "kind": kind,
            "unit": unit,
            "visit": visit,
            "nest": nest,
            "step": step,
            "fields": msgspec.Raw(fields),
        }
    )


def read(octets: bytes) -> Record:
    """The record in `octets`. ValueError (msgspec's) when they are not one in its canonical form."""
    if len(octets) > RECORD_LIMIT:
        raise msgspec.ValidationError(f"{len(octets)} octets are no record")
    found = _decoder.decode(octets)
    if _encoder.encode(found) != octets:
        raise msgspec.ValidationError("the record is not in its canonical form")
    return found


def octets_of(found: Record) -> bytes:
    """The canonical octets of a record, however what it was read from was laid out."""
    return _encoder.encode(found)


def leaf_of(
    seq: int,
    at: int,
    kind: str,
    unit: str | None,
    visit: str | None,
    nest: str | None,
    step: str | None,
    fields: str,
) -> bytes:
    """The leaf hash of a row, whose `fields` is text: what the store keeps beside it."""
    return leaf_hash(canonical(seq, at, kind, unit, visit, nest, step, fields.encode()))
