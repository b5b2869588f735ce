"""Certificates from configuration files: escrow officers, CAs of certificates made elsewhere.

What vouches for TPMs is in `station.trust`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hal.errors import ConfigError

FILE_LIMIT: Final = 4 << 20
ENDINGS: Final = frozenset({".pem", ".crt", ".cer", ".der"})


def load_file(path: Path) -> list[x509.Certificate]:
    """The certificates of one file; ConfigError that names it when there are none or they can't be read."""
    try:
        with path.open("rb") as stream:
            data = stream.read(FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(
            f"can't be read ({error.strerror}); expected a certificate", file=str(path)
        ) from error
    if len(data) > FILE_LIMIT:
        raise ConfigError(f"is larger than {FILE_LIMIT} octets; expected certificates", file=str(path))
    try:
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificates(data)
        return [x509.load_der_x509_certificate(data)]
    except ValueError as error:
        raise ConfigError(
            f"holds no certificate that can be read ({error}); expected PEM or DER", file=str(path)
        ) from error


def load_anchors(folder: Path) -> tuple[bytes, ...]:
    """Every certificate in the folder's files, DER, in the order of their names. None where there is no such folder."""
    if not folder.is_dir():
        return ()
    files = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file())
    return tuple(certificate.public_bytes(Encoding.DER) for path in files for certificate in load_file(path))
