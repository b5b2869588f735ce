"""Where everything is: one layout, moved as a whole by `--root DIR` for bench use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")
CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"
"""Set by systemd for units with LoadCredential=."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Every path of an installation below `root`."""

    root: Path = ROOT

    @property
    def configuration(self) -> Path:
        return self.root / "etc/hallmark/station.toml"

    @property
    def release_key(self) -> Path:
        """Public key (PEM) that signs the configuration in production: put there once, by hand, owned by root."""
        return self.root / "etc/hallmark/release-key.pem"

    @property
    def runtime(self) -> Path:
        return self.root / "run/hallmark"

    @property
    def status_socket(self) -> Path:
        return self.runtime / "status.sock"

    @property
    def outbox_socket(self) -> Path:
        return self.runtime / "outbox.sock"

    @property
    def signer_socket(self) -> Path:
        return self.runtime / "signer/signer.sock"

    @property
    def state(self) -> Path:
        """The station's: its database and nothing of the signer."""
        return self.root / "var/lib/hallmark/station"

    @property
    def database(self) -> Path:
        return self.state / "station.db"

    @property
    def trust(self) -> Path:
        """The installed trust bundle, and EK lists that wait to be read."""
        return self.state / "trust"

    @property
    def signer_state(self) -> Path:
        """The signer's: ledger, CA certificate chain, PIN attempt mark."""
        return self.root / "var/lib/hallmark/signer"

    def credential(self, name: str) -> Path:
        """A secret's file: where systemd put it, else `etc/hallmark/credentials/NAME` (mode 0600) for bench use."""
        given = os.environ.get(CREDENTIALS_VARIABLE)
        return (Path(given) if given else self.root / "etc/hallmark/credentials") / name
