"""The `swtpm` driver: a software TPM of this host's own as a `TpmTransport`, for benches without a TPM on the board."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drivers.swtpm.process import SwtpmProcess, manufacture
from hal.driver import Bindings, Driver
from hal.errors import ConfigError
from hal.interfaces import TpmTransport


@dataclass(frozen=True, slots=True)
class SwtpmSettings:
    """Absolute paths. `state`: the TPM's folder, made on first use. `ek_ca`: the bench's EK CA, shared by its TPMs."""

    state: str
    ek_ca: str


@contextmanager
def _open(settings: SwtpmSettings, needs: Bindings) -> Iterator[Mapping[type, object]]:
    del needs
    state, ek_ca = Path(settings.state), Path(settings.ek_ca)
    for key, path in (("state", state), ("ek_ca", ek_ca)):
        if not path.is_absolute():
            raise ConfigError("an absolute path is expected", key=key)
    manufacture(state, ek_ca)
    with SwtpmProcess(state) as process:
        yield {TpmTransport: process}


DRIVER: Final = Driver(
    name="swtpm",
    summary="software TPM with an EK certificate of its own, run on this host (bench mode only)",
    settings=SwtpmSettings,
    open=_open,
    offers=frozenset({TpmTransport}),
    bench_only=True,
)
