"""What the status socket shows, as types: filled in by the supervisor, sent as JSON, read by the panel.

Data and Protocols only; nothing here acts. Field names are the JSON keys of `/v1/...`, a contract: fields are
only added, and readers ignore those that they don't know. Points in time (`..._at`) are UTC as Unix seconds; lengths
of time are seconds by a clock that doesn't jump. Text that came from a device or a network is untrusted: whoever
shows it escapes it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, Protocol

from msgspec import Struct, field

PAGE_LIMIT: Final = 500
"""Rows of one answer, units or events, at most."""


class StationState(enum.StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    """Boards in their nests finish; no new visit begins until resume."""
    DRAINING = "draining"
    """As paused; once all nests are free the station may be restarted."""


class NestState(enum.StrEnum):
    WAITING = "waiting"
    """Nothing is plugged in, the nest is ready."""
    BUSY = "busy"
    AWAY = "away"
    """In mid-visit the board has gone, as its step declared; it is expected back."""
    DONE = "done"
    """`outcome` is there and stays until the next board."""
    PAUSED = "paused"
    OUT_OF_SERVICE = "out-of-service"
    """Its recipe is broken: `problem`, `message` and `hint` say how."""
    STARTING = "starting"
    """Its worker is being started, again maybe; a board plugged in now waits for it."""


class NestView(Struct, frozen=True):
    """One nest, and its board: the one in it now, or the last one until the next comes."""

    name: str
    place: str
    state: NestState
    plugged: bool = False
    safe_to_unplug: bool = True
    """False while unplugging would interrupt something (it is never lost, but it costs a second visit)."""
    sku: str = ""
    visit: str = ""
    unit: str = ""
    registration_id: str = ""
    step: str = ""
    action: str = ""
    phase: str = ""
    """Of the action: probe, apply, verify, wait."""
    step_index: int = 0
    """1 for the first step; 0 before it."""
    step_count: int = 0
    steps: list[str] = field(default_factory=list)
    """Those of the recipe, in order."""
    done: int = 0
    total: int | None = None
    """Of `done`; None when the action can't tell."""
    unit_of_progress: str = ""
    """"octets" where `done` counts those; else a count of things."""
    started_at: float | None = None
    elapsed: float | None = None
    """Seconds since the visit began, or that it took."""
    action_elapsed: float | None = None
    """Seconds since `done` began to count for this action and phase: a rate is `done / action_elapsed`."""
    worker: int = 0
    """PID of the process that serves the board, 0 when none does."""
    software_tpm: bool = False
    """This board's TPM is a software TPM, which only a bench takes."""
    outcome: str = ""
    """A `hal.errors.Outcome`, or empty."""
    problem: str = ""
    """Code of the error, from `hal.errors`."""
    message: str = ""
    """What happened; while it works or waits, what it is waiting for, where there is something to say."""
    hint: str = ""


class SinkView(Struct, frozen=True):
    name: str
    reachable: bool | None = None
    """None: not tried yet."""
    detail: str = ""
    clock_skew: float | None = None
    """Seconds that the service's clock is ahead of ours."""
    next_try: float | None = None
    """Seconds until then."""


class OutboxView(Struct, frozen=True):
    queued: int = 0
    """Not yet taken by the service; those leased are among them."""
    leased: int = 0
    """With the uploader now."""
    parked: int = 0
    """Refused by the service: they wait for a person."""
    acknowledged: int = 0
    oldest_age: float | None = None
    """Seconds that the oldest of the not acknowledged has waited."""
    last_upload_at: float | None = None
    sinks: list[SinkView] = field(default_factory=list)


class TokenView(Struct, frozen=True):
    """The CA token as the signer last said. `condition`: a `hal.types.TokenCondition`, or "unknown" without signer."""

    condition: str = "unknown"
    label: str = ""
    subject: str = ""
    not_after: str = ""
    """Of the issuing CA's certificate, RFC 3339."""
    issued: int = 0
    problem: str = ""
    hint: str = ""


class DiskView(Struct, frozen=True):
    """Octets of the file system that holds the database; `low`: below what the configuration asks for."""

    free: int = 0
    total: int = 0
    low: bool = False


class ClockView(Struct, frozen=True):
    now: float = 0.0
    trusted: bool = True
    """False: certificates are not issued until the clock is set."""
    detail: str = ""


class WorkOrderView(Struct, frozen=True):
    id: str
    sku: str
    quantity: int
    made: int = 0


class ConfigurationView(Struct, frozen=True):
    """The signed set that the station runs with. `sha256` of set.json, hex."""

    serial: int
    created_at: float
    sha256: str


class AuditView(Struct, frozen=True):
    """`mode`: off, on or required. `signed` of the trail's `records` are under a checkpoint."""

    mode: str = "off"
    records: int = 0
    signed: int = 0
    signed_at: float | None = None
    problem: str = ""
    hint: str = ""


class StationView(Struct, frozen=True):
    name: str
    mode: str
    """"bench" or "production"."""
    version: str
    state: StationState = StationState.RUNNING
    started_at: float = 0.0
    uptime: float = 0.0
    token: TokenView = TokenView()
    disk: DiskView = DiskView()
    clock: ClockView = ClockView()
    audit: AuditView = AuditView()
    work_orders: list[WorkOrderView] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    """Visits that ended since the start, by outcome."""
    configuration: ConfigurationView | None = None
    """None on a bench, where the configuration isn't signed."""
    problems: list[str] = field(default_factory=list)
    """What an engineer should know and no nest shows: a driver left out, discovery that can't look ..."""


class Snapshot(Struct, frozen=True):
    """`/v1/status`: all that a panel needs, in one answer."""

    station: StationView
    nests: list[NestView] = field(default_factory=list)
    outbox: OutboxView = OutboxView()


class EventView(Struct, frozen=True):
    """One line of `/v1/events`. `seq` grows and never repeats; a heartbeat carries the last event's."""

    seq: int
    at: float
    kind: str
    unit: str = ""
    nest: str = ""
    step: str = ""
    detail: dict[str, str | int | float | bool | None] = field(default_factory=dict)


class Failure(Struct, frozen=True):
    """The body of every answer that isn't 2xx. `code` is a class of `hal.errors`, or one of the server's own."""

    code: str
    message: str
    hint: str = ""
    unit: str = ""


class StationControl(Protocol):
    """What the supervisor offers. Called from the server's threads, several at once; none may block for long.

    `by` says who asked ("alice, uid 1000"), for the audit trail. Each raises a HallmarkError that says why not.
    """

    def status(self) -> StationView: ...

    def nests(self) -> Sequence[NestView]: ...

    def outbox(self) -> OutboxView: ...

    def pause(self, by: str) -> None: ...

    def resume(self, by: str) -> None: ...

    def drain(self, by: str) -> None:
        """Returns at once; `status` shows when the nests are free."""

    def checkpoint(self, by: str) -> None:
        """Signs the audit trail now; raises why it can't be."""

    def retry(self, nest: str, by: str) -> None:
        """Begins another visit of the board that sits in the nest. LookupError for a name that isn't a nest's."""

    def retry_outbox(self, seq: int, by: str) -> None:
        """A parked item becomes due again. LookupError for a number that isn't parked."""

    def quarantine(self, unit: str, by: str, reason: str) -> None:
        """LookupError for a unit that doesn't exist."""

    def release(self, unit: str, by: str) -> None:
        """LookupError for a unit that isn't in quarantine."""

    def offer(self, unit: str, record: str, by: str) -> None:
        """Auths from escrow (JSON) for the unit's next visit, kept in memory. LookupError for a unit without a TPM."""

    def take_stock(self, file: str, by: str) -> None:
        """Takes over the lot that a command left in a file of this name. Raises what is wrong with it."""

    def orders(self) -> Sequence[object]:
        """Work orders, for JSON."""

    def reconcile(self) -> Sequence[object]:
        """Each signed order's reckoning, made now. PeerUnavailable without the signer."""

    def import_order(self, data: bytes, signature: bytes, by: str) -> None:
        """OrderRefused for one that no key here has signed."""

    def close_order(self, name: str, reason: str, by: str) -> None:
        """LookupError for one that isn't open."""

    def scrap(self, unit: str, reason: str, by: str) -> None:
        """LookupError for a unit that doesn't exist."""

    def decide(self, number: int, choice: str, reason: str, by: str) -> None:
        """Answers an open question. LookupError for a number that has none, ValueError for a word that is no choice."""


class Records(Protocol):
    """What the store's reads offer, on read-only connections. Everything returned can be written as JSON by msgspec."""

    def units(self, limit: int, after: str | None, query: str | None) -> Sequence[object]:
        """Newest first, beginning behind the unit `after`; `query` finds identifiers by their beginning."""

    def unit(self, unit: str) -> object | None:
        """The whole record by unit or registration ID, None where there is none."""

    def outbox_items(self, limit: int, after: int, state: str | None) -> Sequence[object]:
        """Rows with a number over `after`, in order."""

    def decisions(self, limit: int, after: int, *, waiting: bool) -> Sequence[object]:
        """Questions with a number over `after`, in order; with `waiting` only those without an answer."""

    def lots(self) -> Sequence[object]:
        """Lots of certificates made elsewhere, with what is left of each."""

    def ek_lists(self) -> Sequence[object]:
        """Vendors' lists of EKs that count."""

    def ek_list_entries(self, lot: str, after: bytes, limit: int) -> Sequence[object]:
        """A lot's EKs with a Name over `after`, in order, and the units that have them."""

    def unlisted_eks(self, after: str, limit: int) -> Sequence[object]:
        """EKs of units that no list names, by Name in hex over `after`, in order."""

    def made_eks(self, after: int, limit: int) -> Sequence[object]:
        """EKs of units that passed, by the units' number over `after`, in order."""

    def events(self, since: int, limit: int) -> Sequence[EventView]:
        """Those with a `seq` over `since`, in order."""

    def last_event(self) -> int:
        """The highest `seq` there is, 0 before the first."""

    def wait_event(self, since: int, timeout: float) -> bool:
        """True as soon as there is an event over `since`, False after `timeout` seconds."""
