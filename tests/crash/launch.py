"""Starts one of Hallmark's real processes with taps on what it does durably or irreversibly. Production code
has no hooks.

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

from hal import registry
from tests.crash import lasting
from tests.crash.trap import Trap


class Taps:
    def __init__(self, trap: Trap, process: str, lasting_codes: frozenset[int]) -> None:
        self._trap, self._process, self._lasting = trap, process, lasting_codes

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
            code = lasting.code(command)
            if code not in self._lasting:
                return transmit(call, command)
            answer: bytes = self.around(f"TPM command {code:#x}", transmit)(call, command)
            return answer

        return tapped

    def signing(self, site: str, sign: Callable[..., bytes]) -> Callable[..., bytes]:
        """A tap on the token's signatures: under which key is what tells a certificate from an audit checkpoint."""

        def tapped(call: Any, label: str, data: bytes) -> bytes:
            made: bytes = self.around(f"{site} {label}", sign)(call, label, data)
            return made

        return tapped

    def files(self) -> None:
        """fsync, rename and unlink, however they are reached."""
        for name in ("fsync", "fdatasync", "replace", "rename", "unlink"):
            setattr(os, name, self.around(f"os.{name}", getattr(os, name)))

    def requests(self) -> None:
        """Each HTTP request, to its answer."""
        import urllib3

        urlopen = urllib3.PoolManager.urlopen
        taps = self

        def tapped(pool: urllib3.PoolManager, method: str, *args: Any, **kwargs: Any) -> Any:
            return taps.around(f"HTTP {method}", urlopen)(pool, method, *args, **kwargs)

        setattr(urllib3.PoolManager, "urlopen", tapped)  # noqa: B010 - an assignment is refused for its type

    def sqlite(self) -> None:
        import apsw

        taps = self

        class File(apsw.VFSFile):
            def __init__(self, name: Any, flags: list[int]) -> None:
                path = name.filename() if isinstance(name, apsw.URIFilename) else name
                self._name = Path(path).name if path else "temporary"
                super().__init__("unix", name, flags)

            def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's name
                taps.around(f"sync {self._name}", super().xSync)(flags)

        class Vfs(apsw.VFS):
            def __init__(self) -> None:
                super().__init__("tapped", "unix", makedefault=True)

            def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's name
                return File(name, flags)

        self.vfs = Vfs()  # SQLite keeps no reference

    def drivers(self) -> None:
        """Every method that a driver offers by a HAL interface. Before anything else imports the registry's `load`."""
        load = registry.load

        def tapped(names: list[str]) -> registry.Registry:
            found = load(names)
            for name, driver in found.drivers.items():
                found.drivers[name] = self.driver(driver)
            return found

        registry.load = tapped

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

        def tapped(name: str) -> Any:
            found = getattr(target, name)
            if not callable(found):
                return found
            if name == "transmit":
                return taps.tpm_command(found)
            site = f"{interface.__name__}.{name}"
            return taps.signing(site, found) if site == "CaToken.sign" else taps.around(site, found)

        def attribute(name: str) -> property:
            return property(lambda _self: tapped(name))

        # Protocols are checked at run time by the presence of their methods on the class.
        names = [name for name in dir(interface) if not name.startswith("_")]
        made: object = type("Tapped", (), {name: attribute(name) for name in names})()
        return made


def main() -> int:
    trap, process, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    taps = Taps(Trap(trap), process, lasting.read(trap.with_suffix(".lasting")))
    taps.drivers()
    if process == "worker":
        from station.worker.process import main as worker

        return worker(arguments)
    taps.files()
    taps.sqlite()
    if process == "uploader":
        taps.requests()
    if process == "run":
        from station.nest import worker_process

        here = [sys.executable, "-I", str(Path(__file__).resolve()), str(trap), "worker"]
        worker_process.command = lambda descriptor, drivers: [*here, str(descriptor), *drivers]
    from station.cli import main as hallmark

    return hallmark(arguments)


if __name__ == "__main__":
    sys.exit(main())
