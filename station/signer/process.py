"""The signer's main: puts its rooms together, tells systemd, and ends in order at SIGTERM.

It comes up and answers whatever state the token is in. It never forks: a forked child of SoftHSM still signs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
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
from cryptography.hazmat.primitives.asymmetric import ec

from hal.call import Cancel
from hal.driver import Bindings
from hal.errors import ConfigError, HallmarkError
from hal.interfaces import CaToken, DeviceSecrets, SecretWrap, TokenPin
from hal.registry import load
from station import notify, wire
from station.config import Configuration, load_configuration
from station.paths import Paths
from station.sealing import load_upload_key
from station.signer import durable, ledger
from station.signer.administration import Administration
from station.signer.checkpoints import CheckpointSigner
from station.signer.clock import Limits, TrustedClock, utc_now
from station.signer.device_keys import DeviceKeys
from station.signer.generations import Generation, Generations
from station.signer.issuing import Issuer
from station.signer.key_ledger import KeyLedger
from station.signer.orders import Orders
from station.signer.overrun import Overrun
from station.signer.pin import PinDescriptor, PinFile, PinGuard
from station.signer.profiles import load_profiles
from station.signer.service import LOOP as ACCEPT_LOOP
from station.signer.service import Listener, Service
from station.signer.supervisor import LOOP as SUPERVISOR_LOOP
from station.signer.supervisor import Supervisor
from station.work_order import order_signers

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
    secrets: DeviceSecrets


@dataclass(frozen=True, slots=True)
class OpenCa:
    """Token, ledger and what they say of the CA: what the signer has, and a `hallmark ca` command in its place."""

    token: CaToken
    wrap: SecretWrap
    secrets: DeviceSecrets
    ledger: ledger.Ledger
    generations: Generations
    clock: TrustedClock
    administration: Administration


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
    if not {CaToken, SecretWrap, DeviceSecrets} <= driver.offers:
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
        token, wrap, secrets = offered[CaToken], offered[SecretWrap], offered[DeviceSecrets]
        if not (
            isinstance(token, CaToken) and isinstance(wrap, SecretWrap) and isinstance(secrets, DeviceSecrets)
        ):
            message = f"driver {driver.name!r} does not give the CA token that it offers"
            raise ConfigError(message)
        yield OpenToken(token, wrap, secrets)


@contextlib.contextmanager
def open_ca(configuration: Configuration, pin: PinFile | PinDescriptor | None = None) -> Iterator[OpenCa]:
    """The CA for this process alone. Only under `ledger.sole_user`."""
    paths, section = configuration.paths, configuration.file.signer
    folder = paths.signer_state
    with contextlib.ExitStack() as stack:
        book = stack.enter_context(ledger.opened(folder))
        if configuration.released is not None:  # before a module that an older set may name is loaded
            book.accept_release(configuration.released.serial, configuration.released.digest)
        opened = stack.enter_context(open_token(configuration, pin))
        generations = Generations(book, bench=configuration.bench)
        generations.adopt(folder, section.ca_key, utc_now())
        limits = Limits(
            dt.timedelta(hours=section.clock_jump_hours), dt.timedelta(days=section.longest_off_days)
        )
        clock = TrustedClock(book, generations, limits)
        administration = Administration(
            configuration.file.station.name, section, folder, book, opened.token, generations, clock
        )
        administration.refresh_copies()
        yield OpenCa(opened.token, opened.wrap, opened.secrets, book, generations, clock, administration)


def run(configuration: Configuration, pin: PinFile | PinDescriptor | None = None) -> int:
    """Serves until SIGTERM or SIGINT. 0 when it ended in order."""
    paths, section = configuration.paths, configuration.file.signer
    profiles = configuration.path(section.profiles)
    stop = Cancel()
    with _signals(stop), ledger.sole_user(paths.signer_state), contextlib.ExitStack() as stack:
        found = load_profiles(profiles)
        opened = stack.enter_context(open_ca(configuration, pin))
        generations = opened.generations
        _check_mode(configuration, generations)
        overrun = Overrun()
        stack.callback(overrun.stop)
        watchdog = notify.Watchdog((ACCEPT_LOOP, SUPERVISOR_LOOP))

        def active() -> Generation | None:
            return generations.active(opened.clock.shown())

        def look() -> None:
            try:
                opened.clock.look()
                opened.administration.refresh_copies()
            except HallmarkError as error:  # a full disk: what asks for a certificate is told the same
                _log.warning("the ledger's upkeep waits", problem=str(error))

        supervisor = Supervisor(opened.token, section.ca_key, active, overrun, watchdog, look)
        stack.callback(supervisor.close)
        digest = bytes.fromhex(configuration.digest)
        orders = Orders(
            opened.ledger,
            configuration.file.station.name,
            order_signers(configuration.path(configuration.file.orders.keys)),
            required=configuration.orders_required,
        )
        issuer = Issuer(opened.ledger, opened.token, generations, profiles, opened.clock, digest, orders)
        label = str(section.settings.get("token", section.driver))
        keys = DeviceKeys(KeyLedger(opened.ledger), opened.secrets, opened.wrap, _uploader(configuration))
        service = Service(
            supervisor,
            issuer,
            generations,
            opened.clock,
            opened.administration,
            opened.ledger,
            opened.wrap,
            section.wrap_key,
            label,
            overrun,
            keys,
            CheckpointSigner(opened.ledger, opened.token, section.audit_key),
            orders,
        )
        server = stack.enter_context(_server(paths))
        looking = threading.Thread(target=supervisor.run, args=(stop,), name="supervisor", daemon=True)
        looking.start()
        notify.ready("answering")
        _log.info("signer ready", profiles=sorted(found), generations=len(generations.all))
        Listener(service, _groups(), os.geteuid()).serve(server, stop, watchdog)
        notify.stopping()
        looking.join()
    _log.info("signer ended")
    return 0


def _check_mode(configuration: Configuration, generations: Generations) -> None:
    """ConfigError when all that is installed is a CA of the other mode: a bench's in production, or the reverse."""
    if generations.all or not generations.others:
        return
    if configuration.bench:
        message = "the installed CA is a production CA; this station is in bench mode, where it doesn't issue"
        hint = 'Set mode = "production", or make a bench CA for a bench: `hallmark ca init --bench`.'
    else:
        message = (
            "the installed CA was made by `hallmark ca init --bench`; this station is in production mode"
        )
        hint = "Install a certificate of the production root: `hallmark ca csr`."
    raise ConfigError(message, hint=hint)


def _uploader(configuration: Configuration) -> ec.EllipticCurvePublicKey | None:
    """Whom keys for the cloud are sealed to: by our own configuration, never by who asks."""
    name = configuration.file.device_keys.upload_key
    return load_upload_key(configuration.path(name)) if name else None


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
