"""Credentials by name, from the files that systemd or the bench put there. Read anew each time, kept nowhere."""

from __future__ import annotations

import os
import re
import stat
from typing import Final

from hal.errors import ConfigError, quote
from hal.secret import Secret
from station.paths import Paths

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SIZE_LIMIT: Final = 64 * 1024


class FileCredentials:
    """`hal.interfaces.Credentials`."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def secret(self, name: str) -> Secret:
        """The file's octets. ConfigError for one that is missing, too long, no plain file, or open to everybody."""
        if not NAME.fullmatch(name):
            raise ConfigError(f"{quote(name)} is not the name of a credential")
        path = self._paths.credential(name)
        hint = f"Put it at {path}, mode 0600, or give it by systemd's LoadCredential={name}:..."
        try:
            # Not blocking: a named pipe in that place must not stop the uploader.
            with open(path, "rb", opener=lambda file, flags: os.open(file, flags | os.O_NONBLOCK)) as file:
                status = os.fstat(file.fileno())
                content = file.read(SIZE_LIMIT + 1) if stat.S_ISREG(status.st_mode) else b""
        except OSError as error:
            raise ConfigError(f"credential {name!r} can't be read: {error.strerror}", hint=hint) from error
        if not content or len(content) > SIZE_LIMIT:
            raise ConfigError(f"credential {name!r} is empty, too long or no plain file", hint=hint)
        if status.st_mode & stat.S_IRWXO:
            raise ConfigError(
                f"credential {name!r} is open to every user of this machine", hint=f"chmod 0600 {path}"
            )
        return Secret(content)
