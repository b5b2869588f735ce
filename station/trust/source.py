"""Where the station's trust comes from now: the installed bundle, else the folder of certificates where that counts.

Looked at anew for each verdict, so that a new bundle counts for the next board. A bundle that doesn't hold never
replaces one that does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from hal.errors import EkUntrusted, HallmarkError
from station.config import Configuration
from station.signed import load_signers
from station.trust import bundle, installed
from station.trust.trust_set import Origin, TrustSet, load_folder

NO_BUNDLE_HINT: Final = (
    "An engineer imports a signed trust bundle: `hallmark trust import`. In production a folder of"
    " certificates counts only as part of the signed configuration."
)
EMPTY: Final = TrustSet(Origin("none"))
Stamp = tuple[tuple[str, int, int, int], ...]
Take = Callable[[int, bytes, str], bool]


class TrustSource:
    """`current` gives what is believed now. `take` is told of each bundle before it counts, and may refuse it."""

    def __init__(self, configuration: Configuration, take: Take) -> None:
        self._configuration, self._take = configuration, take
        self._lock = threading.Lock()
        self._stamp: Stamp | None = None
        self._trust: TrustSet | None = None
        self._trouble: HallmarkError | None = None
        self._log = structlog.get_logger()

    @property
    def trouble(self) -> HallmarkError | None:
        """Why what is there now could not be loaded; None when it could."""
        return self._trouble

    def current(self) -> TrustSet:
        """EkUntrusted while there is nothing that may be believed."""
        with self._lock:
            self._refresh()
            if self._trust is None:
                raise self._untrusted()
            return self._trust

    def refresh(self) -> None:
        """Takes a new bundle into effect now, so that it is on record before the next board."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            found = load(self._configuration)
            if found.origin.kind == "bundle":
                self._take(found.origin.serial, found.origin.sha256, found.origin.signer)
        except HallmarkError as error:
            self._trouble = error
            self._log.error("trust not loaded", code=error.code, reason=str(error), hint=error.hint)
        else:
            self._trust, self._trouble = found, None
            self._log.info("trust loaded", source=found.origin.kind, serial=found.origin.serial)

    def _untrusted(self) -> EkUntrusted:
        if self._trouble is None:
            return EkUntrusted("no trust bundle is installed", hint=NO_BUNDLE_HINT)
        return EkUntrusted(f"the station's trust can't be loaded: {self._trouble}", hint=self._trouble.hint)

    def _look(self) -> Stamp:
        """What would differ if anything were put in another's place."""
        path = installed.installed_bundle(self._configuration.paths.trust)
        files = [path] if path else _files(self._configuration.path(self._configuration.file.trust.ek))
        signers = _files(self._configuration.path(self._configuration.file.trust.bundle_signers))
        return tuple(_stamp(file) for file in (*files, *signers))


def load(configuration: Configuration) -> TrustSet:
    """What is to be believed, from its files. EkUntrusted when there is nothing, ConfigError when it doesn't hold."""
    path = installed.installed_bundle(configuration.paths.trust)
    if path is not None:
        signers = load_signers(configuration.path(configuration.file.trust.bundle_signers))
        signed, found = bundle.read_bundle(path, signers)
        return bundle.trust_set(signed, found, path)
    if not folder_counts(configuration):
        raise EkUntrusted("no trust bundle is installed", hint=NO_BUNDLE_HINT)
    return load_folder(configuration.path(configuration.file.trust.ek))


def folder_counts(configuration: Configuration) -> bool:
    """Whether files in `trust/ek` may be believed without a bundle: on a bench, or as part of the signed set."""
    folder, signed = configuration.path(configuration.file.trust.ek), configuration.unpacked
    return configuration.bench or (signed is not None and folder.is_relative_to(signed))


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    try:
        return [folder, *sorted(folder.iterdir())]
    except OSError:
        return []


def _stamp(path: Path) -> tuple[str, int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0, 0
    return str(path), found.st_ino, found.st_mtime_ns, found.st_size
