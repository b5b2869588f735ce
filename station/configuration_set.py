"""The released configuration: every file of a folder, named with its digest in one list that the release key signed.

In production whatever a process reads of its configuration it reads from here: the files' octets are taken in once,
compared with the signed list, and unpacked into a folder that belongs to this process. A file that changes later, in
the configuration folder, changes nothing until the next start. Which settings mean what is for the rooms that read.
"""

from __future__ import annotations

import atexit
import datetime as dt
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from hal.errors import ConfigError, ConfigurationUntrusted, quote
from station.signed import PrivateKey, Signer, load_signers, read_bounded, read_signed, write_signed

FORMAT: Final = "hallmark-configuration-set-1"
SET: Final = "set.json"
STATION_FILE: Final = "station.toml"
LOCAL_FILE: Final = "local.toml"
LIVE: Final = frozenset({"images", "credentials", "local"})
"""Folders that are no part of a set: images have a signed manifest of their own, credentials are one machine's secrets,
and `local` is for what other programs on this machine need (an HSM's configuration). Nothing in it is read by Hallmark.
"""
RELEASE_KEY: Final = "release-key.pem"
OUTSIDE: Final = LIVE | {SET, f"{SET}.sig", LOCAL_FILE, RELEASE_KEY}

SET_LIMIT: Final = 4 << 20
FILE_LIMIT: Final = 16 << 20
TOTAL_LIMIT: Final = 64 << 20
"""Octets: lists of vendors' certificates have some hundred KiB."""
MOST_FILES: Final = 4096
DEEPEST: Final = 8
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,127}"


class SetEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """`path` relative to the folder, with slashes; `sha256` in hex over the file; `size` in octets."""

    path: Annotated[str, Meta(pattern=rf"^{_NAME}(?:/{_NAME}){{0,{DEEPEST - 1}}}\Z")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size: Annotated[int, Meta(ge=0, le=FILE_LIMIT)]


class SetFile(Struct, frozen=True, forbid_unknown_fields=True):
    """set.json. `serial` only grows from one release to the next; `files` in the order of their paths."""

    format: Literal["hallmark-configuration-set-1"]
    serial: Annotated[int, Meta(ge=1, le=(1 << 53) - 1)]
    created: dt.datetime
    files: Annotated[list[SetEntry], Meta(min_length=1, max_length=MOST_FILES)]


@dataclass(frozen=True, slots=True)
class ConfigurationSet:
    """A set whose signature and digests hold. `digest`: SHA-256 of set.json, what records name it by."""

    serial: int
    created: dt.datetime
    digest: bytes
    signer: Signer
    files: dict[str, bytes]
    folders: tuple[str, ...]
    """Those that were there, empty ones too: a reader may look for one."""


@dataclass(frozen=True, slots=True)
class Release:
    """A set as a station remembers it. `digest`: SHA-256 of set.json."""

    serial: int
    digest: bytes


def refuse_older(last: Release | None, serial: int, digest: bytes) -> None:
    """ConfigurationUntrusted for a set that is older than `last`, or another one of the same number."""
    hint = "Install the newest set; to go back to old contents, release them again under a new serial number."
    if last is not None and serial < last.serial:
        message = (
            f"configuration set {serial} is older than {last.serial}, which this station has already taken"
        )
        raise ConfigurationUntrusted(message, hint=hint)
    if last is not None and serial == last.serial and digest != last.digest:
        message = f"there are two different configuration sets with the serial number {serial}"
        raise ConfigurationUntrusted(message, hint=hint)


def read_set(folder: Path, release_key: Path) -> ConfigurationSet:
    """The set in `folder`; ConfigurationUntrusted when anything in it is not what the release key signed."""
    signed = read_signed(folder / SET, pinned(release_key), limit=SET_LIMIT, error=ConfigurationUntrusted)
    listed = parse_set(signed.data, str(folder / SET))
    wanted = {entry.path: entry for entry in listed.files}
    files: dict[str, bytes] = {}
    folders: list[str] = []
    for found in _walk(folder):
        if found.descriptor is None:
            folders.append(found.path)
            continue
        entry = wanted.get(found.path)
        if entry is None:
            raise ConfigurationUntrusted(
                "is not in the signed set; expected only files that the release key signed for",
                file=str(folder / found.path),
                hint=f"Take it away. What belongs to this machine alone goes into {folder}/local.",
            )
        data = _read(found.descriptor, entry.size, folder / found.path)
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ConfigurationUntrusted(
                "is not the file that was signed: other octets", file=str(folder / found.path)
            )
        files[found.path] = data
    missing = sorted(wanted.keys() - files.keys())
    if missing:
        raise ConfigurationUntrusted("is missing; the signed set has it", file=str(folder / missing[0]))
    return ConfigurationSet(
        listed.serial, listed.created, signed.sha256, signed.signer, files, tuple(folders)
    )


def parse_set(data: bytes, name: str) -> SetFile:
    """set.json's octets as its type; ConfigurationUntrusted for anything but its strict form."""
    try:
        found = msgspec.json.decode(data, type=SetFile)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigurationUntrusted(f"can't be read: {quote(str(error), 200)}", file=name) from error
    paths = [entry.path for entry in found.files]
    if paths != sorted(set(paths)):
        raise ConfigurationUntrusted("names a file twice, or not in order of their paths", file=name)
    for path in paths:
        if path.split("/")[0] in OUTSIDE:
            raise ConfigurationUntrusted(f"lists {path}, which can't be part of a set", file=name)
    if sum(entry.size for entry in found.files) > TOTAL_LIMIT:
        raise ConfigurationUntrusted(f"lists more than {TOTAL_LIMIT} octets", file=name)
    if found.created.tzinfo is None:
        raise ConfigurationUntrusted("has a time without its zone; expected UTC", file=name)
    return found


def unpack(released: ConfigurationSet) -> Path:
    """A folder of this process with the set's files; it goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix=f"hallmark-set-{released.serial}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in released.folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, data in released.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o400)
    return folder


def pinned(release_key: Path) -> tuple[Signer, ...]:
    """The release key that was installed on this machine; refused when others than its owner may change it."""
    try:
        mode = release_key.stat().st_mode
    except OSError as error:
        raise ConfigurationUntrusted(
            f"can't be read ({error.strerror}); expected the release key's public part",
            file=str(release_key),
            hint="Install it as docs/signed-configuration.md says: production takes only a signed configuration.",
        ) from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationUntrusted(
            "may be changed by others than its owner; expected mode 0644, owned by root",
            file=str(release_key),
        )
    return load_signers(release_key)


# --- the release's side ---


def sign_set(folder: Path, key: PrivateKey, serial: int | None, now: dt.datetime) -> SetFile:
    """Writes set.json and its signature for all files of `folder`. Without `serial` one more than the last set's."""
    last = _last_serial(folder, given=serial is not None)
    serial = last + 1 if serial is None else serial
    if serial <= last:
        raise ConfigError(f"serial {serial} is not over the last set's, {last}: stations would refuse it")
    entries = []
    for found in _walk(folder):
        if found.descriptor is not None:
            data = _read(found.descriptor, FILE_LIMIT, folder / found.path)
            entries.append(SetEntry(found.path, hashlib.sha256(data).hexdigest(), len(data)))
    entries.sort(key=lambda entry: entry.path)
    if STATION_FILE not in {entry.path for entry in entries}:
        raise ConfigError(f"has no {STATION_FILE}; expected a configuration folder", file=str(folder))
    made = SetFile(FORMAT, serial, now.astimezone(dt.UTC).replace(microsecond=0), entries)
    data = msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n"
    parse_set(data, str(folder / SET))
    write_signed(folder / SET, data, key)
    return made


def _last_serial(folder: Path, *, given: bool) -> int:
    if not (folder / SET).exists():
        return 0
    try:
        return parse_set(
            read_bounded(folder / SET, SET_LIMIT, ConfigurationUntrusted), str(folder / SET)
        ).serial
    except ConfigurationUntrusted as error:
        if given:
            return 0
        raise ConfigError(
            f"the last set can't be read ({error}); name the next number with --serial"
        ) from error


# --- the folder ---


@dataclass(frozen=True, slots=True)
class _Found:
    """A file with an open descriptor, which lasts until the next one is asked for, or a folder without."""

    path: str
    descriptor: int | None


def _walk(folder: Path) -> Iterator[_Found]:
    """Every file and folder but those OUTSIDE, in order, without following a link anywhere below `folder`."""
    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"can't be read ({error.strerror}); expected a folder", file=str(folder)) from error
    try:
        yield from _walk_below(top, "", folder)
    finally:
        os.close(top)


def _walk_below(descriptor: int, prefix: str, top: Path) -> Iterator[_Found]:
    for name in sorted(os.listdir(descriptor)):
        path = prefix + name
        if not prefix and name in OUTSIDE:
            continue
        opened = _open(descriptor, name, top / path)
        try:
            if stat.S_ISDIR(os.fstat(opened).st_mode):
                if path.count("/") >= DEEPEST:
                    raise ConfigurationUntrusted(f"is deeper than {DEEPEST} folders", file=str(top / path))
                yield _Found(path, None)
                yield from _walk_below(opened, f"{path}/", top)
            else:
                yield _Found(path, opened)
        finally:
            os.close(opened)


def _open(folder: int, name: str, shown: Path) -> int:
    try:
        # Without O_NONBLOCK the opening of a named pipe would wait for its writer.
        opened = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=folder
        )
    except OSError as error:
        problem = error.strerror
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            problem = "it is a symbolic link"
        raise ConfigurationUntrusted(
            f"can't be read ({problem}); expected a file or a folder", file=str(shown)
        ) from error
    mode = os.fstat(opened).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        os.close(opened)
        raise ConfigurationUntrusted("is neither a file nor a folder", file=str(shown))
    return opened


def _read(descriptor: int, limit: int, shown: Path) -> bytes:
    """The file's octets, one more than `limit` at most."""
    with os.fdopen(descriptor, "rb", closefd=False) as stream:
        data = stream.read(limit + 1)
    if len(data) > FILE_LIMIT:
        raise ConfigurationUntrusted(f"is larger than {FILE_LIMIT} octets", file=str(shown))
    return data
