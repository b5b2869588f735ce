"""Merkle trees of RFC 6962, section 2.1: roots, inclusion and consistency proofs, and their verification. Pure.

A tree is given by a function from (level, index) to the hash of a complete subtree: leaves index << level up to
(index + 1) << level. What leaves mean, and where hashes are kept, doesn't belong here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

HASH_SIZE: Final = 32
EMPTY_ROOT: Final = hashlib.sha256().digest()
LEAF_PREFIX, NODE_PREFIX = b"\x00", b"\x01"
Node = Callable[[int, int], bytes]


def leaf_hash(record: bytes) -> bytes:
    return hashlib.sha256(LEAF_PREFIX + record).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(NODE_PREFIX + left + right).digest()


def peaks(size: int) -> list[tuple[int, int]]:
    """(level, index) of the complete subtrees that a tree of `size` leaves is made of, the largest first."""
    found = []
    start = 0
    for level in range(size.bit_length() - 1, -1, -1):
        if size >> level & 1:
            found.append((level, start >> level))
            start += 1 << level
    return found


def root(size: int, node: Node) -> bytes:
    """MTH of the first `size` leaves."""
    return _range(0, size, node)


def root_of_peaks(hashes: Sequence[bytes]) -> bytes:
    """The root of a tree whose `peaks` have these hashes."""
    if not hashes:
        return EMPTY_ROOT
    found = hashes[-1]
    for left in reversed(hashes[:-1]):
        found = node_hash(left, found)
    return found


def inclusion_proof(index: int, size: int, node: Node) -> list[bytes]:
    """PATH(index, D[size]), section 2.1.1: the siblings from the leaf up. At most 64 of them."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    found: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            found.append(_range(middle, high, node))
            high = middle
        else:
            found.append(_range(low, middle, node))
            low = middle
    return found[::-1]


def consistency_proof(old: int, new: int, node: Node) -> list[bytes]:
    """PROOF(old, D[new]), section 2.1.2. Empty when `old` is 0 or `new`."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {old} leaves is no beginning of one of {new}")
    found: list[bytes] = []
    low, high, whole = 0, new, True
    if old == 0:
        return found
    while old != high:
        middle = low + _split(high - low)
        if old <= middle:
            found.append(_range(middle, high, node))
            high = middle
        else:
            found.append(_range(low, middle, node))
            low, whole = middle, False
    if not whole:
        found.append(_range(low, high, node))
    return found[::-1]


def root_from_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes | None:
    """The root that `proof` gives `leaf`, to be compared; None when it has the wrong length. RFC 9162, 2.1.3.2."""
    if not 0 <= index < size or not _sound(leaf, *proof):
        return None
    place, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return None
        if place & 1 or place == last:
            found = node_hash(sibling, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        place, last = place >> 1, last >> 1
    return found if last == 0 else None


def consistent(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the tree of `old` leaves is the beginning of that of `new`. RFC 9162, 2.1.4.2."""
    if not 0 <= old <= new or not _sound(old_root, new_root, *proof):
        return False
    if old in (0, new):
        return not proof and old_root == (EMPTY_ROOT if old == 0 else new_root)
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    was = now = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            was, now = node_hash(sibling, was), node_hash(sibling, now)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            now = node_hash(now, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and was == old_root and now == new_root


class Growing:
    """A tree that grows leaf by leaf and remembers its peaks only: for those who read an export from its beginning."""

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """`hashes`: of the `peaks` of a tree of `size`. ValueError when they are too few or too many."""
        if len(hashes) != size.bit_count() or any(len(found) != HASH_SIZE for found in hashes):
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} peaks of {HASH_SIZE} octets")
        self.size = size
        self._peaks = list(hashes)

    def append(self, leaf: bytes) -> None:
        found, place = leaf, self.size
        while place & 1:
            found = node_hash(self._peaks.pop(), found)
            place >>= 1
        self._peaks.append(found)
        self.size += 1

    def root(self) -> bytes:
        return root_of_peaks(self._peaks)


def _sound(*hashes: bytes) -> bool:
    """Another length would let octets wander from one hash into its neighbour."""
    return all(len(found) == HASH_SIZE for found in hashes)


def _split(size: int) -> int:
    """The largest power of two below `size` (which is at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def _range(low: int, high: int, node: Node) -> bytes:
    """MTH(D[low:high]). `low` is a multiple of the power of two that covers the range, as RFC 6962's splits give it."""
    return root_of_peaks([node(level, index + (low >> level)) for level, index in peaks(high - low)])
