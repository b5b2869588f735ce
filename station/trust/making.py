"""Making a bundle's contents from a folder, by the engineer who has the key. Nothing is signed or installed here."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from hal.errors import ConfigError, quote
from station.trust.bundle import (
    FORMAT,
    Bundle,
    Vendor,
    contents,
    crl_entry,
    entry,
)
from station.trust.crl import RevocationList, read_crl
from station.trust.pem import read_blocks
from station.trust.reading import Certificate, read_certificate
from station.trust.trust_set import CERTIFICATES, LISTS

LONGEST_NAME = 64


def make(folder: Path, serial: int, note: str, created: dt.datetime) -> Bundle:
    """A bundle of `folder`'s sub-folders, one for each vendor, checked as an import checks it.

    ConfigError names the file or vendor that doesn't hold. A file that stands twice counts once.
    """
    if serial < 1:
        raise ConfigError("expected a number of at least 1", key="serial")
    try:
        folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        files = [path for path in folder.iterdir() if path.is_file() and path.suffix in CERTIFICATES | LISTS]
    except OSError as error:
        raise ConfigError(
            f"can't be read ({error.strerror}); expected a folder of folders", file=str(folder)
        ) from error
    if files or not folders:
        raise ConfigError(
            "expected one folder for each vendor, and the certificates in these",
            file=str(files[0] if files else folder),
        )
    made = Bundle(FORMAT, serial, created.replace(microsecond=0), [_vendor(path) for path in folders], note)
    contents(made)
    return made


def _vendor(folder: Path) -> Vendor:
    if len(folder.name) > LONGEST_NAME:
        raise ConfigError(f"expected a name of at most {LONGEST_NAME} characters", file=str(folder))
    certificates: dict[bytes, Certificate] = {}
    crls: dict[bytes, RevocationList] = {}
    for path in sorted(item for item in folder.iterdir() if item.is_file()):
        try:
            if path.suffix in CERTIFICATES:
                for der in read_blocks(path, "CERTIFICATE"):
                    certificates[der] = read_certificate(der)
            elif path.suffix in LISTS:
                for der in read_blocks(path, "X509 CRL"):
                    crls[der] = read_crl(der)
        except ValueError as error:
            raise ConfigError(f"can't be read: {quote(str(error), 200)}", file=str(path)) from error
    note = folder / "note.txt"
    return Vendor(
        name=folder.name,
        roots=[entry(item.der) for item in certificates.values() if item.self_signed],
        intermediates=[entry(item.der) for item in certificates.values() if not item.self_signed],
        crls=[crl_entry(item) for item in crls.values()],
        note=note.read_text(errors="replace")[:500].strip() if note.is_file() else "",
    )
