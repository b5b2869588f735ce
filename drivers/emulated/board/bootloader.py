"""MCUboot as the emulated boards have it: two slots, swap by scratch with test, confirm and revert.

The layout of flash, and what happens in it between reset and application, belong here; every step can lose power and is
taken up at the next boot. Names, trailer and swap types are MCUboot's (docs/design.md, bootutil_priv.h); signatures and
SMP don't come in.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import Final

from drivers.emulated.board.flash import ERASED, SECTOR, Flash
from drivers.emulated.image import Image, inspect

PRIMARY: Final = 0
SECONDARY: Final = 1

TRAILER_MAGIC: Final = bytes.fromhex("77c295f360d2ef7f3552500f2cb67980")
"""boot_img_magic of bootutil_priv.h."""
_FLAG_SET: Final = b"\x01"
# Octets before the end of the slot, as with MCUboot's write alignment of 8.
_MAGIC_AT, _IMAGE_OK_AT, _COPY_DONE_AT = 16, 24, 32

# The swap's own sector: type and number of sectors, sealed by a CRC so that a torn one counts for nothing; then one
# octet for each step that is done. MCUboot keeps the same in the trailers.
_STATUS: Final = struct.Struct("<4sBHxI")
_STATUS_MAGIC: Final = b"SWAP"
_STEPS_AT: Final = 64
_STEPS_PER_SECTOR: Final = 3
_STEP_DONE: Final = b"\0"


class Swap(enum.IntEnum):
    """BOOT_SWAP_TYPE_* of bootutil_public.h."""

    NONE = 1
    TEST = 2
    PERM = 3
    REVERT = 4


def flash_size(slot_size: int) -> int:
    """Octets of flash for two slots, the scratch sector and the swap's status."""
    return 2 * slot_size + 2 * SECTOR


class Bootloader:
    """Slots of `slot_size` octets each, the last sector of each being its trailer."""

    def __init__(self, flash: Flash, slot_size: int) -> None:
        most = (SECTOR - _STEPS_AT) // _STEPS_PER_SECTOR * SECTOR
        if slot_size % SECTOR or not 2 * SECTOR <= slot_size <= most:
            raise ValueError(f"a slot of {slot_size} octets: whole sectors of {SECTOR}, {most} at most")
        self._flash = flash
        self._slot_size = slot_size
        self._scratch = 2 * slot_size
        self._status = self._scratch + SECTOR

    @property
    def capacity(self) -> int:
        """The largest image in octets, TLVs included."""
        return self._slot_size - SECTOR

    def image(self, slot: int) -> Image | None:
        return inspect(self._flash.read(slot * self._slot_size, self.capacity))

    def boot(self) -> Image | None:
        """Finishes or does what the trailers ask for. The image that is to run, or None: stay in serial recovery."""
        # After an interrupted swap the trailers are looked at by the next boot: a test's image gets its trial first.
        swap = Swap.NONE if self._resume() else self.swap_type()
        if swap is not Swap.NONE:
            candidate = self.image(SECONDARY)
            if candidate is not None and candidate.intact and candidate.bootable:
                self._begin(swap)
                self._resume()
            elif swap is not Swap.REVERT:
                # As MCUboot does (boot_scramble_slot): a refused image is no longer listed, and may be sent anew.
                self._flash.erase(self._slot_size, SECTOR)
                self._erase_trailer(SECONDARY)
        running = self.image(PRIMARY)
        return running if running is not None and running.intact and running.bootable else None

    def swap_type(self) -> Swap:
        """What the next boot will do, by MCUboot's table (boot_swap_type)."""
        if self._has_magic(SECONDARY):
            return Swap.PERM if self._flag(SECONDARY, _IMAGE_OK_AT) else Swap.TEST
        unconfirmed = self._flag(PRIMARY, _COPY_DONE_AT) and not self._flag(PRIMARY, _IMAGE_OK_AT)
        return Swap.REVERT if self._has_magic(PRIMARY) and unconfirmed else Swap.NONE

    # --- what an application or the serial recovery may ask for ---

    def prepare(self, slot: int, length: int) -> None:
        """Erases as much of `slot` as an image of `length` octets needs. Its trailer first: no half image pends."""
        self._erase_trailer(slot)
        whole = -(-length // SECTOR) * SECTOR
        start = slot * self._slot_size
        if not self._flash.is_erased(start, whole):
            self._flash.erase(start, whole)

    def write(self, slot: int, offset: int, data: bytes) -> None:
        if offset + len(data) > self.capacity:
            raise ValueError("beyond the slot")
        self._flash.write(slot * self._slot_size + offset, data)

    def read(self, slot: int, length: int) -> bytes:
        return self._flash.read(slot * self._slot_size, min(length, self.capacity))

    def set_pending(self, *, permanent: bool) -> None:
        """The next boot takes the secondary slot's image: once, or for good."""
        if not self._has_magic(SECONDARY):
            self._erase_trailer(SECONDARY)
        if permanent and not self._flag(SECONDARY, _IMAGE_OK_AT):
            self._set_flag(SECONDARY, _IMAGE_OK_AT)
        if not self._has_magic(SECONDARY):
            # Last: from here on the bootloader acts on it.
            self._flash.write(self._end(SECONDARY) - _MAGIC_AT, TRAILER_MAGIC)

    def confirm(self) -> None:
        """The running image stays. Nothing to do for one that was never swapped in (no trailer)."""
        if self._has_magic(PRIMARY) and not self._flag(PRIMARY, _IMAGE_OK_AT):
            self._set_flag(PRIMARY, _IMAGE_OK_AT)

    # --- the swap ---

    def _begin(self, swap: Swap) -> None:
        images = (self.image(PRIMARY), self.image(SECONDARY))
        sectors = -(-max(image.size for image in images if image is not None) // SECTOR)
        if not self._flash.is_erased(self._status, SECTOR):
            self._flash.erase(self._status, SECTOR)
        self._flash.write(self._status, _sealed(swap, sectors))

    def _resume(self) -> bool:
        """Does what is left of a swap that was begun. Whether there was one."""
        head = self._flash.read(self._status, _STATUS.size)
        magic, kind, sectors, _ = _STATUS.unpack(head)
        if magic != _STATUS_MAGIC or head != _sealed(kind, sectors):
            return False
        for index in range(sectors):
            self._swap_sector(index)
        # Each of these may be done twice: until the status is erased, the next boot begins here again.
        self._erase_trailer(SECONDARY)
        self._erase_trailer(PRIMARY)
        self._set_flag(PRIMARY, _COPY_DONE_AT)
        if kind != Swap.TEST:
            self._set_flag(PRIMARY, _IMAGE_OK_AT)
        self._flash.write(self._end(PRIMARY) - _MAGIC_AT, TRAILER_MAGIC)
        self._flash.erase(self._status, SECTOR)
        return True

    def _swap_sector(self, index: int) -> None:
        primary, secondary = index * SECTOR, self._slot_size + index * SECTOR
        moves = ((secondary, self._scratch), (primary, secondary), (self._scratch, primary))
        for step, (source, target) in enumerate(moves, _STEPS_PER_SECTOR * index):
            at = self._status + _STEPS_AT + step
            if self._flash.read(at, 1) == _STEP_DONE:
                continue
            self._flash.erase(target, SECTOR)
            self._flash.write(target, self._flash.read(source, SECTOR))
            self._flash.write(at, _STEP_DONE)

    # --- trailers ---

    def _end(self, slot: int) -> int:
        return (slot + 1) * self._slot_size

    def _has_magic(self, slot: int) -> bool:
        return self._flash.read(self._end(slot) - _MAGIC_AT, len(TRAILER_MAGIC)) == TRAILER_MAGIC

    def _flag(self, slot: int, before_end: int) -> bool:
        return self._flash.read(self._end(slot) - before_end, 1) != bytes([ERASED])

    def _set_flag(self, slot: int, before_end: int) -> None:
        self._flash.write(self._end(slot) - before_end, _FLAG_SET)

    def _erase_trailer(self, slot: int) -> None:
        at = self._end(slot) - SECTOR
        if not self._flash.is_erased(at, SECTOR):
            self._flash.erase(at, SECTOR)


def _sealed(kind: int, sectors: int) -> bytes:
    body = _STATUS.pack(_STATUS_MAGIC, kind, sectors, 0)
    return body[:-4] + zlib.crc32(body[:-4]).to_bytes(4, "little")
