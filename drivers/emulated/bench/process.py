"""Processes of a bench: started, kept alive as systemd would, killed on purpose, ended in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from hal.errors import StationError

T = TypeVar("T")
RESTART_PAUSE: Final = 0.1
"""Seconds before a process that died is started again (RestartSec= of the units)."""
END_SECONDS: Final = 20.0


class KeptProcess:
    """A daemon that is started again whenever it dies, until `stop`. Its output goes to a log file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name, self._command, self._log = name, list(command), log
        self._environment = {**os.environ, **environment}
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._process = self._start()
        self.starts = 1
        self._keeper = threading.Thread(target=self._keep, name=f"keep-{name}", daemon=True)
        self._keeper.start()

    @property
    def pid(self) -> int:
        with self._lock:
            return self._process.pid

    def kill(self) -> int:
        """SIGKILL, as a power cut for this process; it is started again. The PID that died."""
        with self._lock:
            pid = self._process.pid
            self._process.kill()
        return pid

    def stop(self) -> int:
        """SIGTERM, and its exit code. StationError when it doesn't end, and it is killed then."""
        self._ending.set()
        with self._lock:
            process = self._process
        process.terminate()
        try:
            code = process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise StationError(f"{self.name} did not end within {END_SECONDS:.0f} s of SIGTERM") from None
        finally:
            self._keeper.join()
        return code

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _keep(self) -> None:
        while True:
            self._process.wait()
            if self._ending.wait(RESTART_PAUSE):
                return
            with self._lock:
                if self._ending.is_set():
                    return
                self._process = self._start()
                self.starts += 1


class Equipment:
    """Something that prints one line of JSON when it is ready: a board, the cloud. Not started again by itself."""

    def __init__(self, name: str, command: Sequence[str], log: Path, seconds: float = 60.0) -> None:
        self.name = name
        self._errors: IO[bytes] = log.open("ab")
        # The pipe is our life line: equipment that was started with --until-eof ends when we are killed.
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self.ready: dict[str, Any] = self._first_line(seconds, log)

    def _first_line(self, seconds: float, log: Path) -> dict[str, Any]:
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline() if self.process.stdout else b""
        finally:
            timer.cancel()
        if not line:
            self.process.wait()
            raise StationError(f"{self.name} did not start: see {log}")
        found = json.loads(line)
        if not isinstance(found, dict):
            raise StationError(f"{self.name} said something else than that it is ready")
        return found

    def stop(self) -> None:
        """In an orderly way: a board shuts its TPM down cleanly."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise StationError(f"{self.name} did not end") from None
        finally:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe:
                    pipe.close()
            self._errors.close()


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, seconds: float = 120.0) -> str:
    """A command's output; StationError with what it said when it fails."""
    try:
        done = subprocess.run(
            list(command),
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StationError(f"{command[0]} took longer than {seconds:.0f} s") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-1500:]
        raise StationError(f"{' '.join(command[:6])} ... ended with {done.returncode}:\n{said}")
    return done.stdout


def wait_for(what: str, seconds: float, look: Callable[[], T]) -> T:
    """The first result of `look()` that is true; StationError that names `what` when there is none in time."""
    until = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            raise StationError(f"waited {seconds:.0f} s in vain for {what}")
        pause.wait(0.02)
