"""The tree against Certificate Transparency's own vectors, and against RFC 6962's recursive definition."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.audit import tree

LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""Of the first 0 to 8 leaves: certificate-transparency-go, merkletree/merkle_tree_test.go."""
INCLUSION = {
    (0, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (5, 8): (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
}
CONSISTENCY = {
    (2, 8): (
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (6, 8): (
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
}


def plain_root(records: Sequence[bytes]) -> bytes:
    """MTH as RFC 6962, 2.1, writes it down."""
    if not records:
        return hashlib.sha256().digest()
    if len(records) == 1:
        return hashlib.sha256(b"\0" + records[0]).digest()
    k = 1
    while k * 2 < len(records):
        k *= 2
    return hashlib.sha256(b"\1" + plain_root(records[:k]) + plain_root(records[k:])).digest()


def nodes_of(records: Sequence[bytes]) -> tree.Node:
    return lambda level, index: plain_root(records[index << level : (index + 1) << level])


def records(size: int) -> list[bytes]:
    return [b"record %d" % number for number in range(size)]


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    assert tree.root(size, nodes_of(LEAVES)).hex() == ROOTS[size]
    growing = tree.Growing()
    for leaf in LEAVES[:size]:
        growing.append(tree.leaf_hash(leaf))
    assert growing.root().hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_inclusion_proofs_are_those_of_certificate_transparency(index: int, size: int) -> None:
    proof = tree.inclusion_proof(index, size, nodes_of(LEAVES))
    assert tuple(item.hex() for item in proof) == INCLUSION[index, size]


@pytest.mark.parametrize(("old", "new"), CONSISTENCY)
def test_consistency_proofs_are_those_of_certificate_transparency(old: int, new: int) -> None:
    proof = tree.consistency_proof(old, new, nodes_of(LEAVES))
    assert tuple(item.hex() for item in proof) == CONSISTENCY[old, new]


def test_every_leaf_of_every_small_tree_is_proven_and_nothing_else_is() -> None:
    for size in range(1, 34):
        data = records(size)
        root = plain_root(data)
        for index in range(size):
            proof = tree.inclusion_proof(index, size, nodes_of(data))
            leaf = tree.leaf_hash(data[index])
            assert tree.root_from_inclusion(index, size, leaf, proof) == root
            assert tree.root_from_inclusion(index, size, tree.leaf_hash(b"other"), proof) != root
            assert tree.root_from_inclusion(index, size, leaf, [*proof, leaf]) is None
            if proof:
                assert tree.root_from_inclusion(index, size, leaf, proof[:-1]) is None
            for other in range(size):
                if other != index and size > 1:
                    assert tree.root_from_inclusion(other, size, leaf, proof) != root


def test_every_beginning_of_every_small_tree_is_proven() -> None:
    for new in range(34):
        data = records(new)
        roots = [plain_root(data[:size]) for size in range(new + 1)]
        for old in range(new + 1):
            proof = tree.consistency_proof(old, new, nodes_of(data))
            assert tree.consistent(old, roots[old], new, roots[new], proof)
            assert not tree.consistent(old, b"\0" * 32, new, roots[new], proof)
            assert not tree.consistent(old, roots[old], new, roots[new], [*proof, b"\0" * 32])


@given(st.data())
def test_no_rewritten_past_is_consistent(data: st.DataObject) -> None:
    """Whatever the liar sends as a proof, a tree with another beginning never passes for its continuation."""
    old = data.draw(st.integers(1, 40))
    new = data.draw(st.integers(old, 60))
    honest, liar = records(new), records(new)
    changed = data.draw(st.integers(0, old - 1))
    liar[changed] = b"rewritten"
    old_root, new_root = plain_root(honest[:old]), plain_root(liar)
    for source in (honest, liar):
        for size in {old, data.draw(st.integers(0, new))}:
            proof = tree.consistency_proof(size, new, nodes_of(source))
            assert not tree.consistent(old, old_root, new, new_root, proof)


@given(st.integers(1, 200), st.integers(0, 200))
def test_a_tree_goes_on_from_its_peaks(size: int, more: int) -> None:
    data = records(size + more)
    node = nodes_of(data)
    growing = tree.Growing(size, [node(level, index) for level, index in tree.peaks(size)])
    for record in data[size:]:
        growing.append(tree.leaf_hash(record))
    assert growing.root() == plain_root(data)


@pytest.mark.parametrize("short", [b"", b"\0" * 31, b"\0" * 33])
def test_hashes_of_another_length_prove_nothing(short: bytes) -> None:
    data = records(8)
    proof = tree.inclusion_proof(5, 8, nodes_of(data))
    assert tree.root_from_inclusion(5, 8, tree.leaf_hash(data[5]), [short, *proof[1:]]) is None
    assert not tree.consistent(6, plain_root(data[:6]), 8, plain_root(data), [short] * 3)
    with pytest.raises(ValueError):
        tree.Growing(1, [short])
