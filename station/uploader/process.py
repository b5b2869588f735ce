"""The process itself: which sinks there are, a thread for each, and how it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import structlog

from hal.call import Cancel
from hal.driver import opened
from hal.errors import ConfigError
from hal.interfaces import Credentials, EnrollmentSink
from hal.registry import load
from station import notify
from station.config import Configuration
from station.credentials import FileCredentials
from station.uploader.lane import Lane
from station.uploader.opening import Opener

ENDING: Final = (signal.SIGTERM, signal.SIGINT)
MAIN: Final = "main thread"
"""Among the watchdog's loops; no sink can have a name with a space."""
ALIVE_CHECK_SECONDS: Final = 5.0
GRACE_SECONDS: Final = 3.0
"""For lanes to come home. What they had leased goes back when the process ends, so nothing waits for them longer."""


def run(configuration: Configuration) -> int:
    """Until SIGTERM; 1 when a lane ended by itself, which none should."""
    log = structlog.get_logger()
    # Before any thread: they inherit the mask, so that the wait below is the only one to take these signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    cancel = Cancel()
    watchdog = notify.Watchdog((MAIN,))
    opener = Opener(FileCredentials(configuration.paths))
    with ExitStack() as stack:
        threads = []
        for name, sink in stack.enter_context(_sinks(configuration)).items():
            watchdog.register(name)
            socket, digest = configuration.paths.outbox_socket, bytes.fromhex(configuration.digest)
            lane = Lane(name, sink, socket, watchdog, cancel, opener, digest)
            threads.append(threading.Thread(target=lane.run, name=f"sink-{name}", daemon=True))
        for thread in threads:
            thread.start()
        notify.ready(f"{len(threads)} sinks")
        log.info("uploader ready", sinks=len(threads))
        fine = True
        while fine and signal.sigtimedwait(ENDING, min(ALIVE_CHECK_SECONDS, watchdog.interval)) is None:
            fine = all(thread.is_alive() for thread in threads)
            watchdog.beat(MAIN)
        notify.stopping()
        cancel.set()
        for thread in threads:
            thread.join(GRACE_SECONDS)
    log.info("uploader ended", fine=fine)
    return 0 if fine else 1


@contextmanager
def _sinks(configuration: Configuration) -> Iterator[dict[str, EnrollmentSink]]:
    """Every [[sink]] opened, by name. Imports the sinks' drivers and no others: this process has no devices."""
    sections = configuration.file.sink
    registry = load(sorted({section.driver for section in sections}))
    known: dict[type, object] = {Credentials: FileCredentials(configuration.paths)}
    with ExitStack() as stack:
        found: dict[str, EnrollmentSink] = {}
        for index, section in enumerate(sections):
            driver = registry.get(section.driver)
            problem = None
            if EnrollmentSink not in driver.offers or not driver.needs <= known.keys():
                problem = f"driver {driver.name!r} is no sink; expected one that offers EnrollmentSink"
            elif driver.bench_only and not configuration.bench:
                problem = f"driver {driver.name!r} is for bench mode only"
            if problem:
                raise configuration.source.error(("sink", index, "driver"), problem, ConfigError)
            settings = configuration.settings(driver, section.settings, ("sink", index, "settings"))
            bindings = stack.enter_context(opened([(section.name, driver, settings)], known))
            found[section.name] = bindings.get(EnrollmentSink)
        yield found
