"""Starts one of Hallmark's real processes with taps on what it does durably or irreversibly. Production code has no hooks.

    launch.py TRAP PROCESS [its own arguments]

Taps: SQLite's syncs (a VFS), fsync, rename and unlink of files, each call of a driver's interface, each HTTP request.
Every tap is passed twice: before and after.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.crash.trap import Trap


LASTING = frozenset(
    {
        *(0x11F, 0x120, 0x121, 0x122, 0x124, 0x125, 0x126, 0x127, 0x129, 0x12A, 0x12B, 0x12C, 0x12D, 0x12E),
        *(0x12F, 0x130, 0x131, 0x132, 0x133, 0x134, 0x135, 0x136, 0x137, 0x138, 0x139, 0x13A, 0x13B, 0x140),
        *(0x144, 0x145, 0x14F),
    }
)
"""Command codes whose `nv` attribute is set (TPM 2.0 Part 2, 8.9 TPMA_CC; Part 3 marks them {NV})."""


class Taps:
    def __init__(self, trap: Trap, process: str) -> None:
        self._trap, self._process = trap, process

    def around(self, site: str, do: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(do)
        def tapped(*args: Any, **kwargs: Any) -> Any:
            self._trap.deed(self._process, f"before {site}")
            result = do(*args, **kwargs)
            self._trap.deed(self._process, f"after {site}")
            return result

        return tapped

    def tpm_command(self, transmit: Callable[..., bytes]) -> Callable[..., bytes]:
        """A tap on each TPM command that may change what the TPM keeps; on the others nothing can be lost."""

        def tapped(call: Any, command: bytes) -> bytes:
            code = int.from_bytes(command[6:10], "big")
            if code not in LASTING:
                return transmit(call, command)
            answer: bytes = self.around(f"TPM command {code:#x}", transmit)(call, command)
            return answer

        return tapped

    def files(self) -> None:
        """fsync, rename and unlink, however they are reached."""
        for name in ("fsync", "fdatasync", "replace", "rename", "unlink"):
            setattr(os, name, self.around(f"os.{name}", getattr(os, name)))

    def sqlite(self) -> None:
        import apsw

        taps = self

        class File(apsw.VFSFile):
            def __init__(self, name: Any, flags: list[int]) -> None:
                path = name.filename() if isinstance(name, apsw.URIFilename) else name
                self._name = Path(path).name if path else "temporary"
                super().__init__("unix", name, flags)

            def xSync(self, flags: int) -> None:
                taps.around(f"sync {self._name}", super().xSync)(flags)

        class Vfs(apsw.VFS):
            def __init__(self) -> None:
                super().__init__("tapped", "unix", makedefault=True)

            def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
                return File(name, flags)

        self.vfs = Vfs()  # SQLite keeps no reference

    def drivers(self) -> None:
        """Every method that a driver offers by a HAL interface."""
        import hal.registry

        load = hal.registry.load
        taps = self

        def tapped_load(names: list[str]) -> hal.registry.Registry:
            registry = load(names)
            for name, driver in registry.drivers.items():
                registry.drivers[name] = taps.driver(driver)
            return registry

        hal.registry.load = tapped_load

    def driver(self, driver: Any) -> Any:
        import dataclasses

        opened = driver.open
        taps = self

        @contextmanager
        def open_tapped(settings: Any, needs: Any) -> Any:
            with opened(settings, needs) as offered:
                yield {interface: taps.proxy(interface, found) for interface, found in offered.items()}

        def opener(settings: Any, needs: Any) -> AbstractContextManager[Mapping[type, object]]:
            found: AbstractContextManager[Mapping[type, object]] = open_tapped(settings, needs)
            return found

        return dataclasses.replace(driver, open=opener)

    def proxy(self, interface: type, target: object) -> object:
        """An object of the same class whose methods of `interface` are tapped: bytes through Channel are no deeds."""
        if interface.__name__ in ("Channel", "Discovery"):
            return target
        taps = self
        methods = [name for name in dir(interface) if not name.startswith("_")]

        class Tapped:
            def __getattr__(self, name: str) -> Any:
                found = getattr(target, name)
                if not callable(found):
                    return found
                if name == "transmit":
                    return taps.tpm_command(found)
                return taps.around(f"{interface.__name__}.{name}", found)

        for name in methods:
            # Protocols are checked at run time by the presence of their methods on the class.
            setattr(Tapped, name, property(functools.partial(Tapped.__getattr__, name=name)))
        return Tapped()


def main() -> int:
    trap_path, process, *arguments = sys.argv[1:]
    taps = Taps(Trap(Path(trap_path)), process)
    taps.drivers()
    if process == "worker":
        from station.worker import process as worker

        worker.load = sys.modules["hal.registry"].load
        return worker.main(arguments)
    taps.files()
    taps.sqlite()
    import station.config

    station.config.load = sys.modules["hal.registry"].load
    if process == "run":
        from station.nest import worker_process

        here = [sys.executable, "-I", str(Path(__file__).resolve()), trap_path, "worker"]
        worker_process.command = lambda descriptor, drivers: [*here, str(descriptor), *drivers]
    from station.cli import main as hallmark

    return hallmark(arguments)


if __name__ == "__main__":
    sys.exit(main())
