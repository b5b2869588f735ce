"""What station.toml and recipes may say about an SMP link, with defaults for usual boards; checked at opening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from drivers.smp.framing import LEAST_LINE, LINE, MESSAGE_LIMIT
from hal.errors import ConfigError
from hal.types import KeyProtection

LEAST_BUFFER: Final = 128
"""Octets of the smallest buffer in which each request of ours has room for data."""
MAX_WINDOW: Final = 64
"""Well below the 256 sequence numbers, so that no late answer fits a request under way."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Times are seconds, sizes octets.

    `timeout`: for an answer to an ordinary request (raise it below 38400 baud). `erase_timeout`: for the first
    answer of an upload, while the board erases. `command_timeout`: for TPM commands, self-tests and key generation.
    `sync_timeout`: how long a board may take until it first answers. `sync_interval`: between two echoes,
    an eighth of it at first.
    `boot_timeout`: from reset to the new image running.
    `tries`: how often a request is sent before it counts as unanswered, and an upload stands still before it fails.
    `window`: upload requests under way at most; boards with fewer buffers get fewer. `buffer`: the board's buffer
    where it doesn't tell; `largest`: a bound to what it tells. `line`: octets of a line of serial framing.
    `image`: the image number of multi-image boards. `certificate_path`: the file for the chain (PEM).
    `settings_prefix`: put before each setting's name, e.g. `prov/`. `key_storage`: how the board's firmware keeps its
    key: a file or flash area of its own, unless its maker says otherwise.
    """

    timeout: float = 3.0
    erase_timeout: float = 45.0
    command_timeout: float = 180.0
    sync_timeout: float = 30.0
    sync_interval: float = 0.5
    boot_timeout: float = 90.0
    tries: int = 5
    window: int = 8
    buffer: int = 256
    largest: int = 4096
    line: int = LINE
    image: int = 0
    certificate_path: str = "/identity/device.pem"
    settings_prefix: str = ""
    key_storage: KeyProtection = KeyProtection.FILE

    @property
    def protection(self) -> KeyProtection:
        """For the recipe checker, see `hal.driver.Driver`."""
        return self.key_storage

    def check(self) -> None:
        """ConfigError for a value that can't work."""
        times = (
            "timeout",
            "erase_timeout",
            "command_timeout",
            "sync_timeout",
            "sync_interval",
            "boot_timeout",
        )
        for name in times:
            if not 0 < getattr(self, name) <= 3600:
                problem = "between 0 and 3600 seconds was expected"
                raise ConfigError(problem, key=name)
        bounds = {
            "tries": (1, 100),
            "window": (1, MAX_WINDOW),
            "buffer": (LEAST_BUFFER, MESSAGE_LIMIT),
            "largest": (LEAST_BUFFER, MESSAGE_LIMIT),
            "line": (LEAST_LINE, MESSAGE_LIMIT),
            "image": (0, 15),
        }
        for name, (least, most) in bounds.items():
            if not least <= getattr(self, name) <= most:
                problem = f"a number from {least} to {most} was expected"
                raise ConfigError(problem, key=name)
        if not self.certificate_path.startswith("/"):
            problem = "an absolute path on the board was expected"
            raise ConfigError(problem, key="certificate_path")
