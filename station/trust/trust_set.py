"""What the station believes at one moment: roots, intermediates and revocation lists, and where they come from.

A value: loaded, checked, never changed. A signed bundle and a folder of files both become one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Final

from hal.errors import ConfigError, EkUntrusted, quote
from station.trust.chain import Path, verify_chain
from station.trust.crl import RevocationList, Standing, read_crl, standing
from station.trust.pem import read_blocks
from station.trust.policy import CrlPolicy
from station.trust.reading import Certificate, read_certificate

CERTIFICATES: Final = frozenset({".pem", ".crt", ".cer", ".der"})
LISTS: Final = frozenset({".crl"})


@dataclass(frozen=True, slots=True)
class Origin:
    """`kind`: bundle, folder or none. `serial`, `sha256` (of the bundle's octets), `signer`: of a bundle."""

    kind: str
    place: str = ""
    serial: int = 0
    sha256: bytes = b""
    signer: str = ""


@dataclass(frozen=True, slots=True)
class TrustSet:
    origin: Origin
    roots: tuple[Certificate, ...] = ()
    intermediates: tuple[Certificate, ...] = ()
    crls: tuple[RevocationList, ...] = ()

    def verify(
        self, leaf: Certificate, offered: Sequence[bytes], crl: CrlPolicy, now: dt.datetime
    ) -> tuple[Path, Standing]:
        """The chain of an EK certificate and what the revocation lists say of it; else EkUntrusted."""
        path = verify_chain(leaf, offered, self.roots, self.intermediates, now)
        return path, standing(path.certificates, self.crls, crl, now)


def assemble(origin: Origin, certificates: Sequence[Certificate], crls: Sequence[RevocationList]) -> TrustSet:
    """Self-signed certificates are roots, the others help; each list finds its signers among them."""
    return TrustSet(
        origin,
        tuple(item for item in certificates if item.self_signed),
        tuple(item for item in certificates if not item.self_signed),
        tuple(item.attributed(certificates) for item in crls),
    )


def read_leaf(der: bytes) -> Certificate:
    """An EK certificate as a TPM or a list gives it; EkUntrusted when it can't be read."""
    try:
        return read_certificate(der)
    except ValueError as error:
        raise EkUntrusted(f"the EK certificate can't be read: {quote(str(error))}") from error


def load_folder(folder: FilePath) -> TrustSet:
    """The certificates (.pem .crt .cer .der) and revocation lists (.crl) of a folder, PEM or DER.

    ConfigError names the file that can't be read, and a list that no certificate here has signed.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise ConfigError(
            f"can't be read ({error.strerror}); expected a folder of certificates", file=str(folder)
        ) from error
    certificates: list[Certificate] = []
    crls: list[RevocationList] = []
    for path in files:
        try:
            if path.suffix in CERTIFICATES:
                certificates += [read_certificate(der) for der in read_blocks(path, "CERTIFICATE")]
            elif path.suffix in LISTS:
                crls += [read_crl(der) for der in read_blocks(path, "X509 CRL")]
        except ValueError as error:
            raise ConfigError(f"can't be read: {error}", file=str(path)) from error
    made = assemble(Origin("folder", str(folder)), certificates, crls)
    for crl in made.crls:
        if not crl.signers:
            raise ConfigError(
                f"the revocation list of {quote(crl.issuer)} is signed by no certificate that is here",
                file=str(folder),
            )
    return made
