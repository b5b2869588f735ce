"""Any order of plugging, joining, issuing, finishing, uploading and restarting keeps the store's invariants."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hal.errors import DuplicateKey, IdentityConflict, Outcome, Quarantined, QuotaSpent
from station import messages
from station.store import Store
from station.wire import Problem
from tests import store_parts as parts

NESTS = st.sampled_from(["A", "B", "C"])
BOARDS = st.integers(1, 4)
QUANTITY = 3
UNIQUE = (
    (
        "a unit has two on their way to one sink",
        "SELECT 1 FROM outbox WHERE state = 'queued' GROUP BY unit, kind, sink",
    ),
    ("a key has two units", "SELECT 1 FROM certificates GROUP BY key"),
    ("an EK has two units", "SELECT 1 FROM identifiers WHERE kind = 'ek-name' GROUP BY value"),
    ("a serial has two units", "SELECT 1 FROM identifiers WHERE kind = 'serial' GROUP BY value"),
    (
        "a unit is in two nests",
        "SELECT 1 FROM visits WHERE closed IS NULL AND unit IS NOT NULL GROUP BY unit",
    ),
)


class Station(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "station.db"
        self.passed: set[int] = set()
        self.acknowledged: dict[int, bytes] = {}
        self.certificates: dict[str, list[bytes]] = {}
        self.held: list[messages.Item] = []
        self.start()

    def start(self) -> None:
        self.store = Store.open(self.path, ballast=4096)
        self.store.recover()
        self.store.load_work_orders([("WO-1", parts.SKU, QUANTITY)])
        self.visits: dict[str, tuple[str, int | None]] = {}
        self.held = []

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(nest=NESTS)
    def plug(self, nest: str) -> None:
        self.visits[nest] = (parts.plug(self.store, nest), None)

    @rule(nest=NESTS, board=BOARDS, serial=BOARDS)
    def join(self, nest: str, board: int, serial: int) -> None:
        """A board that may claim another one's serial."""
        if nest not in self.visits:
            return
        visit, _ = self.visits[nest]
        try:
            parts.join(self.store, visit, board, [("serial", f"SN-{serial}")])
        except (IdentityConflict, QuotaSpent):
            return
        self.visits[nest] = (visit, board)

    @rule(nest=NESTS, key=st.integers(1, 5))
    def certify(self, nest: str, key: int) -> None:
        visit, board = self.visits.get(nest, ("", None))
        if board is None:
            return
        name = f"board-{board}"
        try:
            self.store.record_certificate(visit, "p", parts.chain(key))
        except DuplicateKey:
            assert self.certificates.get(name) != parts.chain(key)
        else:
            assert self.certificates.setdefault(name, parts.chain(key)) == parts.chain(key)

    @rule(nest=NESTS)
    def protect(self, nest: str) -> None:
        visit, board = self.visits.get(nest, ("", None))
        if board is not None:
            name = parts.ek_name(board)
            number = self.store.next_generation(name)
            assert self.store.protect(visit, name, ["owner"], b"s", b"w%d" % number, number) == number
            assert self.store.resume_copy(visit, name) == (number, b"w%d" % number)

    @rule(nest=NESTS, text=st.sampled_from(["", "reworked"]))
    def finish(self, nest: str, text: str) -> None:
        visit, board = self.visits.get(nest, ("", None))
        if board is None:
            return
        content = parts.enrollment(board, text)
        record = self.store.unit(f"board-{board}")
        assert record is not None
        aside = record.summary.quarantine is not None
        try:
            self.store.finish(visit, "enroll", "queue", {}, content, ["dps"], b"archive %d" % board)
        except QuotaSpent:
            assert board not in self.passed
            return
        except Quarantined:  # a board that contradicts it came meanwhile
            assert aside
            return
        assert not aside
        self.passed.add(board)
        del self.visits[nest]

    @rule(nest=NESTS, outcome=st.sampled_from([Outcome.FAIL, Outcome.ABORTED]))
    def fail(self, nest: str, outcome: Outcome) -> None:
        if nest in self.visits:
            assert self.store.fail(self.visits.pop(nest)[0], "a", "b", "DeviceGone", "gone", "", outcome)

    @rule(most=st.integers(1, 3))
    def lease(self, most: int) -> None:
        found = self.store.lease("dps", most, "me")
        seqs = {item.seq for item in self.held}
        assert not seqs & {item.seq for item in found}
        self.held += found

    @rule(code=st.sampled_from([None, "Throttled", "Rejected"]))
    def report(self, code: str | None) -> None:
        if self.held:
            item = self.held.pop(0)
            problem = Problem(code, "no", "look") if code else None
            self.store.report([messages.Outcome(item.seq, etag="e", problem=problem)], "me")
            if code is None:
                self.acknowledged[item.seq] = item.enrollment

    @rule()
    def hang_up(self) -> None:
        self.store.release("me")
        self.held = []

    @rule()
    def retry_parked(self) -> None:
        for row in self.store.outbox_items(100, state="parked"):
            self.store.requeue(row.seq)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.start()

    @invariant()
    def nothing_is_there_in_half(self) -> None:
        halves = [row for row in parts.rows(self.path, parts.HALVES) if "copy for resume" not in row[0]]
        assert halves == []

    @invariant()
    def what_is_one_stays_one(self) -> None:
        for what, query in UNIQUE:
            assert parts.rows(self.path, f"{query} HAVING count(*) > 1") == [], what

    @invariant()
    def what_passed_or_was_acknowledged_stays(self) -> None:
        units = self.store.units(100)  # a board that contradicts it puts a passed unit into quarantine
        assert {f"board-{board}" for board in self.passed} == {
            unit.registration_id for unit in units if unit.passed_at is not None
        }
        found = dict(parts.rows(self.path, "SELECT seq, content FROM outbox WHERE state = 'acknowledged'"))
        assert found == self.acknowledged
        assert len(self.passed) <= QUANTITY


TestStation = Station.TestCase
TestStation.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
