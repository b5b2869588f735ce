"""What every part of the store is made of: the one way to write, the one way to read.

A part is a group of `Store`'s methods, each of which hands its question to the room of that name beside this file. No
SQL here and none in the parts; `Store` makes the attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import apsw

from hal.errors import StationError, StoreUnavailable
from station.store.readers import Readers
from station.store.writing import Writing

T = TypeVar("T")
P = ParamSpec("P")


class Part:
    """Writes are one transaction each, durable when they return; reads are bounded."""

    _clock: Callable[[], int]
    _readers: Readers
    _writing: Writing | None
    """None in a store that was opened to be read only."""

    @property
    def _writable(self) -> Writing:
        if self._writing is None:
            raise StationError("this store was opened to be read only")
        return self._writing

    def _write(
        self, work: Callable[Concatenate[apsw.Connection, int, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return self._writable.writer.run(lambda db: work(db, self._clock(), *args, **kwargs))

    def _write_even_if_full(
        self, work: Callable[Concatenate[apsw.Connection, int, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """For what ends something that has begun: on a full disk the ballast gives it room."""
        try:
            return self._write(work, *args, **kwargs)
        except StoreUnavailable:
            if not self._writable.ballast.release():
                raise
            return self._write(work, *args, **kwargs)
