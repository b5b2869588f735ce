"""The station process: opens the store, brings the nests to life, and tells people and systemd how it is.

It holds the one database and decides; it opens no device, no token and no network. Each nest, discovery
driver and socket has its own threads, so that one in trouble leaves the others alone.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
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
from station import messages
from station.config import Configuration, DiscoverySection, NestSection
from station.images import ImageStore
from station.nest.nest import Nest, VisitTerms
from station.nest.out_of_service import OutOfService
from station.nest.service import Services
from station.notify import Watchdog
from station.outbox import OutboxServer
from station.places import Places
from station.recipe import load_recipe
from station.signer_client import SignerClient
from station.status.view import (
    ClockView,
    DiskView,
    NestView,
    OutboxView,
    SinkView,
    StationState,
    StationView,
    TokenView,
    WorkOrderView,
)
from station.store import Store
from station.trust_store import load_file, load_folder

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
LOOK_SECONDS: Final = 1.0
"""How often the main loop comes round: token, disk, watchdog."""
DISCOVERY_PAUSE: Final = 5.0
"""Seconds before a discovery driver that failed is opened again."""
CLOCK_TOLERANCE: Final = 60.0
"""Seconds that the clock may be set back, as time daemons do."""
MIB: Final = 1 << 20


class Supervisor:
    """`run` serves until `stop` is called. Implements `station.status.view.StationControl`."""

    def __init__(
        self, configuration: Configuration, store: Store, watchdog: Watchdog, outbox: Path | socket.socket
    ) -> None:
        """`outbox`: where its socket is to be, or the listening socket that systemd passed."""
        self._configuration, self._store, self._watchdog = configuration, store, watchdog
        self._outbox = outbox
        self._log = structlog.get_logger()
        self._stop = threading.Event()
        self._cancel = Cancel()
        self._lock = threading.Lock()
        self._state = StationState.RUNNING
        self._began, self._started_at = time.monotonic(), time.time()
        self._newest_at = max((event.at for event in store.events(store.last_event() - 1, 1)), default=0.0)
        self._token: messages.SignerState | None = None
        self._token_problem: HallmarkError | None = None
        self._sinks: dict[str, tuple[messages.SinkHealth, float]] = {}
        self._problems: dict[str, str] = {}
        self._places = Places(self._nest_at)
        file = configuration.file
        self._signer = SignerClient(configuration.paths.signer_socket)
        self._services = Services(
            station=file.station.name,
            store=store,
            signer=self._signer,
            images=ImageStore(configuration.path(file.trust.images), configuration.path(file.trust.firmware)),
            officers=tuple(
                certificate
                for path in file.escrow.officers
                for certificate in load_file(configuration.path(path))
            ),
            sinks=tuple(sink.name for sink in file.sink),
        )
        terms = VisitTerms(
            bench=configuration.bench,
            trust=load_folder(configuration.path(file.trust.ek)),
            issuers=self._issuers,
            boot_id=BOOT_ID.read_text().strip(),
        )
        self._nests: dict[str, Nest | OutOfService] = {
            nest.name: self._nest(nest, terms) for nest in file.nest
        }
        for text in shadowing():
            self._problems[text] = text

    # --- running ---

    def run(self) -> None:
        """Blocks until `stop`. Then every visit is cancelled and has its verdict, and nothing is left running."""
        self._watchdog.register("main")
        self._store.load_work_orders(
            [(item.id, item.sku, item.quantity) for item in self._configuration.file.work_order]
        )
        left_open = self._store.recover()
        self._store.append_event(
            "station-started", fields={"version": version(), "visits_left_open": len(left_open)}
        )
        with ExitStack() as stack:
            outbox = OutboxServer(self._store, self._outbox, self._sink_health)
            outbox.start()
            stack.callback(outbox.stop)
            poller = threading.Thread(target=self._watch_token, name="token", daemon=True)
            poller.start()
            for nest in self._nests.values():
                nest.start()
                stack.callback(nest.stop)
            threads = [
                threading.Thread(target=self._discover, args=(number, section), name=f"discovery-{number}")
                for number, section in enumerate(self._configuration.file.discovery)
            ]
            for thread in threads:
                thread.start()
                stack.callback(thread.join)
            stack.callback(self._cancel.set)
            while not self._stop.wait(LOOK_SECONDS):
                self._watchdog.beat("main")
                self._store.ensure_ballast()
        self._store.append_event("station-stopped")
        self._watchdog.unregister("main")

    def stop(self) -> None:
        """May be called from a signal handler."""
        self._stop.set()

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

    def _watch_token(self) -> None:
        """Keeps what status shows of the token and the CA fresh: its state is always visible."""
        while True:
            try:
                state = self._signer.state()
                problem: HallmarkError | None = None
            except HallmarkError as error:
                state, problem = None, error
            with self._lock:
                before, self._token, self._token_problem = self._token, state or self._token, problem
            if state is not None and (before is None or before.condition != state.condition):
                self._log.info("token", condition=state.condition, label=state.label, reason=state.problem)
            if self._stop.wait(LOOK_SECONDS):
                return

    def _issuers(self) -> tuple[bytes, ...]:
        with self._lock:
            return tuple(self._token.chain) if self._token else ()

    def _sink_health(self, health: messages.SinkHealth) -> None:
        with self._lock:
            self._sinks[health.sink] = (health, time.monotonic())

    # --- StationControl: what people see ---

    def status(self) -> StationView:
        free, total, low = self._disk()
        problems = [*self._problems.values(), *self._places.unclaimed()]
        if self._store.trouble:
            problems.append(self._store.trouble)
        file = self._configuration.file
        return StationView(
            name=file.station.name,
            mode=file.station.mode,
            version=version(),
            state=self._state,
            started_at=self._started_at,
            uptime=time.monotonic() - self._began,
            token=self._token_view(),
            disk=DiskView(free, total, low),
            clock=self._clock(),
            work_orders=[
                WorkOrderView(order.id, order.sku, order.quantity, order.quantity - order.left)
                for order in self._store.work_orders()
            ],
            outcomes=self._outcomes(),
            problems=problems,
        )

    def _outcomes(self) -> dict[str, int]:
        """Visits that ended since the start, of all nests together."""
        return dict(sum((nest.outcomes for nest in self._nests.values()), Counter[str]()))

    def _clock(self) -> ClockView:
        """A clock behind what was on record at the start, or set back since, is told; the signer judges for itself."""
        now = time.time()
        expected = max(self._newest_at, self._started_at + time.monotonic() - self._began)
        if now >= expected - CLOCK_TOLERANCE:
            return ClockView(now=now)
        return ClockView(now=now, trusted=False, detail=f"the clock is {expected - now:.0f} s behind")

    def nests(self) -> Sequence[NestView]:
        return [nest.view() for nest in self._nests.values()]

    def outbox(self) -> OutboxView:
        depth = self._store.depth()
        with self._lock:
            sinks = dict(self._sinks)
        now = time.monotonic()
        return OutboxView(
            queued=depth.queued,
            leased=self._store.leased,
            parked=depth.parked,
            acknowledged=depth.acknowledged,
            oldest_age=None if depth.oldest is None else max(0.0, time.time() - depth.oldest / 1000),
            last_upload_at=None if depth.last_upload is None else depth.last_upload / 1000,
            sinks=[
                _sink_view(section.name, sinks.get(section.name), now)
                for section in self._configuration.file.sink
            ],
        )

    def _disk(self) -> tuple[int, int, bool]:
        usage = shutil.disk_usage(self._configuration.paths.state)
        return usage.free, usage.total, usage.free < self._configuration.file.station.minimum_free_mib * MIB

    def _token_view(self) -> TokenView:
        with self._lock:
            state, problem = self._token, self._token_problem
        if problem is not None:
            return TokenView(condition="unknown", problem=str(problem), hint=problem.hint)
        if state is None:
            return TokenView(condition="unknown", problem="the signer has not answered yet")
        return TokenView(
            condition=state.condition,
            label=state.label,
            subject=state.subject,
            not_after=state.not_after,
            issued=state.issued,
            problem=state.problem,
            hint=state.hint,
        )

    # --- StationControl: what people ask for ---

    def pause(self, by: str) -> None:
        self._change(StationState.PAUSED, by)

    def resume(self, by: str) -> None:
        self._change(StationState.RUNNING, by)

    def drain(self, by: str) -> None:
        self._change(StationState.DRAINING, by)

    def _change(self, state: StationState, by: str) -> None:
        self._store.append_event(f"station-{state.value}", fields={"by": by})
        self._state = state
        for nest in self._nests.values():
            nest.hold(state is not StationState.RUNNING)

    def retry(self, nest: str, by: str) -> None:
        if nest not in self._nests:
            raise LookupError(f"there is no nest {nest}")
        self._nests[nest].retry()
        self._store.append_event("retry", nest=nest, fields={"by": by})

    def retry_outbox(self, seq: int, by: str) -> None:
        self._store.requeue(seq, by)

    def quarantine(self, unit: str, by: str, reason: str) -> None:
        self._store.set_quarantine(unit, reason, by)

    def release(self, unit: str, by: str) -> None:
        self._store.set_quarantine(unit, None, by)


def _sink_view(name: str, found: tuple[messages.SinkHealth, float] | None, now: float) -> SinkView:
    if found is None:
        return SinkView(name)
    health, heard = found
    next_try = None if health.next_try is None else max(0.0, health.next_try - (now - heard))
    return SinkView(name, health.reachable, health.detail, health.clock_skew, next_try)


def version() -> str:
    return importlib.metadata.version("hallmark-station")
