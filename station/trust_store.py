"""Certificates from configuration files: EK roots and intermediates, escrow officers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hal.errors import ConfigError

ENDINGS: Final = frozenset({".pem", ".crt", ".cer", ".der"})
FILE_LIMIT: Final = 4 << 20


def load_folder(folder: Path) -> tuple[bytes, ...]:
    """Every certificate in `folder` (PEM, one or several a file, or DER), as DER, in the order of file names."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file())
    except OSError as error:
        raise ConfigError(
            f"can't be read ({error.strerror}); expected a folder of certificates", file=str(folder)
        ) from error
    return tuple(certificate.public_bytes(Encoding.DER) for path in files for certificate in load_file(path))


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
