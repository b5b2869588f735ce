"""Small files that survive a power cut whole or not at all. The ledger is SQLite's and has its own room."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from hal.errors import StoreUnavailable


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """`path` with `data`, durable on return: a temporary file, fsync, rename, fsync of the folder."""
    write_lines(path, (data,), mode)


def write_lines(path: Path, lines: Iterable[bytes], mode: int = 0o600) -> None:
    """The same for data that needn't be in memory at once. `path` stays as it was when `lines` raises."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as stream:
            os.fchmod(fd, mode)  # whatever the umask
            give_to_owner(fd, path.parent)
            stream.writelines(lines)
            stream.flush()
            os.fsync(fd)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        message = f"{path.name} can't be written: {error.strerror}"
        raise StoreUnavailable(message) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """`path` is gone, durably. Fine when it was not there."""
    try:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        message = f"{path.name} can't be removed: {error.strerror}"
        raise StoreUnavailable(message) from error


def read(path: Path, limit: int) -> bytes | None:
    """The file's octets, None when there is no such file; StoreUnavailable when it can't be read or is too long."""
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"{path.name} can't be read: {error.strerror}"
        raise StoreUnavailable(message) from error
    if len(data) > limit:
        message = f"{path.name} is longer than {limit} octets"
        raise StoreUnavailable(message, hint="An engineer looks at the signer's state: this file is damaged.")
    return data


def make_folder(path: Path, mode: int = 0o700) -> None:
    """The folder with `mode`; an existing one keeps its mode, which the installation chose."""
    try:
        path.mkdir(parents=True, mode=mode, exist_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        message = f"the folder {path} can't be made: {error.strerror}"
        raise StoreUnavailable(message) from error


def give_to_owner(fd: int, folder: Path) -> None:
    """What root makes in the signer's folder (`sudo hallmark ca ...`) belongs to the signer, who goes on with it."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)


def sync_folder(path: Path) -> None:
    """Makes renames and removals in `path` durable (fsync(2): a file's own fsync doesn't)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
