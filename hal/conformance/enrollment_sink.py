"""What every EnrollmentSink promises, as checks that a driver's own tests call. Needs a service that answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from hal.call import Call, Cancel
from hal.errors import Aborted, Conflict
from hal.interfaces import EnrollmentSink
from hal.types import Enrollment, Receipt, UploadResult

SECONDS: Final = 60.0
PROMPT_SECONDS: Final = 5.0


def check(sink: EnrollmentSink, units: Sequence[Enrollment], impostor: Enrollment) -> None:
    """All of it. `units`: at least three that the service doesn't know, of different IDs, more than one batch holds.

    `impostor`: the registration ID of `units[0]` with another identity.
    """
    assert len(units) > max(2, sink.batch_limit)
    assert impostor.registration_id == units[0].registration_id
    assert impostor.attestation != units[0].attestation
    nothing_gives_nothing(sink)
    a_cancelled_call_ends_at_once(sink, units[0])
    each_unit_has_its_receipt_in_its_place(sink, units)
    what_is_known_already_counts_as_taken(sink, units)
    another_identity_under_the_same_id_is_a_conflict(sink, units, impostor)


def nothing_gives_nothing(sink: EnrollmentSink) -> None:
    assert sink.batch_limit >= 1
    assert sink.upload(_call(), []).items == ()


def a_cancelled_call_ends_at_once(sink: EnrollmentSink, unit: Enrollment) -> None:
    cancel = Cancel()
    cancel.set(Aborted("the check's own reason"))
    began = time.monotonic()
    raised: object = None
    try:
        raised = sink.upload(Call(cancel=cancel), [unit])
    except Aborted as error:
        raised = str(error)
    finally:
        cancel.close()
    assert raised == "the check's own reason", "a cancelled call has to raise its cancel's reason"
    assert time.monotonic() - began < PROMPT_SECONDS


def each_unit_has_its_receipt_in_its_place(sink: EnrollmentSink, units: Sequence[Enrollment]) -> None:
    """In batches, the first of which holds one unit twice: its two places agree."""
    limit = sink.batch_limit
    for start in range(0, len(units), limit):
        batch = list(units[start : start + limit])
        _all_received(sink.upload(_call(), batch), batch)
    _all_received(sink.upload(_call(), [units[0], units[0]]), [units[0], units[0]])


def what_is_known_already_counts_as_taken(sink: EnrollmentSink, units: Sequence[Enrollment]) -> None:
    """As after an acknowledgement that was lost."""
    batch = list(units[: sink.batch_limit])
    result = sink.upload(_call(), batch)
    _all_received(result, batch)
    assert all(item.existed for item in result.items if isinstance(item, Receipt))


def another_identity_under_the_same_id_is_a_conflict(
    sink: EnrollmentSink, units: Sequence[Enrollment], impostor: Enrollment
) -> None:
    """And only that item's: its neighbour is taken."""
    neighbour = replace(units[1])
    result = sink.upload(_call(), [impostor, neighbour])
    assert isinstance(result.items[0], Conflict), result.items[0]
    assert isinstance(result.items[1], Receipt), result.items[1]
    _all_received(sink.upload(_call(), [units[0]]), [units[0]])


def _all_received(result: UploadResult, batch: Sequence[Enrollment]) -> None:
    assert len(result.items) == len(batch)
    for item, enrollment in zip(result.items, batch, strict=True):
        assert isinstance(item, Receipt), item
        assert item.registration_id == enrollment.registration_id


def _call() -> Call:
    return Call.lasting(SECONDS)
