"""The one transaction that makes a PASS: last step, count, outbox, no more copy of secrets. All of it, or none.

Nothing else may call a unit passed.
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from hal.errors import ConfigError, Outcome
from station.messages import Facts
from station.store import escrow, orders, outbox, stock, visits


def finish(
    db: apsw.Connection,
    now: int,
    visit: str,
    step: str,
    action: str,
    facts: Facts,
    enrollment: bytes,
    sinks: Sequence[str],
    archive: bytes,
    work_order: str | None,
) -> bool:
    """Ends a visit with PASS, and whether a copy for resume was deleted. QuotaSpent when the work order has no room.

    `enrollment` is queued for each sink, `archive` for the collector; empty ones are not. A pass without an enrollment
    ("incoming") leaves the unit open: it isn't counted, and its copy for resume stays for the pass to come.
    """
    here = visits.get_open(db, visit)
    unit = here.joined()
    visits.check_wanted(db, unit)
    visits.done(db, now, visit, step, action, facts, found=False)
    scrub = stock.settle(db, now, visit, unit)
    if enrollment:
        if not sinks:
            raise ConfigError("an enrollment without a sink to send it to", key="sink")
        order = work_order or here.work_order
        if order is not None:
            orders.count(db, unit, order)
            db.execute("UPDATE visits SET work_order = ? WHERE visit = ?", (order, visit))
        db.execute("UPDATE units SET passed = coalesce(passed, ?) WHERE unit = ?", (now, unit))
        for sink in sinks:
            outbox.put(db, now, unit, outbox.ENROLLMENT, sink, enrollment)
        scrub = escrow.forget(db, unit) or scrub
    if archive:
        outbox.put(db, now, unit, outbox.ARCHIVE, outbox.ARCHIVE_SINK, archive)
    visits.close(db, now, visit, step, action, Outcome.PASS, None, None, None)
    return scrub
