"""A station to look at: fixed views, a growing list of events, and a real status server on a real socket."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from hal.errors import StoreUnavailable
from station.status.client import StatusClient
from station.status.routes import Groups
from station.status.server import StatusServer
from station.status.view import (
    ClockView,
    DiskView,
    EventView,
    NestState,
    NestView,
    OutboxView,
    SinkView,
    StationState,
    StationView,
    TokenView,
    WorkOrderView,
)

MIB = 1 << 20
GROUPS = Groups("hallmark-operators-of-no-one", "hallmark-engineers-of-no-one")

STATION = StationView(
    name="line-1",
    mode="bench",
    version="0.1.0",
    started_at=1_790_000_000.0,
    uptime=3_725.0,
    token=TokenView("ready", "hallmark-ca", "CN=Hallmark Issuing CA", "2036-01-01T00:00:00Z", 41),
    disk=DiskView(free=900 * MIB, total=4_000 * MIB),
    clock=ClockView(now=1_790_003_725.0),
    work_orders=[WorkOrderView("WO-17", "gw-200", 1000, 41)],
    outcomes={"PASS": 41, "FAIL": 1},
)
WAITING = NestView("D", "usb:1-1.4", NestState.WAITING)
FLASHING = NestView(
    "A", "usb:1-1.1", NestState.BUSY, plugged=True, safe_to_unplug=False, sku="gw-200", visit="v1", unit="u-000042",
    registration_id="4mrkd2q7", step="flash", action="write", phase="apply", step_index=1, step_count=7,
    done=300_000, total=1_000_000, unit_of_progress="octets", started_at=1_790_003_700.0, elapsed=12.0,
    action_elapsed=10.0,
)  # fmt: skip
PASSED = msgspec.structs.replace(
    FLASHING, name="B", place="usb:1-1.2", state=NestState.DONE, safe_to_unplug=True, step="enroll", action="queue",
    phase="", step_index=7, done=0, total=None, elapsed=61.5, outcome="PASS",
)  # fmt: skip
FAILED = msgspec.structs.replace(
    PASSED, name="C", place="usb:1-1.3", step="tpm-identity", step_index=2, outcome="FAIL", problem="DeadlineExceeded",
    message="the TPM did not answer TPM2_CreatePrimary within 90 s",
    hint="Check the cable and the board's power, then plug the board in again.",
)  # fmt: skip
OUTBOX = OutboxView(
    queued=3, parked=0, acknowledged=38, oldest_age=75.0, last_upload_at=1_790_003_650.0,
    sinks=[SinkView("dps", reachable=False, detail="no route to host", next_try=12.0)],
)  # fmt: skip


@dataclass
class FakeControl:
    """A supervisor of views: what it is told it writes down."""

    station: StationView = STATION
    views: list[NestView] = field(default_factory=lambda: [FLASHING, PASSED, FAILED, WAITING])
    box: OutboxView = OUTBOX
    calls: list[tuple[object, ...]] = field(default_factory=list)
    hold: threading.Event | None = None

    def status(self) -> StationView:
        if self.hold is not None:
            self.hold.wait(30)
        return self.station

    def nests(self) -> Sequence[NestView]:
        return list(self.views)

    def outbox(self) -> OutboxView:
        return self.box

    def _become(self, state: StationState, by: str) -> None:
        self.calls.append((state, by))
        self.station = msgspec.structs.replace(self.station, state=state)

    def pause(self, by: str) -> None:
        self._become(StationState.PAUSED, by)

    def resume(self, by: str) -> None:
        self._become(StationState.RUNNING, by)

    def drain(self, by: str) -> None:
        self._become(StationState.DRAINING, by)

    def checkpoint(self, by: str) -> None:
        self.calls.append(("checkpoint", by))

    def retry(self, nest: str, by: str) -> None:
        if nest not in {view.name for view in self.views}:
            raise LookupError(f"there is no nest {nest!r}")
        self.calls.append(("retry", nest, by))

    def retry_outbox(self, seq: int, by: str) -> None:
        self.calls.append(("retry_outbox", seq, by))

    def quarantine(self, unit: str, by: str, reason: str) -> None:
        self.calls.append(("quarantine", unit, by, reason))

    def release(self, unit: str, by: str) -> None:
        self.calls.append(("release", unit, by))

    def offer(self, unit: str, record: str, by: str) -> None:
        self.calls.append(("offer", unit, str(len(record)), by))

    def take_stock(self, file: str, by: str) -> None:
        self.calls.append(("take_stock", file, by))

    def orders(self) -> Sequence[object]:
        return [{"id": "WO-17"}]

    def reconcile(self) -> Sequence[object]:
        return [{"order": "WO-17", "drift": 0}]

    def import_order(self, data: bytes, signature: bytes, by: str) -> None:
        self.calls.append(("import_order", data, signature, by))

    def close_order(self, name: str, reason: str, by: str) -> None:
        self.calls.append(("close_order", name, reason, by))

    def scrap(self, unit: str, reason: str, by: str) -> None:
        self.calls.append(("scrap", unit, reason, by))

    def decide(self, number: int, choice: str, reason: str, by: str) -> None:
        if choice == "no-choice":
            raise ValueError("no choice")
        self.calls.append(("decide", str(number), choice, reason, by))


class FakeRecords:
    """Units by name, and events that a test adds."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._events: list[EventView] = []
        self.broken = False

    def add(self, kind: str, count: int = 1, **detail: str | int) -> None:
        with self._condition:
            for _ in range(count):
                seq = len(self._events) + 1
                self._events.append(
                    EventView(seq, 1_790_000_000.0 + seq, kind, nest="A", detail=dict(detail))
                )
            self._condition.notify_all()

    def units(self, limit: int, after: str | None, query: str | None) -> Sequence[object]:
        names = [f"u-{number:06}" for number in range(20, 0, -1)]
        if after in names:
            names = names[names.index(after) + 1 :]
        return [{"unit": name} for name in names if name.startswith(query or "")][:limit]

    def unit(self, unit: str) -> object | None:
        if self.broken:
            raise StoreUnavailable("the disk is full")
        return {"unit": unit, "registration_id": "4mrkd2q7"} if unit == "u-000001" else None

    def outbox_items(self, limit: int, after: int, state: str | None) -> Sequence[object]:
        return [{"seq": seq, "state": state or "queued"} for seq in range(after + 1, after + 4)][:limit]

    def decisions(self, limit: int, after: int, *, waiting: bool) -> Sequence[object]:
        return [{"id": after + 1, "limit": limit, "waiting": waiting}]

    def lots(self) -> Sequence[object]:
        return [{"lot": "L1", "free": 3}]

    def ek_lists(self) -> Sequence[object]:
        return [{"lot": "L1"}]

    def ek_list_entries(self, lot: str, after: bytes, limit: int) -> Sequence[object]:
        return [{"lot": lot, "after": after, "limit": limit}]

    def unlisted_eks(self, after: str, limit: int) -> Sequence[object]:
        return [{"after": after, "limit": limit}]

    def made_eks(self, after: int, limit: int) -> Sequence[object]:
        return [{"after": after, "limit": limit}]

    def events(self, since: int, limit: int) -> Sequence[EventView]:
        with self._condition:
            return self._events[since : since + limit]

    def last_event(self) -> int:
        with self._condition:
            return len(self._events)

    def wait_event(self, since: int, timeout: float) -> bool:
        with self._condition:
            return self._condition.wait_for(lambda: len(self._events) > since, timeout)


@dataclass
class Served:
    control: FakeControl
    records: FakeRecords
    path: Path
    server: StatusServer
    client: StatusClient

    def again(self) -> Served:
        """The same station, restarted."""
        server = StatusServer(self.control, self.records, self.path, GROUPS)
        server.start()
        return replace(self, server=server)


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """Short, since unix socket paths are, and open to other users."""
    folder = Path(tempfile.mkdtemp(prefix="hm-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def served(socket_folder: Path) -> Iterator[Served]:
    control, records, path = FakeControl(), FakeRecords(), socket_folder / "status.sock"
    server = StatusServer(control, records, path, GROUPS)
    server.start()
    yield Served(control, records, path, server, StatusClient(path))
    server.stop()
