"""The signer's main: puts its rooms together, tells systemd, and ends in order at SIGTERM.

It comes up and answers whatever state the token is in. It never forks: a forked child of SoftHSM still signs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from hal.call import Cancel
from hal.driver import Bindings
from hal.errors import ConfigError
from hal.interfaces import CaToken, SecretWrap, TokenPin
from hal.registry import load
from station import notify, wire
from station.config import Configuration, load_configuration
from station.paths import Paths
from station.signer import authority as ca
from station.signer import durable, ledger
from station.signer.issuing import Issuer
from station.signer.overrun import Overrun
from station.signer.pin import PinDescriptor, PinFile, PinGuard
from station.signer.profiles import load_profiles
from station.signer.service import LOOP as ACCEPT_LOOP
from station.signer.service import Listener, Service
from station.signer.supervisor import LOOP as SUPERVISOR_LOOP
from station.signer.supervisor import Supervisor

PIN_CREDENTIAL: Final = "ca-pin"
GROUP: Final = "hallmark"
"""The station's. Its members may ask the signer, besides root and the signer's own user."""
SOCKET_NAME: Final = "signer"
"""FileDescriptorName= of a socket unit."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class OpenToken:
    token: CaToken
    wrap: SecretWrap


def signer_configuration(paths: Paths) -> Configuration:
    """station.toml, with the signer's own driver and no other: code for devices and networks stays out of here."""
    configuration = load_configuration(paths, drivers=False)
    section = configuration.file.signer
    registry = load([section.driver])
    if section.driver in registry.broken:
        message = f"driver {section.driver!r} can't be used: {registry.broken[section.driver]}"
        raise configuration.source.error(("signer", "driver"), message)
    if registry.get(section.driver).bench_only and not configuration.bench:
        message = f"driver {section.driver!r} is for bench mode only"
        raise configuration.source.error(("signer", "driver"), message)
    return dataclasses.replace(configuration, registry=registry)


@contextlib.contextmanager
def open_token(
    configuration: Configuration, pin: PinFile | PinDescriptor | None = None
) -> Iterator[OpenToken]:
    """The token that station.toml's [signer] names. Only under `ledger.sole_user`, which guards its PIN's mark."""
    section = configuration.file.signer
    driver = configuration.registry.get(section.driver)
    if CaToken not in driver.offers or SecretWrap not in driver.offers:
        message = f"driver {driver.name!r} offers no CA token; expected one that does"
        raise configuration.source.error(("signer", "driver"), message)
    given: dict[str, Any] = dict(section.settings)
    if "canary_key" in {field.name for field in dataclasses.fields(driver.settings)}:
        given.setdefault("canary_key", section.canary_key)
    settings = configuration.settings(driver, given, ("signer", "settings"))
    paths = configuration.paths
    needs = Bindings()
    source = pin or PinFile(paths.credential(PIN_CREDENTIAL))
    needs.add("signer", TokenPin, PinGuard(paths.signer_state, source))
    with driver.open(settings, needs) as offered:
        token, wrap = offered[CaToken], offered[SecretWrap]
        if not isinstance(token, CaToken) or not isinstance(wrap, SecretWrap):
            message = f"driver {driver.name!r} does not give the CA token that it offers"
            raise ConfigError(message)
        yield OpenToken(token, wrap)


def run(configuration: Configuration, pin: PinFile | PinDescriptor | None = None) -> int:
    """Serves until SIGTERM or SIGINT. 0 when it ended in order."""
    paths, section = configuration.paths, configuration.file.signer
    profiles = configuration.path(section.profiles)
    stop = Cancel()
    with _signals(stop), ledger.sole_user(paths.signer_state), contextlib.ExitStack() as stack:
        authority = ca.load(paths.signer_state)
        if authority is not None and authority.bench and not configuration.bench:
            message = (
                "the installed CA was made by `hallmark ca init --bench`; this station is in production mode"
            )
            raise ConfigError(
                message, hint="Install a certificate of the production root: `hallmark ca csr`."
            )
        found = load_profiles(profiles)
        book = stack.enter_context(ledger.opened(paths.signer_state))
        opened = stack.enter_context(open_token(configuration, pin))
        overrun = Overrun()
        stack.callback(overrun.stop)
        watchdog = notify.Watchdog((ACCEPT_LOOP, SUPERVISOR_LOOP))
        supervisor = Supervisor(opened.token, section.ca_key, authority, overrun, watchdog)
        stack.callback(supervisor.close)
        issuer = Issuer(book, opened.token, section.ca_key, authority, profiles) if authority else None
        label = str(section.settings.get("token", section.driver))
        service = Service(supervisor, issuer, authority, book, opened.wrap, section.wrap_key, label, overrun)
        server = stack.enter_context(_server(paths))
        looking = threading.Thread(target=supervisor.run, args=(stop,), name="supervisor", daemon=True)
        looking.start()
        notify.ready("answering")
        _log.info("signer ready", profiles=sorted(found), issuer=service.subject)
        Listener(service, _groups(), os.geteuid()).serve(server, stop, watchdog)
        notify.stopping()
        looking.join()
    _log.info("signer ended")
    return 0


@contextlib.contextmanager
def _signals(stop: Cancel) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`."""

    def handle(number: int, frame: object) -> None:
        del number, frame
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _server(paths: Paths) -> Iterator[socket.socket]:
    """The listening socket: systemd's, or one of our own that the clients' group may use."""
    given = notify.listen_fds().get(SOCKET_NAME)
    server = given or _listen(paths.signer_socket)
    try:
        yield server
    finally:
        server.close()
        if given is None:
            paths.signer_socket.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    durable.make_folder(path.parent, mode=0o755)
    return wire.listen(path)


def _groups() -> frozenset[int]:
    """The clients' group, where the installation has made one. The folder's setgid bit gives it the socket."""
    try:
        return frozenset({grp.getgrnam(GROUP).gr_gid})
    except KeyError:
        return frozenset()
