"""Where reading commands look: the running station's status socket, or the database itself while none runs.

A live database file isn't opened by the command line. Changes go the same way: through the station, which says who
may, or into the store under its lock.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from hal.errors import PeerUnavailable, StationError
from station.paths import Paths
from station.status.client import Refused, StatusClient, segment
from station.status.routes import EK_PAGE_LIMIT
from station.status.view import PAGE_LIMIT, EventView
from station.store import Store
from station.store.decisions import Decision
from station.store.ek_lists import EkList, ListedKey, MadeKey
from station.store.records import OutboxRecord, UnitRecord, UnitSummary
from station.store.stock import LotView

NOT_FOUND: Final = 404


class _Units(msgspec.Struct):
    units: list[UnitSummary]


class _Items(msgspec.Struct):
    items: list[OutboxRecord]


class _Decisions(msgspec.Struct):
    decisions: list[Decision]


class _Lots(msgspec.Struct):
    lots: list[LotView]


class _Lists(msgspec.Struct):
    lists: list[EkList]
    last_event: int


class _Keys(msgspec.Struct):
    entries: list[ListedKey]


class _Made(msgspec.Struct):
    eks: list[MadeKey]


class Source:
    """Reads page by page, so that a million units need no more memory than five hundred."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._client = StatusClient(paths.status_socket)
        self._store: Store | None = None
        self._decided = False

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self._store is not None:
            self._store.close()

    def units(self, query: str | None = None) -> Iterator[UnitSummary]:
        """Newest first; with `query`, those with an identifier that begins so."""
        after: str | None = None
        while True:
            found = self._units_page(after, query)
            yield from found
            if len(found) < PAGE_LIMIT:
                return
            after = found[-1].unit

    def unit(self, name: str) -> UnitRecord:
        """The record by unit or registration ID; StationError when there is none."""
        if (store := self._offline()) is not None:
            found = store.unit(name)
        else:
            try:
                found = self._client.get(f"/v1/units/{segment(name)}", UnitRecord)
            except Refused as refused:
                if refused.status != NOT_FOUND:
                    raise
                found = None
        if found is None:
            raise _no_unit(name)
        return found

    def outbox(self, state: str | None) -> Iterator[OutboxRecord]:
        """Rows in their order, of one state or all, without content."""
        after = 0
        while True:
            if (store := self._offline()) is not None:
                found = store.outbox_items(PAGE_LIMIT, after, state)
            else:
                given = {"limit": PAGE_LIMIT, "after": after, "state": state}
                found = self._client.get("/v1/outbox/items", _Items, **given).items
            yield from found
            if len(found) < PAGE_LIMIT:
                return
            after = found[-1].seq

    def decisions(self, *, waiting: bool) -> Iterator[Decision]:
        """Questions in their order; with `waiting` only those without an answer."""
        after = 0
        while True:
            if (store := self._offline()) is not None:
                found = store.decisions(PAGE_LIMIT, after, waiting=waiting)
            else:
                given = {"limit": PAGE_LIMIT, "after": after, "waiting": int(waiting)}
                found = self._client.get("/v1/decisions", _Decisions, **given).decisions
            yield from found
            if len(found) < PAGE_LIMIT:
                return
            after = found[-1].id

    def lots(self) -> list[LotView]:
        """Lots of certificates made elsewhere, and vendors' manifests."""
        if (store := self._offline()) is not None:
            return store.lots()
        found: _Lots = self._client.get("/v1/stock", _Lots)
        return found.lots

    def events(self, since: int) -> Iterator[EventView]:
        """Audit events with a number over `since`, in order, up to now."""
        while True:
            if (store := self._offline()) is not None:
                found = store.events(since, PAGE_LIMIT)
            else:
                lines = self._client.fetch("GET", "/v1/events", since=since, follow=0).splitlines()
                found = [msgspec.json.decode(line, type=EventView) for line in lines]
            yield from found
            if len(found) < PAGE_LIMIT:
                return
            since = found[-1].seq

    def running(self) -> bool:
        """Whether a station answers."""
        return self._answers()

    def last_event(self) -> int:
        """The running station's newest event."""
        found: _Lists = self._client.get("/v1/ek-lists", _Lists)
        return found.last_event

    def ek_lists(self) -> list[EkList]:
        """Vendors' lists that count, by lot."""
        if (store := self._offline()) is not None:
            return store.ek_lists()
        found: _Lists = self._client.get("/v1/ek-lists", _Lists)
        return found.lists

    def ek_list_entries(self, lot: str) -> Iterator[ListedKey]:
        """A lot's EKs in the order of their Names, and the units that have them."""
        after = b""
        while True:
            if (store := self._offline()) is not None:
                found = store.ek_list_entries(lot, after, EK_PAGE_LIMIT)
            else:
                path = f"/v1/ek-lists/{segment(lot)}/entries"
                found = self._client.get(path, _Keys, after=after.hex(), limit=EK_PAGE_LIMIT).entries
            yield from found
            if len(found) < EK_PAGE_LIMIT:
                return
            after = found[-1].ek_name

    def unlisted_eks(self) -> Iterator[ListedKey]:
        """EKs of units that no list names."""
        after = ""
        while True:
            if (store := self._offline()) is not None:
                found = store.unlisted_eks(after, EK_PAGE_LIMIT)
            else:
                path = "/v1/eks/unlisted"
                found = self._client.get(path, _Keys, after=after, limit=EK_PAGE_LIMIT).entries
            yield from found
            if len(found) < EK_PAGE_LIMIT:
                return
            after = found[-1].ek_name.hex()

    def made_eks(self) -> Iterator[MadeKey]:
        """EKs of units that passed, oldest first."""
        after = 0
        while True:
            if (store := self._offline()) is not None:
                found = store.made_eks(after, PAGE_LIMIT)
            else:
                found = self._client.get("/v1/eks", _Made, after=after, limit=PAGE_LIMIT).eks
            yield from found
            if not found:
                return
            after = found[-1].number

    def follow(self, since: int) -> Iterator[EventView]:
        """Events as they come, from the running station only."""
        return (event for event in self._client.events(since) if event.kind != "heartbeat")

    def _units_page(self, after: str | None, query: str | None) -> list[UnitSummary]:
        if (store := self._offline()) is not None:
            return store.units(PAGE_LIMIT, after, query)
        found: _Units = self._client.get("/v1/units", _Units, limit=PAGE_LIMIT, after=after, query=query)
        return found.units

    def _offline(self) -> Store | None:
        """The store itself when no station answers, else None. Decided once."""
        if not self._decided:
            if self._paths.database.exists() and not self._answers():
                self._store = Store.open(self._paths.database, readonly=True)
            self._decided = True
        return self._store

    def _answers(self) -> bool:
        try:
            self._client.fetch("GET", "/v1/outbox")
        except PeerUnavailable:
            return False
        return True


def change(paths: Paths, path: str, directly: Callable[[Store, str], object], **parameters: str) -> None:
    """Posts to the running station; when none answers, acts on the store, whose lock keeps a station out."""
    try:
        StatusClient(paths.status_socket).post(path, **parameters)
    except PeerUnavailable:
        if not paths.database.exists():
            raise
    else:
        return
    with Store.open(paths.database) as store:
        try:
            directly(store, f"{getpass.getuser()} (uid {os.getuid()})")
        except (LookupError, ValueError) as error:
            raise StationError(str(error.args[0]), hint="See the lists for what there is.") from error


def _no_unit(name: str) -> StationError:
    return StationError(f"there is no unit {name[:128]!a}", hint="See `hallmark units` for what there is.")
