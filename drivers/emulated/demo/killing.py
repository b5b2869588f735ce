"""Kills a worker, the signer and the station, each once, each while boards are under way. What is killed comes back."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from typing import Any, Final

from drivers.emulated.bench.line import Line
from hal.errors import StationError

LOOK_SECONDS: Final = 0.02
END_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Kill:
    """`process` died by SIGKILL while `nest` was at `step`."""

    process: str
    pid: int
    nest: str
    step: str


class Killer:
    """A thread that looks at the nests, as anybody could, and kills when the moment is there."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)
        self._over = threading.Event()
        self.kills: list[Kill] = []

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """StationError when a moment never came: then nothing was shown."""
        self._over.set()
        self._thread.join(END_SECONDS)
        missing = {"worker", "signer", "station"} - {kill.process for kill in self.kills}
        if missing:
            raise StationError(f"no moment to kill {', '.join(sorted(missing))} in mid-flight came")

    def _run(self) -> None:
        for process in ("worker", "signer", "station"):
            moment = MOMENTS[process]
            while not self._over.wait(LOOK_SECONDS):
                nest = next((nest for nest in self._line.nests().values() if moment(nest)), None)
                if nest is not None and self._kill(process, nest):
                    break

    def _kill(self, process: str, nest: dict[str, Any]) -> bool:
        step = f"{nest['step']}.{nest['action']}"
        if process == "worker":
            pid = int(nest["worker"])
            if not pid:
                return False
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
        else:
            pid = self._line.daemons["run" if process == "station" else process].kill()
        self.kills.append(Kill(process, pid, str(nest["name"]), step))
        return True


def _flashing(nest: dict[str, Any]) -> bool:
    """Octets are on their way into flash."""
    return bool(nest["state"] == "busy" and nest["step"] == "flash" and nest["done"] > 0)


def _owning(nest: dict[str, Any]) -> bool:
    """The TPM is being taken, or its key made and certified: what can't be undone."""
    return nest["state"] == "busy" and nest["step"] in ("tpm-ownership", "certificate")


MOMENTS: Final = {"worker": _flashing, "signer": _owning, "station": _owning}
