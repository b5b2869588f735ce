"""A snapshot as Prometheus text (exposition format 0.0.4), for `/metrics`. Formatting only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from station.status.view import NestState, Snapshot, StationState

LABEL_LIMIT: Final = 100
Sample = tuple[dict[str, str], float]


def render(snapshot: Snapshot) -> bytes:
    parts: list[str] = []
    for name, kind, text, samples in _families(snapshot):
        parts += [f"# HELP hallmark_{name} {text}", f"# TYPE hallmark_{name} {kind}"]
        parts += [f"hallmark_{name}{_labels(labels)} {value:.17g}" for labels, value in samples]
    return ("\n".join(parts) + "\n").encode()


def _families(snapshot: Snapshot) -> Iterator[tuple[str, str, str, list[Sample]]]:
    station, outbox = snapshot.station, snapshot.outbox
    about = {"name": station.name, "mode": station.mode, "version": station.version}
    yield "station_info", "gauge", "The station.", [(about, 1)]
    yield (
        "station_state",
        "gauge",
        "1 for the state it is in.",
        [({"state": state}, station.state == state) for state in StationState],
    )
    yield "uptime_seconds", "gauge", "Since the station began.", [({}, station.uptime)]
    yield (
        "nest_state",
        "gauge",
        "1 for the state that the nest is in.",
        [({"nest": n.name, "state": state}, n.state == state) for n in snapshot.nests for state in NestState],
    )
    visits: list[Sample] = [({"outcome": outcome}, count) for outcome, count in station.outcomes.items()]
    yield "visits_total", "counter", "Visits that ended since the station began.", visits
    items: list[Sample] = [
        ({"state": "queued"}, outbox.queued),
        ({"state": "leased"}, outbox.leased),
        ({"state": "parked"}, outbox.parked),
        ({"state": "acknowledged"}, outbox.acknowledged),
    ]
    yield "outbox_items", "gauge", "Enrollments by state.", items
    yield "outbox_oldest_seconds", "gauge", "Wait of the oldest not acknowledged.", _maybe(outbox.oldest_age)
    yield "last_upload_timestamp_seconds", "gauge", "When one was last taken.", _maybe(outbox.last_upload_at)
    yield (
        "sink_reachable",
        "gauge",
        "Whether the service was reached at the last try.",
        [({"sink": sink.name}, sink.reachable) for sink in outbox.sinks if sink.reachable is not None],
    )
    yield (
        "sink_clock_skew_seconds",
        "gauge",
        "How far the service's clock is ahead.",
        [({"sink": sink.name}, sink.clock_skew) for sink in outbox.sinks if sink.clock_skew is not None],
    )
    yield "token_ready", "gauge", "Whether the CA token can sign.", [({}, station.token.condition == "ready")]
    yield "certificates_issued_total", "counter", "In the signer's ledger.", [({}, station.token.issued)]
    if station.audit.mode != "off":
        waiting = station.audit.records - station.audit.signed
        yield "audit_unsigned_records", "gauge", "Audit records without a checkpoint.", [({}, waiting)]
        yield "audit_signed_timestamp_seconds", "gauge", "Of the newest one.", _maybe(station.audit.signed_at)
        yield "audit_signable", "gauge", "Whether the last try was fine.", [({}, not station.audit.problem)]
    yield "disk_free_bytes", "gauge", "Where the database is.", [({}, station.disk.free)]
    yield "disk_low", "gauge", "Less than the configuration asks for.", [({}, station.disk.low)]
    yield "clock_trusted", "gauge", "Whether certificates may be dated.", [({}, station.clock.trusted)]
    orders = [({"order": order.id, "sku": order.sku}, order) for order in station.work_orders]
    yield (
        "work_order_quantity",
        "gauge",
        "May be made.",
        [(labels, order.quantity) for labels, order in orders],
    )
    yield "work_order_made", "gauge", "Have been made.", [(labels, order.made) for labels, order in orders]


def _maybe(value: float | None) -> list[Sample]:
    return [] if value is None else [({}, value)]


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escape(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escape(value: str) -> str:
    return str(value)[:LABEL_LIMIT].replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
