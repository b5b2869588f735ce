"""The time that certificates are dated with: the machine's clock, as long as nothing speaks against it.

A high-water mark in the ledger says which time this station has seen already, and how much of this boot had passed
then (CLOCK_BOOTTIME, which nobody can set). A clock that went back, that shows a time before the CA's, or that moved
ahead by more than can have passed, stops issuing until it is right again or a permitted person accepts what it shows.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import apsw
import structlog

from hal.errors import ClockUntrusted
from station.notify import boot_id
from station.signer.generations import Generations, note_in
from station.signer.ledger import Ledger

RELEASED: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
"""No clock that is right shows a time before this program was written: it finds clocks that were reset."""
TOLERANCE: Final = dt.timedelta(minutes=5)
"""How far a clock may be set back by ordinary time synchronisation."""
MARK_SECONDS: Final = 60
"""The mark is moved at least so often while the signer runs; each certificate moves it too."""
CONFIRM_SECONDS: Final = 3600
"""How far the time that a person has seen and accepted may lie back when the signer hears of it."""
HINT: Final = (
    "Set the station's clock. If it is right, an engineer says so: `hallmark ca accept-clock --reason TEXT`."
)
FORMAT: Final = "%Y-%m-%d %H:%M UTC"

_log = structlog.get_logger()


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine's own clocks. `boot` names this boot; `uptime` is CLOCK_BOOTTIME, in seconds."""

    now: Callable[[], dt.datetime] = utc_now
    boot: Callable[[], str] = boot_id
    uptime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Limits:
    """`jump`: how far ahead a running machine's clock may move beyond what has passed. `off`: how long a station may
    have been off, and be believed about it.
    """

    jump: dt.timedelta
    off: dt.timedelta


@dataclass(frozen=True, slots=True)
class Mark:
    """What was believed last. `at`: the latest time, Unix seconds.

    `anchor` and `uptime` belong together, once in a boot: what the clock showed, and how long the boot had lasted.
    `corrected`: whether the clock was put right in that boot after an absence. That is believed once in each: machines
    without a battery start with the time at which they ended, and learn the right one minutes later.
    """

    at: int
    boot: str
    anchor: int
    uptime: int
    corrected: bool


class TrustedClock:
    """Thread-safe."""

    def __init__(
        self, ledger: Ledger, generations: Generations, limits: Limits, machine: Machine | None = None
    ) -> None:
        self._ledger, self._generations, self._limits = ledger, generations, limits
        self._machine = machine or Machine()
        self._lock = threading.Lock()
        self._mark = self._kept = self._load()
        self._told: ClockUntrusted | None = None

    def now(self) -> dt.datetime:
        """The time; ClockUntrusted says what speaks against it, and what was expected."""
        with self._lock:
            now, mark = self._judged()
            kept = self._kept
            # What was believed once in this boot must not be believed again after a crash: durable at once.
            if (
                kept is None
                or mark.at - kept.at >= MARK_SECONDS
                or dataclasses.replace(mark, at=kept.at) != kept
            ):
                with self._ledger.using() as db, db:
                    _write(db, mark)
                self._kept = mark
            self._mark = mark
        return now

    def shown(self) -> dt.datetime:
        """What the machine's clock shows, whether that can be or not."""
        return self._machine.now()

    def problem(self) -> ClockUntrusted | None:
        """What speaks against the clock now."""
        try:
            self.now()
        except ClockUntrusted as error:
            return error
        return None

    def look(self) -> None:
        """To be called all the time: moves the mark along with a clock that is believed, and logs one that isn't."""
        problem = self.problem()
        if (problem is None) != (self._told is None):
            _log.warning(
                "the clock is " + ("not believed" if problem else "believed again"),
                problem=str(problem or ""),
            )
        self._told = problem

    def accept(self, shown: dt.datetime, by: str, reason: str) -> dt.datetime:
        """Believes the clock from now on, since `by` has compared `shown` with another one. The mark moves there.

        ClockUntrusted when the clock shows something else by now, or a time that can't be.
        """
        with self._lock:
            now = self._machine.now()
            self._check_floor(now)
            if abs((now - shown).total_seconds()) > CONFIRM_SECONDS:
                message = f"the clock shows {now:{FORMAT}} now, and {shown:{FORMAT}} was accepted"
                raise ClockUntrusted(message, hint="Look at the clock again, then accept what it shows.")
            mark = self._anchored(now, corrected=True)
            was = f"{_moment(self._mark.at):{FORMAT}}" if self._mark else "none"
            with self._ledger.using() as db, db:
                _write(db, mark)
                note_in(db, mark.at, by, "accept-clock", f"mark {was}, clock {now:{FORMAT}}: {reason}")
            self._mark = self._kept = mark
        _log.warning("the clock was accepted", by=by, before=was, now=f"{now:{FORMAT}}")
        return now

    def _judged(self) -> tuple[dt.datetime, Mark]:
        """The time, and the mark that goes with it."""
        now, mark = self._machine.now(), self._mark
        self._check_floor(now)
        if mark is None:
            return now, self._anchored(now, corrected=True)
        same, seen = self._boot() == mark.boot, _moment(mark.at)
        passed = self._machine.uptime() - mark.uptime
        expected = _moment(mark.anchor) + dt.timedelta(seconds=passed) if same else seen
        jump, ahead = self._limits.jump, now - expected
        if now + TOLERANCE < seen or (same and ahead < -jump):
            latest = max(seen, expected)
            message = f"the clock went back: it shows {now:{FORMAT}}; expected was about {latest:{FORMAT}}"
            raise ClockUntrusted(message, hint=HINT)
        if same and ahead <= jump:
            return now, dataclasses.replace(mark, at=max(int(now.timestamp()), mark.at))
        if ahead <= self._limits.off and not (same and mark.corrected):
            made = self._anchored(now, corrected=same or ahead > jump)
            return now, dataclasses.replace(made, at=max(made.at, mark.at))
        why = "jumped ahead" if same else "is far ahead of when this station was last on"
        message = f"the clock {why}: it shows {now:{FORMAT}}; expected was about {expected:{FORMAT}}"
        raise ClockUntrusted(message, hint=HINT)

    def _check_floor(self, now: dt.datetime) -> None:
        active = self._generations.active(now)
        floor = max(RELEASED, active.authority.not_before) if active else RELEASED
        if now < floor:
            what = "the issuing CA's certificate begins" if floor > RELEASED else "this program was written"
            message = f"the clock shows {now:{FORMAT}}, which is before {what}: {floor:{FORMAT}}"
            raise ClockUntrusted(message)

    def _anchored(self, now: dt.datetime, *, corrected: bool) -> Mark:
        at = int(now.timestamp())
        return Mark(at, self._boot(), at, int(self._machine.uptime()), corrected)

    def _boot(self) -> str:
        return self._machine.boot().replace("-", "")

    def _load(self) -> Mark | None:
        with self._ledger.using() as db:
            row: Any = db.execute("SELECT mark, boot, anchor, uptime, corrected FROM clock").fetchone()
            newest: Any = db.execute("SELECT intended_at FROM certificates ORDER BY id DESC LIMIT 1").get
        if row is not None:
            at, boot, anchor, uptime, corrected = row
            return Mark(max(at, newest or 0), boot, anchor, uptime, bool(corrected))
        # A ledger of a release that kept no marks: no honest clock shows an earlier time than its last intent.
        return None if newest is None else Mark(newest, "", newest, 0, corrected=False)


def _write(db: apsw.Connection, mark: Mark) -> None:
    db.execute(
        "INSERT OR REPLACE INTO clock (id, mark, boot, anchor, uptime, corrected) VALUES (1, ?, ?, ?, ?, ?)",
        (mark.at, mark.boot, mark.anchor, mark.uptime, int(mark.corrected)),
    )


def _moment(at: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)
