"""How a lot gets into the store: judged and wrapped by the command that reads it, taken over whole by the station.

A station that runs is the only writer of its database: the command leaves a file in `incoming` below its state, without
anything secret in clear, and tells it the name. Without a station the command does the second half itself.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from hal.errors import CertificateUntrusted, ConfigError, StationError, quote
from hal.secret import Secret
from station import foreign
from station.foreign import Terms
from station.paths import Paths
from station.signed import read_bounded
from station.stock_files import Delivery, VendorManifest
from station.store import Store
from station.store.database import fsync_directory
from station.store.stock import CERTIFICATES, KEYS, PRELOADED, Entry, Lot

FOLDER: Final = "incoming"
NAME: Final = re.compile(r"lot-[A-Za-z0-9_]{1,64}\.msgpack")
SIZE_LIMIT: Final = 512 << 20
Wrap = Callable[[bytes, Secret], bytes]


class StockFile(Struct, frozen=True, forbid_unknown_fields=True):
    lot: Lot
    entries: list[Entry]


def pool_context(key: bytes) -> bytes:
    """What a pool's wrapped private key is bound to; `key`: SHA-256 of its SPKI."""
    return b"hallmark pool key\x00" + key


def pool_lot(delivery: Delivery, origin: str, terms: Terms, now: dt.datetime, wrap: Wrap) -> StockFile:
    """The lot as it is kept: every certificate judged, every private key wrapped. CertificateUntrusted names which."""
    entries: list[Entry] = []
    for item in delivery.made:
        leaf = foreign.judge(item.chain, terms, now)
        wrapped = wrap(pool_context(leaf.key), item.key) if item.key is not None else b""
        entries.append(
            Entry(
                key=leaf.key,
                certificate=foreign.digest(leaf.der),
                issuer=leaf.issuer,
                serial=leaf.serial,
                common_name=leaf.common_name,
                not_after=int(leaf.certificate.not_valid_after_utc.timestamp() * 1000),
                chain=item.chain,
                wrapped=wrapped,
            )
        )
    kind = KEYS if any(entry.wrapped for entry in entries) else CERTIFICATES
    _unlike(entries)
    return StockFile(Lot(delivery.lot, kind, origin, delivery.sha256, delivery.signer), entries)


def vendor_lot(manifest: VendorManifest, sha256: bytes, signer: str | None) -> StockFile:
    entries = [
        Entry(key=bytes.fromhex(item.key), certificate=bytes.fromhex(item.certificate or ""))
        for item in manifest.elements
    ]
    return StockFile(Lot(manifest.lot, PRELOADED, manifest.vendor, sha256, signer), entries)


def _unlike(entries: Sequence[Entry]) -> None:
    """No two of a lot have one name or one number: the store would say so too, but not which."""
    names: set[str] = set()
    numbers: set[tuple[bytes, str]] = set()
    for entry in entries:
        if entry.common_name in names or (entry.issuer, entry.serial) in numbers:
            raise CertificateUntrusted(
                f"two certificates of the lot have the name or the serial number of {quote(entry.common_name)}",
                hint="Ask whoever made the lot: each device has a name and a certificate of its own.",
            )
        names.add(entry.common_name)
        numbers.add((entry.issuer, entry.serial))


def leave(paths: Paths, content: StockFile) -> str:
    """Puts the file where a running station finds it, durably; its name."""
    folder = paths.state / FOLDER
    try:
        owner = paths.state.stat()
        folder.mkdir(mode=0o700, exist_ok=True)
        _give(folder, owner)
        descriptor, path = tempfile.mkstemp(prefix="lot-", suffix=".msgpack", dir=folder)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.msgpack.encode(content))
            stream.flush()
            os.fsync(stream.fileno())
        _give(Path(path), owner)
        fsync_directory(folder)
    except OSError as error:
        raise StationError(
            f"the lot can't be left in {folder}: {os.strerror(error.errno or 0)}",
            hint="Run it as root or as the station's user.",
        ) from error
    return Path(path).name


def take(paths: Paths, store: Store, name: str, by: str) -> bool:
    """The lot in that file into the store, whole; the file goes, whatever came of it. False for one that is there."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{quote(name)} is no name of a lot that was left here")
    path = paths.state / FOLDER / name
    try:
        content = msgspec.msgpack.decode(read_bounded(path, SIZE_LIMIT, ConfigError), type=StockFile)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"can't be read: {error}", file=str(path)) from error
    finally:
        path.unlink(missing_ok=True)
    return store.add_lot(content.lot, content.entries, by)


def _give(path: Path, owner: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)
