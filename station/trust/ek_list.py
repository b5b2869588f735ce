"""A list of endorsement keys as vendors sign it, one lot a file: JSON Lines, a header and an entry for each EK.

Read entry by entry over the mapped file, so that a million take no more memory than ten. What is done with the entries
is elsewhere; whether a certificate in one holds is the judge's.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime as dt
import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from hal.errors import ConfigError, ProtocolViolation, quote
from station.signed import SIGNATURE_LIMIT, SUFFIX, Signer, check_signature, read_bounded
from station.trust.ek_public import read_ek_name

FORMAT: Final = "hallmark-ek-list-1"
LINE_LIMIT: Final = 64 * 1024
SIZE_LIMIT: Final = 8 << 30
MOST_ENTRIES: Final = 10_000_000
PIECE: Final = 1 << 20


class Header(Struct, frozen=True, forbid_unknown_fields=True):
    """The first line. `count`: entries that follow."""

    format: str
    lot: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
    vendor: Annotated[str, Meta(min_length=1, max_length=64)]
    created: dt.datetime
    count: Annotated[int, Meta(ge=0, le=MOST_ENTRIES)]


class Line(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`ek_public`: TPM2B_PUBLIC, base64; `ek_name`: the Name, hex. One of them, or both if they fit.
    `certificate`: the EK certificate, DER, base64.
    """

    ek_public: str | None = None
    ek_name: (
        Annotated[str, Meta(pattern=r"^(?:000b[0-9a-f]{64}|000c[0-9a-f]{96}|000d[0-9a-f]{128})\Z")] | None
    ) = None
    certificate: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One EK: its Name, and what the list has beside that."""

    name: bytes
    public: bytes | None
    certificate: bytes | None


_header: Final = msgspec.json.Decoder(Header)
_line: Final = msgspec.json.Decoder(Line)


class EkListFile:
    """A mapped list. `entries` may be gone through again and again; each time every line is checked."""

    def __init__(self, path: Path, octets: Any) -> None:
        self._path, self._octets = path, octets
        first, self._start = self._line(0, 1)
        try:
            self.header = _header.decode(first)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self._wrong(1, f"no header of an EK list: {quote(str(error), 200)}") from error
        if self.header.format != FORMAT:
            raise self._wrong(1, f"the form {quote(self.header.format)}; expected {FORMAT}")
        if self.header.created.tzinfo is None:
            raise self._wrong(1, "a time without its zone")

    def sha256(self) -> bytes:
        """Over the whole file."""
        digest, view = hashlib.sha256(), memoryview(self._octets)
        with view:
            for at in range(0, len(view), PIECE):
                digest.update(view[at : at + PIECE])
        return digest.digest()

    def signer(self, signers: tuple[Signer, ...]) -> Signer:
        """Whose signature stands beside it. ConfigError when it is none of `signers`'."""
        signature = read_bounded(self._path.with_name(self._path.name + SUFFIX), SIGNATURE_LIMIT, ConfigError)
        view: Any = memoryview(self._octets)
        with view:
            found = check_signature(view, signature, signers)
        if found is None:
            names = ", ".join(item.name for item in signers)
            raise ConfigError(f"is not signed by {names}", file=str(self._path))
        return found

    def entries(self) -> Iterator[Entry]:
        """Each EK in the file's order. ConfigError names the line that doesn't hold, or a wrong count."""
        at, number = self._start, 1
        while at < len(self._octets):
            number += 1
            text, at = self._line(at, number)
            if number - 1 > self.header.count:
                break
            try:
                yield read_entry(_line.decode(text))
            except (msgspec.MsgspecError, ValueError, ProtocolViolation, RecursionError) as error:
                raise self._wrong(number, f"no entry of an EK list: {quote(str(error), 200)}") from error
        if number - 1 != self.header.count:
            raise self._wrong(1, f"another number of entries than the {self.header.count} of its header")

    def _line(self, at: int, number: int) -> tuple[bytes, int]:
        end = self._octets.find(b"\n", at, at + LINE_LIMIT)
        if end < 0:
            raise self._wrong(number, f"a line that doesn't end within {LINE_LIMIT} octets")
        return self._octets[at:end], end + 1

    def _wrong(self, line: int, problem: str) -> ConfigError:
        return ConfigError(
            f"has {problem}",
            file=str(self._path),
            line=line,
            hint="Nothing of the list counts. Ask its vendor for one that holds.",
        )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[EkListFile]:
    """The list at `path`, mapped while the context lasts. ConfigError when it can't be read or is none."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if not 0 < size <= SIZE_LIMIT:
                raise ConfigError(
                    f"has {size} octets; expected an EK list of at most {SIZE_LIMIT}", file=str(path)
                )
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as octets:
                yield EkListFile(path, octets)
    except OSError as error:
        raise ConfigError(f"can't be read ({error.strerror}); expected an EK list", file=str(path)) from error


def read_entry(line: Line) -> Entry:
    """ValueError or ProtocolViolation for an entry that doesn't hold."""
    public = None if line.ek_public is None else _octets(line.ek_public)
    certificate = None if line.certificate is None else _octets(line.certificate)
    name = None if public is None else read_ek_name(public)
    given = None if line.ek_name is None else bytes.fromhex(line.ek_name)
    if name is not None and given is not None and name != given:
        raise ValueError("ek_name is another key's than ek_public")
    known = name or given
    if known is None:
        raise ValueError("has neither ek_public nor ek_name")
    return Entry(known, public, certificate)


def encode_header(header: Header) -> bytes:
    return msgspec.json.encode(header) + b"\n"


def encode_entry(public: bytes, certificate: bytes | None) -> bytes:
    """One line of a list, with its end."""
    encoded = None if certificate is None else base64.b64encode(certificate).decode()
    return msgspec.json.encode(Line(base64.b64encode(public).decode(), None, encoded)) + b"\n"


def _octets(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error
