"""Units as people and scripts see them. Reads only."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from station.store import record_reads, records
from station.store.part import Part


class Units(Part):
    """Lists and whole records."""

    def units(
        self, limit: int, after: str | None = None, query: str | None = None
    ) -> list[records.UnitSummary]:
        """Newest first, behind the unit `after`; `query` is the beginning of an identifier."""
        return self._readers.read(lambda db: record_reads.units(db, limit, after, query))

    def unit(self, unit: str) -> records.UnitRecord | None:
        """The whole record by unit ID or registration ID."""
        return self._readers.read(lambda db: record_reads.unit(db, unit))

    def passed(self, units: Sequence[str]) -> list[str]:
        """Those of `units` (unit IDs) that have passed."""
        return self._readers.read(lambda db: record_reads.passed(db, units))

    def whole_unit(self, unit: str) -> tuple[records.UnitRecord, list[records.DoneAction]] | None:
        """The record with every row that there is of the unit, and each of its actions with its facts."""

        def read(db: apsw.Connection) -> tuple[records.UnitRecord, list[records.DoneAction]] | None:
            found = record_reads.unit(db, unit, record_reads.ALL)
            return None if found is None else (found, record_reads.actions_of(db, found.summary.unit))

        return self._readers.read(read)
