"""Vendors' lists of EKs, page by page, and their comparison with the units that were made."""

from __future__ import annotations

from collections.abc import Sequence

from station.store import ek_lists
from station.store.ek_lists import EkList, ListedKey, Listing, MadeKey
from station.store.part import Part


class EkLists(Part):
    """Lists come in by pieces, and count from `finish_ek_list` on."""

    def ek_listed(self, ek_name: bytes) -> Listing | None:
        """The vendor's list that names this EK."""
        return self._readers.read(lambda db: ek_lists.find(db, ek_name))

    def begin_ek_list(
        self, lot: str, vendor: str, created: int, entries: int, sha256: bytes, signer: str
    ) -> int | None:
        """A place for a list's entries; None when it is there already."""
        return self._write(ek_lists.begin, lot, vendor, created, entries, sha256, signer)

    def add_ek_list_entries(self, number: int, names: Sequence[bytes]) -> None:
        """EK Names of a list that is coming in."""
        self._write(ek_lists.add, number, names)

    def finish_ek_list(self, number: int) -> None:
        """From here on the list counts."""
        self._write(ek_lists.finish, number)

    def sweep_ek_lists(self, after: bytes) -> bytes | None:
        """Removes some of what superseded and broken-off lists left; where to go on, None when nothing is left."""
        return self._write(ek_lists.sweep, after)

    def ek_lists(self) -> list[EkList]:
        """The lists that count, by lot."""
        return self._readers.read(ek_lists.lists)

    def ek_list_entries(self, lot: str, after: bytes, limit: int) -> list[ListedKey]:
        """A lot's EKs with a Name over `after`, in order, and the units that have them."""
        return self._readers.read(lambda db: ek_lists.entries_of(db, lot, after, limit))

    def made_eks(self, after: int, limit: int) -> list[MadeKey]:
        """EKs of units that passed, in the order of the units' numbers, over `after`."""
        return self._readers.read(lambda db: ek_lists.made(db, after, limit))

    def unlisted_eks(self, after: str, limit: int) -> list[ListedKey]:
        """EKs of units that no list names, in order of their Names in hex, over `after`."""
        return self._readers.read(lambda db: ek_lists.unlisted(db, after, limit))
