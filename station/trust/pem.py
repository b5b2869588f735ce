"""Files of DER structures, bare or as PEM blocks (RFC 7468). Says nothing of what is in them."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Final

from hal.errors import ConfigError
from station.signed import read_bounded

FILE_LIMIT: Final = 32 << 20
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s*([A-Za-z0-9+/=\s]*?)\s*-----END \1-----")


def read_blocks(path: Path, label: str) -> list[bytes]:
    """The DER of each PEM block of that label, or the whole file where it is no PEM. ConfigError names the file."""
    data = read_bounded(path, FILE_LIMIT, ConfigError)
    if b"-----BEGIN" not in data:
        return [data]
    try:
        found = [
            base64.b64decode(b"".join(body.split()), validate=True)
            for kind, body in _BLOCK.findall(data)
            if kind == label.encode()
        ]
    except binascii.Error as error:
        raise ConfigError(f"holds a PEM block that can't be read: {error}", file=str(path)) from error
    if not found:
        raise ConfigError(f"holds no {label}; expected PEM or DER", file=str(path))
    return found
