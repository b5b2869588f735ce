"""`hallmark run`: the station process, in the foreground, as systemd or a bench starts it."""

from __future__ import annotations

import argparse
import signal
from typing import Final

import structlog

from station import logs, notify
from station.config import load_configuration
from station.status.routes import Groups
from station.status.server import StatusServer
from station.store import Store
from station.supervisor import Supervisor

STATUS_LOOP: Final = "status"
HELP: Final = "run the station: nests, store, status and outbox sockets"


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    logs.configure("station")
    configuration = load_configuration(args.paths)
    paths = configuration.paths
    for folder in (paths.runtime, paths.state):
        folder.mkdir(parents=True, exist_ok=True)
    watchdog = notify.Watchdog((STATUS_LOOP,))
    inherited = notify.listen_fds()
    with Store.open(paths.database) as store:
        supervisor = Supervisor(configuration, store, watchdog, inherited.get("outbox", paths.outbox_socket))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.stop())
        server = StatusServer(
            supervisor.overview,
            store,
            inherited.get("status", paths.status_socket),
            Groups(configuration.file.status.operators, configuration.file.status.engineers),
            beat=lambda: watchdog.beat(STATUS_LOOP),
        )
        server.start()
        try:
            notify.ready(f"{len(configuration.file.nest)} nests")
            structlog.get_logger().info("station ready", nests=len(configuration.file.nest))
            supervisor.run()
        finally:
            notify.stopping()
            server.stop()
    return 0
