"""One worker process: started ahead of its visit with an empty environment, one socket, and nothing else open."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from hal.errors import PeerUnavailable, StationError
from station import messages
from station.wire import Link

START_SECONDS: Final = 30.0
"""A worker imports its drivers before it says it is ready: slow on a small station with a cold disk."""
END_SECONDS: Final = 2.0


def command(descriptor: int, drivers: Sequence[str]) -> list[str]:
    """-I: neither the environment nor the working folder decides what is imported."""
    return [sys.executable, "-I", "-m", "station.worker", str(descriptor), *drivers]


class WorkerProcess:
    """Starts on construction. `link` receives what the worker says."""

    def __init__(self, drivers: Sequence[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._process = subprocess.Popen(
                command(theirs.fileno(), drivers),
                env={},
                cwd="/",
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            ours.close()
            raise StationError(f"a worker can't be started: {error.strerror}") from error
        finally:
            theirs.close()
        self.link: Link[messages.WorkerSays] = Link(ours, messages.WorkerSays)
        self.ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        """Returns when its drivers are imported. PeerUnavailable when it dies over that, or takes too long."""
        if self.ready:
            return
        self.link.settimeout(START_SECONDS)
        try:
            message = self.link.receive()
        except TimeoutError as error:
            raise PeerUnavailable("a worker did not start in time") from error
        self.link.settimeout(None)
        if not isinstance(message, messages.Ready):
            raise PeerUnavailable("a worker said something else than that it is ready")
        self.ready = True

    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> str:
        """Ends it, if need be by SIGKILL; how it ended, in words."""
        self.link.close()
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def kill(self) -> None:
        """SIGKILL, for a worker that overran its grace; `stop` still has to be called."""
        self._process.kill()
