"""Who holds which outbox rows right now. In memory: a lease ends with its connection, and with the station.

Nothing durable; the rows themselves are in `outbox`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

from station.messages import Item
from station.store.outbox import Due


class Leases:
    """Each row, and each unit's place in a sink, has at most one holder at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, tuple[str, tuple[str, str]]] = {}

    def take(self, owner: str, look: Callable[[Collection[tuple[str, str]]], Sequence[Due]]) -> list[Item]:
        """Leases what `look(held)` finds.

        It looks while no lease can end: a row that was acknowledged meanwhile can't be seen as queued and free.
        """
        with self._lock:
            found = look(frozenset(key for _, key in self._held.values()))
            for row in found:
                self._held[row.item.seq] = (owner, row.key)
            return [row.item for row in found]

    def holds(self, owner: str, seqs: Sequence[int]) -> bool:
        with self._lock:
            return all(self._held.get(seq, ("", None))[0] == owner for seq in seqs)

    def drop(self, seqs: Sequence[int]) -> None:
        with self._lock:
            for seq in seqs:
                self._held.pop(seq, None)

    def drop_owner(self, owner: str) -> int:
        """Gives back all that `owner` holds, and how many that were."""
        with self._lock:
            mine = [seq for seq, (holder, _) in self._held.items() if holder == owner]
            for seq in mine:
                del self._held[seq]
            return len(mine)

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)
