"""The bundle that is installed here: put in place whole or not at all, and found again.

`trust/current` below the station's state is a symbolic link to the folder of one bundle with its signature; it is
replaced in one step, so that no crash leaves a manifest beside another one's signature.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from hal.errors import ConfigError, StationError
from station.signed import SUFFIX, SignedFile
from station.store.database import fsync_directory
from station.trust.bundle import NAME, Bundle

CURRENT: Final = "current"


def installed_bundle(folder: Path) -> Path | None:
    """The installed bundle's file, None where none is."""
    path = folder / CURRENT / NAME
    return path if path.exists() else None


def install(folder: Path, signed: SignedFile, signature: bytes, bundle: Bundle) -> bool:
    """Makes `signed` the installed bundle, durably; False when it is that already. ConfigError for an older one.

    The caller has checked signature and contents.
    """
    before = installed_bundle(folder)
    if before is not None:
        there = _serial(before)
        if before.read_bytes() == signed.data:
            return False
        if there is not None and bundle.serial <= there:
            raise ConfigError(
                f"trust bundle {bundle.serial} is not newer than bundle {there}, which is installed",
                hint="Import the newest bundle; an older one never replaces it.",
            )
    name = f"{bundle.serial}-{signed.sha256.hex()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_folder(folder / name, signed.data, signature)
        fsync_directory(folder)
        temporary = folder / f".{CURRENT}-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name)
        temporary.replace(folder / CURRENT)
        fsync_directory(folder)
    except OSError as error:
        raise StationError(
            f"the bundle can't be installed in {folder}: {os.strerror(error.errno or 0)}",
            hint="Run it as root or as the station's user.",
        ) from error
    _remove_others(folder, keep={name, before.resolve().parent.name if before else name})
    return True


def _write_folder(folder: Path, data: bytes, signature: bytes) -> None:
    if folder.exists():  # of an import that was broken off before its link
        shutil.rmtree(folder)
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    for name, octets in ((NAME, data), (NAME + SUFFIX, signature)):
        with (folder / name).open("wb") as stream:
            stream.write(octets)
            stream.flush()
            os.fsync(stream.fileno())
            os.fchmod(stream.fileno(), 0o644)
    fsync_directory(folder)


def _serial(path: Path) -> int | None:
    """The number in the folder's name, which `install` gave it."""
    number = path.resolve().parent.name.partition("-")[0]
    return int(number) if number.isdigit() else None


def _remove_others(folder: Path, keep: set[str]) -> None:
    for other in folder.iterdir():
        if other.is_dir() and not other.is_symlink() and other.name not in keep:
            shutil.rmtree(other)
