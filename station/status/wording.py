"""Views in words and figures: what a nest is doing, how far it is, what needs attention. Plain text, no terminal.

Everything that a device or a network said goes through `shown` before it gets near a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from station.redaction import clean_text
from station.status.view import (
    ConfigurationView,
    NestState,
    NestView,
    OutboxView,
    SinkView,
    Snapshot,
    StationState,
    StationView,
)

STATES: Final = {
    NestState.WAITING: "ready for a board",
    NestState.BUSY: "busy",
    NestState.AWAY: "board resets, it comes back by itself",
    NestState.DONE: "done",
    NestState.PAUSED: "paused",
    NestState.OUT_OF_SERVICE: "out of service",
    NestState.STARTING: "starting",
}
MINUTE: Final = 60
HOUR: Final = 3600
DAY: Final = 86400


def shown(text: str, limit: int = 300) -> str:
    """Untrusted text made fit for a terminal: no control characters, nothing that reorders, bounded."""
    text = clean_text(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def duration(seconds: float) -> str:
    """As "8 s", "3 min 20 s", "2 h 5 min", "4 d 3 h": two figures are enough."""
    whole = max(0, int(seconds))
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def octets(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def clock(at: float) -> str:
    """Local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def progress(nest: NestView) -> str:
    """As "30 %  30.0 kB/s  23 s left", or as much of it as can be said; without figures, how long it has taken."""
    parts: list[str] = []
    if nest.total:
        parts.append(f"{min(100, 100 * nest.done // nest.total)} %")
    spent = nest.action_elapsed or 0.0
    if nest.done > 0 and spent >= 0.5:
        rate = nest.done / spent
        if nest.unit_of_progress == "octets":
            parts.append(f"{octets(rate)}/s")
        if nest.total and nest.total > nest.done:
            parts.append(f"{duration((nest.total - nest.done) / rate)} left")
    elif spent >= 1:
        parts.append(duration(spent))
    return "  ".join(parts)


def doing(nest: NestView) -> str:
    """As "step 2/7 flash, write (apply)"."""
    if not nest.step:
        return ""
    action = f", {nest.action}" if nest.action else ""
    phase = f" ({nest.phase})" if nest.phase else ""
    return shown(f"step {nest.step_index}/{nest.step_count} {nest.step}{action}{phase}", 100)


def position(nest: NestView, limit: int) -> str:
    """Name and place, as "A · usb:1-1.2". Of a place that is too long the end remains, which tells ports apart."""
    name, place = shown(nest.name, 20), shown(nest.place)
    room = max(8, limit - len(name) - len(" · "))
    return f"{name} · {place if len(place) <= room else '…' + place[1 - room :]}"


def board(nest: NestView) -> str:
    return "  ".join(shown(part, 60) for part in (nest.sku, nest.registration_id or nest.unit) if part)


def state(station: StationView, nests: list[NestView]) -> str:
    busy = sum(nest.state in (NestState.BUSY, NestState.AWAY) for nest in nests)
    match station.state:
        case StationState.PAUSED:
            return f"PAUSED, {busy} nests finish" if busy else "PAUSED"
        case StationState.DRAINING:
            return f"DRAINING, {busy} nests to go" if busy else "DRAINED: it may be restarted"
        case _:
            return "running"


def attention(snapshot: Snapshot) -> list[str]:
    """What a person has to do something about. An unreachable service isn't: being offline is normal."""
    station, found = snapshot.station, []
    token = station.token
    if token.condition != "ready":
        said = shown(token.problem) or f"the CA token is {shown(token.condition, 40)}"
        found.append(f"CA token: {said}. {shown(token.hint)}".strip())
    found += [
        f"Nest {shown(nest.name, 20)} is out of service: {shown(nest.message)}. {shown(nest.hint)}"
        for nest in snapshot.nests
        if nest.state is NestState.OUT_OF_SERVICE
    ]
    if station.disk.low:
        found.append(
            f"Disk: only {octets(station.disk.free)} free. Free some space before boards have to wait."
        )
    if not station.clock.trusted:
        found.append(f"Clock: not trusted. {shown(station.clock.detail)}".strip())
    if station.audit.problem:
        held = "units wait" if station.audit.mode == "required" else "units go on"
        found.append(
            f"Audit trail ({held}): {shown(station.audit.problem)}. {shown(station.audit.hint)}".strip()
        )
    if snapshot.outbox.parked:
        found.append(f"Outbox: {snapshot.outbox.parked} parked; see `hallmark outbox`.")
    return [*found, *(shown(problem) for problem in station.problems)]


def sink(view: SinkView) -> str:
    reached = {True: "reachable", False: "not reachable", None: "not tried yet"}[view.reachable]
    detail = f" ({shown(view.detail, 80)})" if view.detail else ""
    again = (
        f", next try in {duration(view.next_try)}" if view.next_try is not None and not view.reachable else ""
    )
    skew = f", its clock is {view.clock_skew:+.0f} s off" if abs(view.clock_skew or 0) >= 5 else ""
    return f"{shown(view.name, 40)} {reached}{detail}{again}{skew}"


def queue(outbox: OutboxView) -> str:
    parts = [f"{outbox.queued} queued"]
    if outbox.leased:
        parts.append(f"{outbox.leased} of them on their way")
    if outbox.parked:
        parts.append(f"{outbox.parked} PARKED")
    if outbox.oldest_age is not None and outbox.queued:
        parts.append(f"oldest waits {duration(outbox.oldest_age)}")
    last = f"last upload {clock(outbox.last_upload_at)}" if outbox.last_upload_at else "none uploaded yet"
    return ", ".join([*parts, last])


def token(station: StationView) -> str:
    view = station.token
    until = f", until {shown(view.not_after, 40)[:10]}" if view.not_after else ""
    label = f" ({shown(view.label, 40)})" if view.label else ""
    return f"{shown(view.condition, 40)}{label}, {view.issued} issued{until}"


def disk(station: StationView) -> str:
    low = " LOW" if station.disk.low else ""
    return f"{octets(station.disk.free)} free of {octets(station.disk.total)}{low}"


def configuration(view: ConfigurationView) -> str:
    return (
        f"set {view.serial} of {time.strftime('%Y-%m-%d', time.gmtime(view.created_at))}, {view.sha256[:16]}"
    )


def orders(station: StationView) -> str:
    return ", ".join(
        f"{shown(order.id, 40)} {shown(order.sku, 40)} {order.made}/{order.quantity}"
        for order in station.work_orders
    )


def nest_line(nest: NestView) -> str:
    """One nest on one line: for summaries, and for a watch without a terminal."""
    parts = [f"{shown(nest.name, 20):<6}"]
    if nest.state is NestState.DONE:
        parts.append(f"{shown(nest.outcome, 10) or 'done':<8} {board(nest)}")
        if nest.problem:
            parts.append(f"{shown(nest.problem, 40)}: {shown(nest.message)}")
            parts.append(f"-> {shown(nest.hint)}")
    else:
        parts.append(f"{STATES[nest.state]:<8} {board(nest)}".rstrip())
        parts += [part for part in (doing(nest), progress(nest), shown(nest.message)) if part]
        if nest.hint:
            parts.append(f"-> {shown(nest.hint)}")
    return "  ".join(parts)


def summary(snapshot: Snapshot) -> Iterator[str]:
    """The station on one screen."""
    station = snapshot.station
    mode = "BENCH (not for production)" if station.mode == "bench" else shown(station.mode, 40)
    name, version = shown(station.name, 60), shown(station.version, 30)
    yield f"{name}  {mode}  {state(station, snapshot.nests)} for {duration(station.uptime)}  hallmark {version}"
    for nest in snapshot.nests:
        yield f"  {nest_line(nest)}"
    yield f"Outbox  {queue(snapshot.outbox)}"
    for view in snapshot.outbox.sinks:
        yield f"Sink    {sink(view)}"
    yield f"Token   {token(station)}"
    yield f"Disk    {disk(station)}"
    if station.configuration is not None:
        yield f"Config  {configuration(station.configuration)}"
    if station.work_orders:
        yield f"Orders  {orders(station)}"
    for problem in attention(snapshot):
        yield f"ATTENTION  {problem}"


def changes(before: Snapshot | None, after: Snapshot) -> Iterator[str]:
    """One line for each thing that is different now; progress within an action is none."""
    if before is None or before.station.state != after.station.state:
        yield f"station {shown(after.station.name, 60)}: {state(after.station, after.nests)}"
    known = {nest.name: _gist(nest) for nest in before.nests} if before else {}
    for nest in after.nests:
        if known.get(nest.name) != _gist(nest):
            yield f"nest {nest_line(nest)}"
    if before is None or _outbox_gist(before.outbox) != _outbox_gist(after.outbox):
        yield f"outbox {queue(after.outbox)}"
    had = attention(before) if before else []
    for problem in attention(after):
        if problem not in had:
            yield f"attention {problem}"


def _gist(nest: NestView) -> tuple[object, ...]:
    return nest.state, nest.visit, nest.unit, nest.step, nest.action, nest.outcome, nest.problem, nest.hint


def _outbox_gist(outbox: OutboxView) -> tuple[object, ...]:
    reachable = tuple((view.name, view.reachable) for view in outbox.sinks)
    return outbox.queued, outbox.parked, outbox.acknowledged, reachable
