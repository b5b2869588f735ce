"""The station's own list of endorsement keys, for the customers of whoever makes TPMs or boards with them.

In the form that an import takes, signed by a key that is held elsewhere. Written entry by entry; whole or not at all.
"""

from __future__ import annotations

import datetime as dt
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from hal.errors import ConfigError, StationError
from station.signed import SUFFIX, PrivateKey, sign
from station.store.database import fsync_directory
from station.store.ek_lists import MadeKey
from station.trust.ek_list import FORMAT, Header, encode_entry, encode_header


def export(
    out: Path, keys: Iterable[MadeKey], *, lot: str, vendor: str, created: dt.datetime, key: PrivateKey
) -> int:
    """Writes `out` and its signature; how many EKs there are in it. ConfigError for a lot that can't be named so."""
    _check(Header(FORMAT, lot, vendor, created.replace(microsecond=0), 0))
    try:
        with tempfile.TemporaryDirectory(prefix=".ek-list-", dir=out.parent) as scratch:
            entries, whole = Path(scratch) / "entries", Path(scratch) / "list"
            count = 0
            with entries.open("wb") as stream:
                for item in keys:
                    stream.write(encode_entry(item.ek_public, item.certificate))
                    count += 1
            with whole.open("wb") as stream, entries.open("rb") as body:
                stream.write(
                    encode_header(Header(FORMAT, lot, vendor, created.replace(microsecond=0), count))
                )
                shutil.copyfileobj(body, stream)
                stream.flush()
                os.fsync(stream.fileno())
            signature = Path(scratch) / "signature"
            with signature.open("wb") as stream:
                stream.write(_signature(whole, key))
                stream.flush()
                os.fsync(stream.fileno())
            # The signature last: a crash leaves no list that stands.
            whole.replace(out)
            signature.replace(out.with_name(out.name + SUFFIX))
            fsync_directory(out.absolute().parent)
    except OSError as error:
        raise StationError(f"{out} can't be written: {os.strerror(error.errno or 0)}") from error
    return count


def _check(header: Header) -> None:
    """Against the rules that the one who imports it goes by."""
    try:
        msgspec.json.decode(encode_header(header), type=Header)
    except msgspec.ValidationError as error:
        raise ConfigError(f"no list may be named so: {error}", key="--lot, --vendor") from error


def _signature(path: Path, key: PrivateKey) -> bytes:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as octets:
        view: Any = memoryview(octets)
        with view:
            return sign(view, key)
