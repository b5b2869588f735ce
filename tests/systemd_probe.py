"""What runs inside the container of test_systemd_real: stand-ins in the real units' sandboxes, and the one who looks.

A stand-in takes its socket, credential and folders as the real process does, and says over the status socket or its
state folder what it could reach and what not. Run as `systemd_probe.py signer|station|uploader|look`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from station import logs, notify
from station.paths import Paths
from station.status.client import StatusClient
from station.status.routes import Groups
from station.status.server import StatusServer
from station.wire import PeerCredentials
from tests.fixtures_status import STATION, FakeControl, FakeRecords

OUT = Path("/out")
SERVICES = ("signer", "station", "uploader")
BOOT_SECONDS = 30


def reach(act: Callable[[], object]) -> str:
    """ "ok", or the error's name."""
    try:
        act()
    except OSError as error:
        return errno_name(error)
    return "ok"


def errno_name(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


def findings() -> dict[str, Any]:
    """What this process is and can reach. Everything here is tried, nothing is read from the unit file."""
    paths = Paths()

    def connect(path: Path) -> Callable[[], object]:
        def act() -> None:
            with socket.socket(socket.AF_UNIX) as tried:
                tried.connect(str(path))

        return act

    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    return {
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "groups": sorted(os.getgroups()),
        "capabilities": [
            line for line in Path("/proc/self/status").read_text().split("\n") if line.startswith("CapEff")
        ],
        "credentials": sorted(os.listdir(credentials)) if credentials else [],  # noqa: PTH208 - names only
        "internet": reach(lambda: socket.socket(socket.AF_INET).close()),
        "netlink": reach(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15).close()),
        "pin file": reach(Path("/etc/hallmark/credentials/ca-pin").read_bytes),
        "station state": reach(lambda: (paths.state / "probe").write_text("x")),
        "signer state": reach(lambda: (paths.signer_state / "probe").write_text("x")),
        "usr": reach(lambda: Path("/usr/probe").write_text("x")),
        "status socket": reach(connect(paths.status_socket)),
        "outbox socket": reach(connect(paths.outbox_socket)),
        "signer socket": reach(connect(paths.signer_socket)),
        "callbacks": ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)(),  # under MemoryDenyWriteExecute
        "journal": os.environ.get("JOURNAL_STREAM") is not None,
    }


def machinery() -> dict[str, str]:
    """The libraries with C inside, and what a worker does to itself, tried in this sandbox."""
    import apsw
    import pyudev
    import tpm2_pytss
    import urllib3

    database = apsw.Connection(str(Paths().state / "probe.db"))
    database.execute("PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (1)")
    database.close()
    monitor = pyudev.Monitor.from_netlink(pyudev.Context())
    monitor.start()
    confined = "from station.worker.process import confine; confine(3); print('confined')"
    child = subprocess.run(
        [sys.executable, "-c", confined], capture_output=True, text=True, timeout=30, check=False
    )
    tcti = tpm2_pytss.PyTCTI(max_size=4096)  # C calls back into Python
    return {
        "worker": child.stdout.strip() or child.stderr[-300:],
        "udev": type(monitor.fileno()).__name__,
        "tcti": type(tcti).__name__,
        "http": type(urllib3.PoolManager()).__name__,
    }


def signer() -> None:
    passed = notify.listen_fds()["signer"]
    found = findings()
    Paths().signer_state.joinpath("findings.json").write_text(json.dumps(found))
    watchdog = notify.Watchdog(["main"])
    passed.settimeout(watchdog.interval)
    notify.ready("probing")
    while True:
        with contextlib.suppress(TimeoutError):
            passed.accept()[0].close()
        watchdog.beat("main")


def station() -> None:
    passed = notify.listen_fds()
    found = findings()
    found["passed"] = sorted(passed)
    found["machinery"] = machinery()
    control = FakeControl(station=msgspec.structs.replace(STATION, problems=[json.dumps(found)]))
    watchdog = notify.Watchdog(["status", "outbox"])
    StatusServer(
        control,
        FakeRecords(),
        passed["status"],
        Groups("hallmark-operators", "hallmark-engineers"),
        beat=lambda: watchdog.beat("status"),
    ).start()
    passed["outbox"].settimeout(1)
    notify.ready("probing")
    while True:
        try:
            connection = passed["outbox"].accept()[0]
        except TimeoutError:
            pass
        else:
            with connection, contextlib.suppress(BrokenPipeError):  # `findings` only knocked
                connection.sendall(pwd.getpwuid(PeerCredentials.of(connection).uid).pw_name.encode())
        watchdog.beat("outbox")


def uploader() -> None:
    """One of its loops hangs after a while: the other's liveliness must not save it."""
    found = findings()
    with socket.socket(socket.AF_UNIX) as outbox:
        outbox.connect(str(Paths().outbox_socket))
        found["known to the station as"] = outbox.recv(100).decode()
    notify.ready(json.dumps(found)[: notify.STATUS_LIMIT])
    sys.stdout.write(json.dumps({"uploader": found}) + "\n")
    sys.stdout.flush()
    watchdog = notify.Watchdog(["lively", "hangs"])
    began = time.monotonic()
    while True:
        threading.Event().wait(0.1)
        watchdog.beat("lively")
        if time.monotonic() - began < 3:
            watchdog.beat("hangs")


def show(unit: str) -> dict[str, str]:
    words = ["systemctl", "show", unit, "--property=ActiveState,NRestarts,StatusText,Result"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
    return dict(line.split("=", 1) for line in said.splitlines())


def look() -> None:
    """As root, once everything is up: what systemd and the stand-ins say goes to /out/report.json."""
    (OUT / "booted").touch()
    until = time.monotonic() + BOOT_SECONDS
    report: dict[str, Any] = {}
    while time.monotonic() < until:
        units = {name: show(f"hallmark-{name}") for name in SERVICES}
        report["units"] = units
        up = all(unit["ActiveState"] == "active" for name, unit in units.items() if name != "uploader")
        if up and int(units["uploader"]["NRestarts"]) >= 1:
            break
        threading.Event().wait(0.2)
    everything = ["journalctl", "--output=json", "--no-pager"]
    journal = subprocess.run(everything, capture_output=True, text=True, timeout=20, check=False).stdout
    report["journal"] = [json.loads(line) for line in journal.splitlines() if "hallmark" in line]
    try:
        report["station"] = json.loads(StatusClient(Paths().status_socket).snapshot().station.problems[0])
        report["signer"] = json.loads(Paths().signer_state.joinpath("findings.json").read_text())
        report["folders"] = {
            str(path): [oct(path.stat().st_mode & 0o7777), path.owner(), path.group()]
            for path in (Paths().runtime, Paths().signer_socket.parent, Paths().state, Paths().signer_state)
        }
    finally:
        (OUT / "report.json").write_text(json.dumps(report))
        subprocess.run(["systemctl", "poweroff", "--force"], timeout=20, check=False)


if __name__ == "__main__":
    role = sys.argv[1]
    if role != "look":
        logs.configure(role)
        import structlog

        with structlog.contextvars.bound_contextvars(unit="u-1", nest="A", step="flash"):
            structlog.get_logger().info("a probe begins", role=role)
    {"signer": signer, "station": station, "uploader": uploader, "look": look}[role]()
