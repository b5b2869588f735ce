"""What people see of the station and may ask of it: `station.status.view.StationControl` over its parts.
Decides nothing.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from hal.errors import EkMismatch
from station import messages
from station.config import Configuration
from station.escrow_opener import parse
from station.nest.nest import Nest
from station.nest.out_of_service import OutOfService
from station.offered import Offered
from station.order_book import OrderBook, OrderView, Reckoning
from station.status.view import (
    AuditView,
    ClockView,
    ConfigurationView,
    DiskView,
    NestView,
    OutboxView,
    SinkView,
    StationState,
    StationView,
    TokenView,
    WorkOrderView,
)
from station.stock_import import take
from station.store import Store

CLOCK_TOLERANCE: Final = 60.0
"""Seconds that the clock may be set back, as time daemons do."""
MIB: Final = 1 << 20


class Overview:
    """Called from the status server's threads, several at once."""

    def __init__(
        self,
        configuration: Configuration,
        store: Store,
        nests: Mapping[str, Nest | OutOfService],
        token: Callable[[], TokenView],
        problems: Callable[[], list[str]],
        audit: Callable[[], AuditView],
        checkpoint: Callable[[], object],
        offered: Offered,
        orders: OrderBook,
    ) -> None:
        self._orders = orders
        self._configuration, self._store, self._nests = configuration, store, nests
        self._token, self._problems = token, problems
        self._audit, self._checkpoint, self._offered = audit, checkpoint, offered
        self._state = StationState.RUNNING
        self._began, self._started_at = time.monotonic(), time.time()
        self._newest_at = max((event.at for event in store.events(store.last_event() - 1, 1)), default=0.0)
        self._lock = threading.Lock()
        self._sinks: dict[str, tuple[messages.SinkHealth, float]] = {}

    def sink_health(self, health: messages.SinkHealth) -> None:
        """How the uploader sees a sink, from now on."""
        with self._lock:
            self._sinks[health.sink] = (health, time.monotonic())

    # --- what people see ---

    def status(self) -> StationView:
        file = self._configuration.file
        usage = shutil.disk_usage(self._configuration.paths.state)
        trouble = [self._store.trouble] if self._store.trouble else []
        if (waiting := self._store.decisions_waiting()) > 0:
            trouble.append(f"{waiting} decision(s) wait for an engineer: see `hallmark decisions`")
        return StationView(
            name=file.station.name,
            mode=file.station.mode,
            version=version(),
            state=self._state,
            started_at=self._started_at,
            uptime=time.monotonic() - self._began,
            token=self._token(),
            disk=DiskView(usage.free, usage.total, usage.free < file.station.minimum_free_mib * MIB),
            clock=self._clock(),
            audit=self._audit(),
            work_orders=[
                WorkOrderView(order.id, order.sku, order.quantity, order.passed - order.given_back)
                for order in self._store.work_orders()
            ],
            configuration=_released(self._configuration),
            outcomes=dict(sum((nest.outcomes for nest in self._nests.values()), Counter[str]())),
            problems=[*self._problems(), *trouble],
        )

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
                _sink(section.name, sinks.get(section.name), now) for section in self._configuration.file.sink
            ],
        )

    def _clock(self) -> ClockView:
        """A clock behind what was on record at the start, or set back since, is told; the signer judges for itself."""
        now = time.time()
        expected = max(self._newest_at, self._started_at + time.monotonic() - self._began)
        if now >= expected - CLOCK_TOLERANCE:
            return ClockView(now=now)
        return ClockView(now=now, trusted=False, detail=f"the clock is {expected - now:.0f} s behind")

    # --- what people ask for ---

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

    def checkpoint(self, by: str) -> None:
        self._store.append_event("checkpoint-asked", fields={"by": by})
        self._checkpoint()

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

    def offer(self, unit: str, record: str, by: str) -> None:
        brought = parse(record.encode())
        found = self._store.unit(unit)
        names = [item.value for item in found.identifiers if item.kind == "ek-name"] if found else []
        if found is None or not names:
            raise LookupError(f"there is no unit {unit} with a TPM")
        if brought.ek_name.hex() not in names:
            raise EkMismatch("these auths are of another TPM than the unit's")
        fields: dict[str, str | int] = {
            "by": by,
            "hierarchies": ",".join(sorted(brought.auths)),
            "generation": brought.generation,
        }
        self._store.append_event("auths-offered", unit=found.summary.unit, fields=fields)
        self._offered.put(brought.ek_name, brought.auths, by)

    def take_stock(self, file: str, by: str) -> None:
        take(self._configuration.paths, self._store, file, by)

    def orders(self) -> Sequence[OrderView]:
        return self._orders.listed()

    def reconcile(self) -> Sequence[Reckoning]:
        return self._orders.reconcile()

    def import_order(self, data: bytes, signature: bytes, by: str) -> None:
        self._orders.take(data, signature, by)

    def close_order(self, name: str, reason: str, by: str) -> None:
        self._orders.close(name, reason, by)

    def scrap(self, unit: str, reason: str, by: str) -> None:
        self._orders.scrap(unit, reason, by)

    def decide(self, number: int, choice: str, reason: str, by: str) -> None:
        self._store.decide(number, choice, reason, by)


def _released(configuration: Configuration) -> ConfigurationView | None:
    found = configuration.released
    if found is None:
        return None
    return ConfigurationView(found.serial, found.created.timestamp(), found.digest.hex())


def _sink(name: str, found: tuple[messages.SinkHealth, float] | None, now: float) -> SinkView:
    if found is None:
        return SinkView(name)
    health, heard = found
    next_try = None if health.next_try is None else max(0.0, health.next_try - (now - heard))
    return SinkView(name, health.reachable, health.detail, health.clock_skew, next_try)


def version() -> str:
    return importlib.metadata.version("hallmark-station")
