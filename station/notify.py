"""What a daemon tells systemd, and the watchdog that is fed by real progress only.

The protocol is small enough to speak it directly (sd_notify(3), sd_listen_fds(3)): datagrams of NAME=VALUE lines.
Outside systemd everything here does nothing. No thread feeds the watchdog for its own sake: see `Watchdog`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START, sd_listen_fds(3)."""
STATUS_LIMIT: Final = 400
BOOT_ID_VARIABLE: Final = "HALLMARK_BOOT_ID"
"""Set by the station's unit: with ProcSubset=pid there is no /proc/sys in its sandbox."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The kernel's name for the time since it was started (random(4)): 32 hexadecimal digits, maybe with dashes."""
    return os.environ.get(BOOT_ID_VARIABLE) or BOOT_ID.read_text(encoding="ascii").strip()


def notify(*lines: str) -> bool:
    """Sends the lines ("READY=1") as one datagram to $NOTIFY_SOCKET. False when there is none: not under systemd.

    OSError when systemd's socket doesn't take them: that is worth a line in the log, so the caller decides.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.connect(address)
        connection.sendall("\n".join(lines).encode())
    return True


def ready(status: str = "") -> bool:
    return notify("READY=1", *_status(status))


def stopping(status: str = "") -> bool:
    return notify("STOPPING=1", *_status(status))


def status(text: str) -> bool:
    """One line for `systemctl status`."""
    return notify(*_status(text))


def watchdog_interval() -> float | None:
    """Seconds within which systemd wants a sign of life, or None when it wants none of this process."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isascii() or not microseconds.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(microseconds) / 1_000_000 or None


def listen_fds() -> dict[str, socket.socket]:
    """Listening sockets that systemd passed, by FileDescriptorName=. The variables are taken away from children."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isascii() or not count.isdigit():
        return {}
    found = {}
    for index in range(int(count)):
        descriptor = FIRST_FD + index
        os.set_inheritable(descriptor, False)
        found[names[index] if index < len(names) else str(index)] = socket.socket(fileno=descriptor)
    return found


class Watchdog:
    """Tells systemd that we live, when each registered loop has come round since the last time, and only then.

    Each loop calls `beat(its name)` once a round; there is no thread here. So one loop that hangs starves the watchdog,
    however lively the others are, and systemd restarts the process (WatchdogSec=). A loop must come round at least
    every `interval` seconds, which is a third of what systemd allows; with none wanted, beats cost next to nothing.
    """

    def __init__(
        self,
        loops: Iterable[str],
        *,
        allowed: float | None = None,
        send: Callable[[str], object] = notify,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowed = watchdog_interval() if allowed is None else allowed
        self._send, self._clock = send, clock
        self._lock = threading.Lock()
        self._waiting_for = dict.fromkeys(loops, True)
        self._last_sent = clock()

    @property
    def interval(self) -> float:
        """Seconds within which each loop has to beat; a loop uses it as the limit of its waits."""
        return (self._allowed or 30.0) / 3

    def register(self, name: str) -> None:
        """From now on nothing is sent without this loop's beats."""
        with self._lock:
            self._waiting_for[name] = True

    def unregister(self, name: str) -> None:
        """The loop has ended on purpose: a nest removed, a shutdown."""
        with self._lock:
            self._waiting_for.pop(name, None)

    def late(self) -> list[str]:
        """Loops that haven't beaten since the last sign of life, for the log."""
        with self._lock:
            return sorted(name for name, waiting in self._waiting_for.items() if waiting)

    def beat(self, name: str) -> None:
        """One loop came round. KeyError for one that isn't registered: a typing error must not feed the watchdog."""
        with self._lock:
            self._waiting_for[name]  # the lookup is the check
            self._waiting_for[name] = False
            if self._allowed is None or any(self._waiting_for.values()):
                return
            now = self._clock()
            if now - self._last_sent < self.interval / 2:
                return  # all came round, but it is too early for another datagram
            self._last_sent = now
            self._waiting_for = dict.fromkeys(self._waiting_for, True)
        self._send("WATCHDOG=1")


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={' '.join(text.split())[:STATUS_LIMIT]}",) if text else ()
