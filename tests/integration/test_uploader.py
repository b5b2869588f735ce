"""The uploader process between a small outbox and the emulated DPS: killed or cut off, it loses and doubles nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hal.errors import PeerUnavailable
from hal.types import Enrollment
from station.enrollment import to_json
from station.messages import Batch, Item, Lease, Ok, Outcome, Report, SinkHealth, UploaderSays
from station.outbox import OutboxServer
from station.paths import Paths
from station.store import Store
from station.wire import Link, listen
from tests import store_parts
from tests.fixtures_dps import KEY, POLICY, ROOT, Emulator, unit

SECONDS = 30.0


@dataclass
class Outbox:
    """The station's end: rows, leases that end with their connection, and all that was said."""

    path: Path
    rows: dict[int, Item] = field(default_factory=dict)
    done: dict[int, Outcome] = field(default_factory=dict)
    parked: dict[int, Outcome] = field(default_factory=dict)
    health: list[SinkHealth] = field(default_factory=list)
    reports: int = 0
    deaf: bool = False
    """Reports are neither recorded nor answered: the moment between upload and receipt lasts as long as wanted."""

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self._leased: dict[int, int] = {}
        self._links: list[Link[UploaderSays]] = []
        self._server: socket.socket | None = None

    def put(self, *enrollments: Enrollment) -> None:
        with self.changed:
            for enrollment in enrollments:
                self.put_raw(enrollment.registration_id, to_json(enrollment))

    def put_raw(self, name: str, content: bytes) -> None:
        with self.changed:
            seq = len(self.rows) + 1
            self.rows[seq] = Item(seq, name, content, 0)
            self.changed.notify_all()

    def start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._server = listen(self.path)
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def stop(self) -> None:
        assert self._server is not None
        with self.changed:
            # shutdown wakes the thread in accept(), which close alone would not
            self._server.shutdown(socket.SHUT_RDWR)
            self._server.close()
            for link in self._links:
                with contextlib.suppress(OSError):
                    link.close()
            self._links.clear()

    def until(self, what: Callable[[], bool], seconds: float = SECONDS) -> None:
        with self.changed:
            assert self.changed.wait_for(what, seconds), (
                f"done {sorted(self.done)}, parked {self.parked}, {self.health[-2:]}"
            )

    def until_empty(self, seconds: float = SECONDS) -> None:
        self.until(lambda: not self._open(), seconds)

    @property
    def leased(self) -> int:
        return len(self._leased)

    def _open(self) -> list[Item]:
        return [item for seq, item in self.rows.items() if seq not in self.done and seq not in self.parked]

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            link: Link[UploaderSays] = Link(connection, UploaderSays)
            with self.changed:
                self._links.append(link)
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: Link[UploaderSays]) -> None:
        try:
            while True:
                message = link.receive()
                if self.deaf and isinstance(message, Report):
                    with self.changed:
                        self.reports += 1
                        self.changed.notify_all()
                    link.receive()  # until the uploader's death closes it
                link.send(self._answer(id(link), message))
        except (PeerUnavailable, OSError):
            with self.changed:
                self._leased = {seq: owner for seq, owner in self._leased.items() if owner != id(link)}
                self.changed.notify_all()

    def _answer(self, owner: int, message: UploaderSays) -> Batch | Ok:
        with self.changed:
            if isinstance(message, Lease):
                free = lambda: [item for item in self._open() if item.seq not in self._leased]
                self.changed.wait_for(lambda: bool(free()), message.wait)
                chosen = sorted(free(), key=lambda item: (item.tries, item.seq))[: message.most]
                self._leased |= dict.fromkeys((item.seq for item in chosen), owner)
                self.changed.notify_all()
                return Batch(chosen)
            if isinstance(message, Report):
                self._record(message)
            else:
                self.health.append(message)
            self.changed.notify_all()
            return Ok()

    def _record(self, report: Report) -> None:
        for outcome in report.outcomes:
            del self._leased[outcome.seq]
            old = self.rows[outcome.seq]
            self.rows[outcome.seq] = Item(old.seq, old.registration_id, old.enrollment, old.tries + 1)
            if outcome.problem is None:
                self.done[outcome.seq] = outcome
            elif not outcome.problem.error().retryable:
                self.parked[outcome.seq] = outcome


@dataclass
class Uploader:
    """`hallmark uploader` below `root`."""

    root: Path
    child: subprocess.Popen[bytes] | None = None

    def configure(self, endpoint: str, driver: str = "azure-dps") -> None:
        settings = {"endpoint": endpoint, "policy": POLICY, "key": "dps-key"}
        sink = "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items()) + " }"
        folder = self.root / "etc/hallmark"
        (folder / "credentials").mkdir(parents=True, exist_ok=True)
        (folder / "station.toml").write_text(
            f'[station]\nname = "t"\nmode = "bench"\ndrivers = ["pkcs11", "{driver}"]\n'
            f'[[sink]]\nname = "dps"\ndriver = "{driver}"\nsettings = {sink}\n'
        )
        self.key.write_text(KEY)
        self.key.chmod(0o600)

    @property
    def key(self) -> Path:
        return self.root / "etc/hallmark/credentials/dps-key"

    def start(self, **environment: str) -> None:
        log = (self.root / "uploader.log").open("ab")
        with log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "station.cli", "--root", str(self.root), "uploader"],
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], **environment},
                stderr=log,
            )

    def end(self, number: int = signal.SIGTERM, seconds: float = 10) -> int:
        assert self.child is not None
        self.child.send_signal(number)
        return self.child.wait(seconds)

    @property
    def log(self) -> str:
        return (self.root / "uploader.log").read_text()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    found = Outbox(Paths(tmp_path).outbox_socket)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def uploader(tmp_path: Path, emulator: Emulator) -> Iterator[Uploader]:
    found = Uploader(tmp_path)
    found.configure(emulator.endpoint)
    yield found
    if found.child is not None and found.child.poll() is None:
        found.end(signal.SIGKILL)


def units(count: int, start: int = 0) -> list[Enrollment]:
    return [unit(f"gw-{number}", 0, sku="gw-200") for number in range(start, start + count)]


def test_everything_queued_gets_its_receipt(outbox: Outbox, uploader: Uploader, emulator: Emulator) -> None:
    outbox.put(*units(23))
    uploader.start()
    outbox.until_empty()
    outbox.until(lambda: bool(outbox.health))
    assert {record["registrationId"] for record in emulator.control.enrollments()} == {
        f"gw-{n}" for n in range(23)
    }
    bodies = [entry["body"] for entry in emulator.control.requests()]
    assert [len(body["enrollments"]) for body in bodies] == [10, 10, 3]
    assert json.loads(outbox.done[1].sent) == bodies[0]["enrollments"][0]
    assert outbox.health[-1].reachable
    assert uploader.end() == 0
    assert KEY not in uploader.log
    assert "SharedAccessSignature" not in uploader.log


def test_a_service_that_is_away_is_waited_for(outbox: Outbox, uploader: Uploader, emulator: Emulator) -> None:
    emulator.control.away()
    outbox.put(*units(3))
    uploader.start()
    outbox.until(lambda: len(outbox.health) >= 2)
    assert not any(health.reachable for health in outbox.health)
    assert all(health.next_try is not None for health in outbox.health)
    assert "Connection refused" in outbox.health[-1].detail
    assert not outbox.parked
    emulator.control.back()
    outbox.until_empty()
    outbox.until(lambda: outbox.health[-1].reachable)


def test_throttling_is_respected_and_shown(outbox: Outbox, uploader: Uploader, emulator: Emulator) -> None:
    emulator.control.fail(429, retry_after=1)
    outbox.put(*units(2))
    uploader.start()
    outbox.until_empty()
    first = outbox.health[0]
    assert first.reachable
    assert first.next_try is not None
    assert first.next_try >= 1
    times = [entry["at"] for entry in emulator.control.requests()]
    assert len(times) == 2


def test_killed_between_upload_and_receipt_it_doubles_nothing(
    outbox: Outbox, uploader: Uploader, emulator: Emulator
) -> None:
    outbox.deaf = True
    outbox.put(*units(5))
    uploader.start()
    outbox.until(lambda: outbox.reports == 1)
    before = {record["registrationId"]: record["etag"] for record in emulator.control.enrollments()}
    assert len(before) == 5, "the service has them, the station doesn't know"
    uploader.end(signal.SIGKILL)
    outbox.until(lambda: outbox.leased == 0)
    assert not outbox.done
    outbox.deaf = False
    uploader.start()
    outbox.until_empty()
    assert all(outcome.existed for outcome in outbox.done.values())
    assert {record["registrationId"]: record["etag"] for record in emulator.control.enrollments()} == before


def test_killed_at_any_moment_each_enrollment_is_there_once(
    outbox: Outbox, uploader: Uploader, emulator: Emulator
) -> None:
    emulator.control.weather(latency=0.05)
    outbox.put(*units(40))
    for moment in (0.35, 0.45, 0.55, 0.65):
        uploader.start()
        outbox.changed.acquire()
        outbox.changed.wait_for(lambda: not outbox._open(), moment)
        outbox.changed.release()
        uploader.end(signal.SIGKILL)
    uploader.start()
    outbox.until_empty()
    names = [record["registrationId"] for record in emulator.control.enrollments()]
    assert sorted(names) == sorted(f"gw-{n}" for n in range(40))
    assert sorted(outbox.done) == list(range(1, 41))
    assert not outbox.parked


def test_an_answer_that_is_lost_ends_in_a_receipt(
    outbox: Outbox, uploader: Uploader, emulator: Emulator
) -> None:
    emulator.control.fail(0)
    outbox.put(*units(4))
    uploader.start()
    outbox.until_empty()
    assert all(outcome.existed for outcome in outbox.done.values())


def test_a_station_that_restarts_is_found_again(outbox: Outbox, uploader: Uploader) -> None:
    outbox.put(*units(2))
    uploader.start()
    outbox.until_empty()
    outbox.stop()
    outbox.put(*units(2, start=2))
    outbox.health.clear()
    outbox.start()
    outbox.until_empty()
    outbox.until(lambda: bool(outbox.health))
    assert outbox.health[0].reachable, "a new station is told how the service is seen"
    assert uploader.child is not None
    assert uploader.child.poll() is None


def test_it_ends_at_once_while_the_service_is_silent(
    outbox: Outbox, uploader: Uploader, emulator: Emulator
) -> None:
    emulator.control.weather(latency=20)
    outbox.put(*units(3))
    uploader.start()
    outbox.until(lambda: outbox.leased == 3)
    began = time.monotonic()
    assert uploader.end() == 0
    assert time.monotonic() - began < 3
    outbox.until(lambda: outbox.leased == 0)
    assert not outbox.done
    assert not outbox.parked


def test_a_missing_credential_parks_nothing_and_is_picked_up(outbox: Outbox, uploader: Uploader) -> None:
    uploader.key.unlink()
    outbox.put(*units(2))
    uploader.start()
    outbox.until(lambda: bool(outbox.health))
    assert "dps-key" in outbox.health[0].detail
    assert not outbox.parked
    uploader.key.write_text(KEY)
    uploader.key.chmod(0o644)
    outbox.until(lambda: "open to every user" in outbox.health[-1].detail)
    uploader.key.chmod(0o600)
    outbox.until_empty()
    assert len(outbox.done) == 2


def test_what_cant_be_read_is_parked_and_the_rest_goes_on(outbox: Outbox, uploader: Uploader) -> None:
    outbox.put_raw("broken", b"{")
    outbox.put(*units(2))
    uploader.start()
    outbox.until_empty()
    assert sorted(outbox.done) == [2, 3]
    (parked,) = outbox.parked.values()
    assert parked.problem is not None
    assert parked.problem.code == "Rejected"


def test_systemd_is_told_and_the_watchdog_fed(outbox: Outbox, uploader: Uploader, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        heard.settimeout(SECONDS)
        uploader.start(NOTIFY_SOCKET=str(path), WATCHDOG_USEC="1500000")
        assert heard.recv(1000).startswith(b"READY=1")
        assert heard.recv(1000) == b"WATCHDOG=1"
        uploader.end()
        while not (said := heard.recv(1000)).startswith(b"STOPPING=1"):
            assert said == b"WATCHDOG=1"


@pytest.mark.parametrize(("driver", "words"), [("pkcs11", "EnrollmentSink"), ("unheard-of", "unheard-of")])
def test_a_sink_that_cant_be_is_a_configuration_error(uploader: Uploader, driver: str, words: str) -> None:
    uploader.configure("http://127.0.0.1:1", driver)
    uploader.start()
    assert uploader.child is not None
    assert uploader.child.wait(20) == 2
    assert words in uploader.log


def test_it_has_no_devices_no_token_and_no_database() -> None:
    """The process that meets the network doesn't even load what could touch them."""
    script = (
        "import sys; import station.commands.uploader, drivers.azure_dps.driver\n"
        "bad = ('drivers.tpm', 'drivers.pkcs11', 'drivers.serial', 'drivers.smp', 'station.store', 'station.signer')\n"
        "found = [m for m in sys.modules if m.startswith((*bad, 'tpm2_pytss', 'pkcs11', 'serial', 'apsw', 'pyudev'))]\n"
        "sys.exit(', '.join(found) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_killed_again_and_again_the_stations_own_outbox_ends_with_every_receipt(
    uploader: Uploader, emulator: Emulator, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real server and store on the other side of the socket."""
    monkeypatch.setattr(
        store_parts, "enrollment", lambda board, text="": to_json(unit(f"board-{board}", 0, sku="gw-200"))
    )
    emulator.control.weather(latency=0.03)
    health: list[SinkHealth] = []
    path = Paths(uploader.root).outbox_socket
    path.parent.mkdir(parents=True, exist_ok=True)
    server = OutboxServer(store, path, health.append)
    server.start()
    try:
        for board in range(1, 25):
            store_parts.trip(store, board)
        for moment in (0.4, 0.5, 0.6):
            uploader.start()
            _wait_empty(store, moment)
            uploader.end(signal.SIGKILL)
        uploader.start()
        assert _wait_empty(store, SECONDS)
        names = [record["registrationId"] for record in emulator.control.enrollments()]
        assert sorted(names) == sorted(f"board-{board}" for board in range(1, 25))
        assert store.depth().acknowledged == 24
        assert store.depth().parked == 0
        uploader.end()
    finally:
        server.stop()


def _wait_empty(store: Store, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while store.depth().queued:
        seen = store.changes()
        left = until - time.monotonic()
        if left <= 0:
            return False
        if store.depth().queued:
            store.wait_change(seen, left)
    return True
