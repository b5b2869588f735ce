"""Where an officer finds sealed records: a unit's exported folder, its archive record, or a single file.

What the folder or the archive says in clear beside them is compared with what was sealed: a record that was put into
another unit's folder is noticed. Reads only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509

from hal.errors import ConfigError, EscrowUnreadable
from station.archive import ArchiveRecord
from station.escrow import EscrowRecord
from station.escrow_opener import LIMIT, OfficerKey, open_record
from station.signed import read_bounded

ARCHIVE_LIMIT: Final = 4 << 20
PATTERN: Final = "escrow*.p7m"
SUMMARY: Final = "unit.json"


class _Summary(msgspec.Struct):
    """The part of unit.json that is compared."""

    unit: str
    ek_name: str | None


@dataclass(frozen=True, slots=True)
class Sealed:
    """One sealed record, and what stood in clear beside it (None where nothing did)."""

    name: str
    data: bytes
    unit: str | None = None
    ek_name: bytes | None = None


def find(path: Path) -> list[Sealed]:
    """All records at `path`. ConfigError when there is none, or something there can't be read."""
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".json":
        return _archive(path)
    return [Sealed(path.name, read_bounded(path, LIMIT, ConfigError))]


def opened(path: Path, key: OfficerKey, certificate: x509.Certificate | None = None) -> list[EscrowRecord]:
    """The records at `path`, opened and compared, oldest generation first."""
    records = [_checked(item, open_record(item.data, key, certificate)) for item in find(path)]
    return sorted(records, key=lambda record: record.generation)


def _checked(item: Sealed, record: EscrowRecord) -> EscrowRecord:
    if item.unit not in (None, record.unit) or (item.unit is not None and item.ek_name is None):
        raise EscrowUnreadable(f"{item.name} was sealed for unit {record.unit}, and lies with another one")
    if item.ek_name not in (None, record.ek_name):
        raise EscrowUnreadable(f"{item.name} was sealed for another TPM than the unit's")
    return record


def _folder(path: Path) -> list[Sealed]:
    files = sorted(path.glob(PATTERN))
    if not files:
        raise ConfigError("there is no escrow record here; expected escrow.p7m", file=str(path))
    summary = path / SUMMARY
    unit, ek_name = None, None
    if summary.exists():
        try:
            said = msgspec.json.decode(read_bounded(summary, ARCHIVE_LIMIT, ConfigError), type=_Summary)
            unit, ek_name = said.unit, bytes.fromhex(said.ek_name) if said.ek_name else None
        except (msgspec.DecodeError, ValueError) as error:
            raise ConfigError("is no unit's summary", file=str(summary)) from error
    return [Sealed(file.name, read_bounded(file, LIMIT, ConfigError), unit, ek_name) for file in files]


def _archive(path: Path) -> list[Sealed]:
    try:
        found = msgspec.json.decode(read_bounded(path, ARCHIVE_LIMIT, ConfigError), type=ArchiveRecord)
    except msgspec.DecodeError as error:
        raise ConfigError("is no archive record", file=str(path)) from error
    if not found.escrows:
        raise ConfigError("has no escrow record", file=str(path))
    return [
        Sealed(f"{path.name}, generation {item.generation}", item.sealed, found.unit, item.ek_name)
        for item in found.escrows
    ]
