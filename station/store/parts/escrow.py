"""TPM authorizations: sealed for escrow, wrapped for resuming, and the token keys that wrap them. Never clear."""

from __future__ import annotations

from collections.abc import Sequence

from station.store import escrow, wrap_keys
from station.store.part import Part


class Escrow(Part):
    """Escrow rows, resume copies, wrap keys."""

    def next_generation(self, ek_name: bytes) -> int:
        """The generation that the next `protect` of this EK has."""
        return self._readers.read(lambda db: escrow.next_generation(db, ek_name))

    def protect(
        self,
        visit: str,
        ek_name: bytes,
        hierarchies: Sequence[str],
        sealed: bytes,
        wrapped: bytes,
        generation: int | None = None,
        key: str = "",
    ) -> int:
        """Escrow row and resume copy in one transaction. StationError when `generation` isn't the next one."""
        return self._write(escrow.protect, visit, ek_name, hierarchies, sealed, wrapped, generation, key)

    def wrap_key(self, visit: str) -> str:
        """The token key for this visit's secrets, durably known before it is made."""
        return self._write(wrap_keys.current, visit)

    def resume_key(self, ek_name: bytes, generation: int) -> str:
        """The token key that wrapped a copy; empty for one of an older release."""
        return self._readers.read(lambda db: wrap_keys.of_copy(db, ek_name, generation))

    def retire_wrap_keys(self) -> list[str]:
        """The token keys to be destroyed now, never used again. Empty, and nothing written, while there are none."""
        if not self._readers.read(lambda db: wrap_keys.spent(db, self._clock())):
            return []
        return self._write(wrap_keys.retire)

    def wrap_key_destroyed(self, key: str) -> None:
        """The token has it no more."""
        self._write(wrap_keys.destroyed, key)

    def newest_escrow(self, visit: str, ek_name: bytes) -> tuple[int, bytes] | None:
        """(generation, sealed) of the joined unit's own EK: else EkMismatch."""
        return self._readers.read(lambda db: escrow.newest(db, visit, ek_name))

    def escrow_places(self, ek_name: bytes, generation: int) -> list[str]:
        """Where else that record is durable."""
        return self._readers.read(lambda db: escrow.places(db, ek_name, generation))

    def escrow_copied(self, visit: str, ek_name: bytes, generation: int, place: str) -> None:
        """The record is durable at `place`, too."""
        self._write(escrow.copied, visit, ek_name, generation, place)

    def resume_copies(self, visit: str, ek_name: bytes) -> list[tuple[int, bytes]]:
        """(generation, wrapped), newest first, for the joined unit's own EK only: else EkMismatch."""
        return self._readers.read(lambda db: escrow.resume_copies(db, visit, ek_name))

    def resume_copy(self, visit: str, ek_name: bytes) -> tuple[int, bytes] | None:
        """The newest of `resume_copies`."""
        return next(iter(self.resume_copies(visit, ek_name)), None)
