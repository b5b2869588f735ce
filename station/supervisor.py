"""The station process: puts its parts together and keeps them running until it is told to stop.

It holds the one database and decides; it opens no device, no token and no network. Each nest, discovery
driver and socket has its own threads, so that one in trouble leaves the others alone.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import structlog

from hal.call import Call, Cancel
from hal.driver import Bindings
from hal.errors import ConfigError, HallmarkError, RecipeError
from hal.interfaces import Discovery
from hal.registry import shadowing
from hal.types import DiscoveryFault
from station.checkpoints import STOP_SECONDS, Checkpoints
from station.config import Configuration, DiscoverySection, NestSection
from station.credentials import FileCredentials
from station.escrow_media import Medium
from station.foreign import Terms
from station.images import ImageStore
from station.key_keeper import KeyKeeper
from station.nest.keys import forget_delivered
from station.nest.nest import Nest, VisitTerms
from station.nest.out_of_service import OutOfService
from station.nest.service import Services
from station.nest.stock import DEVICE, POOL, PRELOADED
from station.notify import Watchdog, boot_id
from station.order_book import OrderBook
from station.outbox import OutboxServer
from station.overview import Overview, version
from station.places import Places
from station.recipe_file import load_recipe
from station.signed import load_signers
from station.signer_client import SignerClient
from station.store import Store
from station.token_watch import TokenWatch
from station.trust.intake import Intake
from station.trust.judge import Judge
from station.trust.source import TrustSource
from station.trust_store import load_anchors, load_file

MAIN: Final = "main"
LOOK_SECONDS: Final = 1.0
"""How often the main loop comes round: disk, watchdog."""
DISCOVERY_PAUSE: Final = 5.0
"""Seconds before a discovery driver that failed is opened again."""


class Supervisor:
    """`run` serves until `stop` is called; `overview` is for the status socket."""

    def __init__(
        self, configuration: Configuration, store: Store, watchdog: Watchdog, outbox: Path | socket.socket
    ) -> None:
        """`outbox`: where its socket is to be, or the listening socket that systemd passed."""
        self._configuration, self._store, self._watchdog = configuration, store, watchdog
        self._outbox = outbox
        self._log = structlog.get_logger()
        if configuration.released is not None:
            store.accept_release(configuration.released.serial, configuration.released.digest)
        self._stop = threading.Event()
        self._cancel = Cancel()
        self._problems = {text: text for text in shadowing()}
        self._places = Places(self._nest_at)
        signer = SignerClient(configuration.paths.signer_socket)
        self._token = TokenWatch(signer, lambda: forget_delivered(store, signer))
        self._checkpoints = Checkpoints(
            store, signer, configuration.file.audit, configuration.file.station.name
        )
        self._trust = TrustSource(configuration, store.take_bundle)
        signers = configuration.path(configuration.file.trust.ek_list_signers)
        self._intake = Intake(configuration.paths.trust, store, lambda: load_signers(signers))
        judge = Judge(self._trust.current, store.ek_listed)
        self._services = _services(configuration, store, signer, self._checkpoints, judge)
        self._keys = KeyKeeper(store, signer)
        self._orders = OrderBook(
            store,
            signer,
            self._services.images,
            configuration.file.station.name,
            configuration.path(configuration.file.orders.keys),
            required=configuration.orders_required,
            minutes=configuration.file.orders.reconcile_minutes,
        )
        self._services = dataclasses.replace(self._services, orders=self._orders)
        terms = VisitTerms(
            bench=configuration.bench,
            check_token=self._token.check,
            check_audit=self._checkpoints.require,
            issuers=self._token.issuers,
            boot_id=boot_id(),
            long_lived_days=configuration.file.policy.long_lived_days,
            credential=FileCredentials(configuration.paths).secret,
        )
        self._nests: dict[str, Nest | OutOfService] = {
            section.name: self._nest(section, terms) for section in configuration.file.nest
        }
        self.overview = Overview(
            configuration,
            store,
            self._nests,
            self._token.view,
            self._troubles,
            self._checkpoints.view,
            self._checkpoints.sign,
            self._services.offered,
            self._orders,
        )

    def run(self) -> None:
        """Blocks until `stop`. Then every visit is cancelled and has its verdict, and nothing is left running."""
        self._watchdog.register(MAIN)
        orders = self._configuration.file.work_order
        self._store.load_work_orders([(item.id, item.sku, item.quantity) for item in orders])
        left_open = self._store.recover()
        self._store.append_event(
            "station-started", fields={"version": version(), "visits_left_open": len(left_open)}
        )
        self._checkpoints.start()
        try:
            self._serve()
            self._store.append_event("station-stopped")
        finally:
            # Last: what the station did until its end is under a checkpoint, too.
            self._checkpoints.stop(SignerClient(self._configuration.paths.signer_socket, STOP_SECONDS))
        self._watchdog.unregister(MAIN)

    def _serve(self) -> None:
        with ExitStack() as stack:
            outbox = OutboxServer(
                self._store,
                self._outbox,
                self.overview.sink_health,
                configuration=bytes.fromhex(self._configuration.digest),
                head=self._checkpoints.head,
            )
            outbox.start()
            stack.callback(outbox.stop)
            self._token.start()
            stack.callback(self._token.stop)
            self._keys.start()
            stack.callback(self._keys.stop)
            self._orders.start()
            stack.callback(self._orders.stop)
            for nest in self._nests.values():
                nest.start()
                stack.callback(nest.stop)
            stack.callback(self._intake.stop)
            self._start_discovery(stack)
            while not self._stop.wait(LOOK_SECONDS):
                self._watchdog.beat(MAIN)
                self._store.ensure_ballast()
                self._trust.refresh()
                self._intake.look()

    def stop(self) -> None:
        """May be called from a signal handler."""
        self._stop.set()

    def _nest(self, section: NestSection, terms: VisitTerms) -> Nest | OutOfService:
        """One broken recipe takes one nest out of service."""
        try:
            recipe = load_recipe(self._configuration, section.recipe)
        except RecipeError as error:
            self._log.error("nest out of service", nest=section.name, code=error.code, reason=str(error))
            return OutOfService(section.name, section.place, error)
        return Nest(section.name, section.place, recipe, self._services, terms, self._watchdog)

    def _nest_at(self, place: str) -> Nest | OutOfService | None:
        section = self._configuration.nest_for(place)
        return self._nests[section.name] if section else None

    def _troubles(self) -> list[str]:
        trust = [f"trust: {self._trust.trouble}"] if self._trust.trouble else []
        orders, places = self._orders.troubles(), self._places.unclaimed()
        return [*self._problems.values(), *trust, *orders, *places, *self._low_stock()]

    def _low_stock(self) -> list[str]:
        """Lots that recipes of our nests draw from, and that are nearly used up, or not there."""
        wanted = {nest.recipe.lot() for nest in self._nests.values() if isinstance(nest, Nest)} - {""}
        if not wanted:
            return []
        low = self._configuration.file.pool.low_water
        free = dict.fromkeys(wanted, 0) | {
            view.lot: view.free for view in self._store.lots() if view.lot in wanted
        }
        return [
            f"lot {name}: {left} certificates left; import the next lot (hallmark pool import)"
            for name, left in sorted(free.items())
            if left < low
        ]

    # --- discovery ---

    def _start_discovery(self, stack: ExitStack) -> None:
        threads = [
            threading.Thread(target=self._discover, args=(number, section), name=f"discovery-{number}")
            for number, section in enumerate(self._configuration.file.discovery)
        ]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(self._cancel.set)

    def _discover(self, number: int, section: DiscoverySection) -> None:
        """Follows one discovery driver; one that fails is opened again, and status says what is wrong."""
        configuration = self._configuration
        driver = configuration.registry.get(section.driver)
        settings = configuration.settings(driver, section.settings, ("discovery", number, "settings"))
        call = Call(cancel=self._cancel)
        key = f"discovery {number} {section.driver}"
        while not self._cancel.is_set():
            self._places.forget(key)
            try:
                with driver.open(settings, Bindings()) as offered:
                    discovery = offered[Discovery]
                    if not isinstance(discovery, Discovery):
                        raise ConfigError(f"driver {driver.name!r} offers no discovery")
                    for event in discovery.watch(call):
                        self._problems.pop(key, None)
                        if isinstance(event, DiscoveryFault):
                            self._trouble(key, event.error)
                        else:
                            self._places.changed(key, event)
            except HallmarkError as error:
                if self._cancel.is_set():
                    return
                self._trouble(key, error)
                self._cancel.wait(DISCOVERY_PAUSE)

    def _trouble(self, key: str, error: HallmarkError) -> None:
        text = f"{key}: {error}"
        if self._problems.get(key) != text:
            self._problems[key] = text
            self._log.warning("trouble", where=key, code=error.code, reason=str(error), hint=error.hint)


def _services(
    configuration: Configuration, store: Store, signer: SignerClient, checkpoints: Checkpoints, judge: Judge
) -> Services:
    file = configuration.file
    return Services(
        station=file.station.name,
        store=store,
        signer=signer,
        images=ImageStore(configuration.path(file.trust.images), configuration.path(file.trust.firmware)),
        officers=tuple(
            certificate
            for path in file.escrow.officers
            for certificate in load_file(configuration.path(path))
        ),
        sinks=tuple(sink.name for sink in file.sink),
        configuration=bytes.fromhex(configuration.digest),
        media=tuple(
            Medium(Path(text), configuration.paths.state, configuration.bench) for text in file.escrow.media
        ),
        before_pass=checkpoints.before_pass,
        judge=judge,
        terms=_terms(configuration),
    )


def _terms(configuration: Configuration) -> dict[str, Terms]:
    """What certificates made elsewhere have to be. A folder that isn't there holds no anchors: all are refused then."""
    trust, days = configuration.file.trust, configuration.file.pool.minimum_days
    return {
        POOL: Terms(load_anchors(configuration.path(trust.pool)), days),
        PRELOADED: Terms(load_anchors(configuration.path(trust.preloaded)), days, client_auth=False),
        DEVICE: Terms((), days),
    }
