from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.memory_log import MemoryNodes

from tokenworks.exchange.log.errors import NodeMissing, NotInTree
from tokenworks.exchange.log.merkle import (
    EMPTY_ROOT,
    PROOF_MAX,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_at,
    verify_consistency,
    verify_inclusion,
)

PUBLISHED_LEAVES = [
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
PUBLISHED_ROOTS = [
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


# The oracle: the recursive definitions of RFC 9162, section 2.1, over the whole list, without any storage.


def split(count: int) -> int:
    half = 1
    while half * 2 < count:
        half *= 2
    return half


def mth(data: list[bytes]) -> bytes:
    if not data:
        return hashlib.sha256(b"").digest()
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    k = split(len(data))
    return hashlib.sha256(b"\x01" + mth(data[:k]) + mth(data[k:])).digest()


def path(m: int, data: list[bytes]) -> list[bytes]:
    if len(data) == 1:
        return []
    k = split(len(data))
    return [*path(m, data[:k]), mth(data[k:])] if m < k else [*path(m - k, data[k:]), mth(data[:k])]


def subproof(m: int, data: list[bytes], whole: bool) -> list[bytes]:
    if m == len(data):
        return [] if whole else [mth(data)]
    k = split(len(data))
    if m <= k:
        return [*subproof(m, data[:k], whole), mth(data[k:])]
    return [*subproof(m - k, data[k:], False), mth(data[:k])]


def grown(data: list[bytes]) -> tuple[Tree, MemoryNodes]:
    tree, nodes = Tree(), MemoryNodes()
    for each in data:
        tree.extend([leaf_hash(each)])
    tree.flush(nodes)
    return tree, nodes


def flips(data: bytes) -> Iterator[bytes]:
    for place, bit in itertools.product(range(len(data)), range(8)):
        yield data[:place] + bytes((data[place] ^ 1 << bit,)) + data[place + 1 :]


ALL = [str(n).encode() for n in range(70)]


def test_published_roots() -> None:
    """The tree that RFC 6962 implementations publish has the published root at every size, by us and by the oracle."""
    tree, nodes = grown(PUBLISHED_LEAVES)
    assert EMPTY_ROOT.hex() == PUBLISHED_ROOTS[0]
    for size, root in enumerate(PUBLISHED_ROOTS):
        assert mth(PUBLISHED_LEAVES[:size]).hex() == root
        assert root_at(nodes, size).hex() == root
        assert grown(PUBLISHED_LEAVES[:size])[0].root().hex() == root
    assert tree.size == 8


def test_inclusion_is_the_definition_at_every_size_up_to_70() -> None:
    """Every inclusion proof is that of the recursive definition, verifies, and verifies for no other place."""
    _, nodes = grown(ALL)
    for size in range(1, len(ALL) + 1):
        root = mth(ALL[:size])
        for index in range(size):
            proof = inclusion_proof(nodes, index, size)
            assert proof == path(index, ALL[:size])
            leaf = leaf_hash(ALL[index])
            assert verify_inclusion(leaf, index, size, proof, root)
            assert not any(verify_inclusion(leaf, other, size, proof, root) for other in range(size) if other != index)


def test_consistency_is_the_definition_at_every_size_up_to_70() -> None:
    """Every consistency proof is that of the recursive definition and verifies; no proof fits two other old sizes."""
    _, nodes = grown(ALL)
    roots = [mth(ALL[:size]) for size in range(len(ALL) + 1)]
    for new in range(1, len(ALL) + 1):
        for old in range(1, new + 1):
            proof = consistency_proof(nodes, old, new)
            assert proof == subproof(old, ALL[:new], True)
            assert verify_consistency(old, roots[old], new, roots[new], proof)
            if old < new:
                assert not verify_consistency(old, roots[old - 1], new, roots[new], proof)
                assert not verify_consistency(old, roots[old], new, roots[new - 1], proof)
                assert not verify_consistency(old, roots[old], new, roots[new], proof[:-1])
                assert not verify_consistency(old, roots[old], new, roots[new], [*proof, proof[-1]])


@given(st.data())
def test_large_trees(data: st.DataObject) -> None:
    """At larger sizes proofs are short, and roots and proofs agree with the definition."""
    size = data.draw(st.integers(71, 700))
    leaves = [n.to_bytes(2, "big") for n in range(size)]
    tree, nodes = grown(leaves)
    new = data.draw(st.integers(1, size))
    old, index = data.draw(st.integers(1, new)), data.draw(st.integers(0, new - 1))
    assert tree.root() == mth(leaves)
    assert root_at(nodes, new) == mth(leaves[:new])
    inclusion, consistency = inclusion_proof(nodes, index, new), consistency_proof(nodes, old, new)
    assert (inclusion, consistency) == (path(index, leaves[:new]), subproof(old, leaves[:new], True))
    assert len(inclusion) <= 10
    assert verify_inclusion(leaf_hash(leaves[index]), index, new, inclusion, mth(leaves[:new]))
    assert verify_consistency(old, mth(leaves[:old]), new, mth(leaves[:new]), consistency)


@given(st.integers(1, 200), st.integers(0, 200), st.lists(st.integers(1, 30), max_size=8))
def test_restart_from_nodes(before: int, after: int, batches: list[int]) -> None:
    """A tree loaded from its nodes grows on like one that was never stopped, whatever the batches."""
    leaves = [leaf_hash(str(n).encode()) for n in range(before + after)]
    whole, kept = Tree(), MemoryNodes()
    whole.extend(leaves)
    whole.flush(kept)
    nodes = MemoryNodes()
    first = Tree()
    first.extend(leaves[:before])
    first.flush(nodes)
    size = before
    for batch in [*batches, after]:
        tree = Tree.load(nodes, size)
        assert tree.size == size
        assert tree.extend(leaves[size : size + batch]) == size
        size = tree.size
        tree.flush(nodes)
    assert nodes.kept == kept.kept
    assert Tree.load(nodes, size).root() == whole.root()


class Counting(MemoryNodes):
    reads = 0

    def get(self, level: int, index: int) -> bytes | None:
        self.reads += 1
        return super().get(level, index)


def test_proofs_read_few_nodes() -> None:
    """Proofs and restarts of a log of 100,003 leaves cost tens of reads, at any size, not thousands."""
    nodes, tree = Counting(), Tree()
    tree.extend([leaf_hash(b"")] * 100_003)
    tree.flush(nodes)
    for size in (100_003, 65_537, 65_535):
        for index in (0, 1, size // 3, size - 1):
            nodes.reads = 0
            inclusion_proof(nodes, index, size)
            consistency_proof(nodes, index + 1, size)
            Tree.load(nodes, size)
            assert nodes.reads <= 6 * 17


def test_every_bit_counts() -> None:
    """A proof with one bit changed anywhere, in leaf, hash or root, is refused."""
    leaves = ALL[:13]
    _, nodes = grown(leaves)
    root, leaf, old = mth(leaves), leaf_hash(leaves[6]), mth(leaves[:7])
    proof, between = inclusion_proof(nodes, 6, 13), consistency_proof(nodes, 7, 13)
    assert not any(verify_inclusion(wrong, 6, 13, proof, root) for wrong in flips(leaf))
    assert not any(verify_inclusion(leaf, 6, 13, proof, wrong) for wrong in flips(root))
    assert not any(verify_consistency(7, wrong, 13, root, between) for wrong in flips(old))
    assert not any(verify_consistency(7, old, 13, wrong, between) for wrong in flips(root))
    for n in range(len(proof)):
        for wrong in flips(proof[n]):
            assert not verify_inclusion(leaf, 6, 13, [*proof[:n], wrong, *proof[n + 1 :]], root)
    for n in range(len(between)):
        for wrong in flips(between[n]):
            assert not verify_consistency(7, old, 13, root, [*between[:n], wrong, *between[n + 1 :]])


@given(
    st.integers(-2, 1 << 70),
    st.integers(-2, 1 << 70),
    st.lists(st.binary(max_size=33) | st.binary(min_size=32, max_size=32), max_size=PROOF_MAX + 4),
    st.binary(min_size=32, max_size=32),
)
def test_verification_survives_anything(first: int, second: int, proof: list[bytes], root: bytes) -> None:
    """Verification says no to noise; it never raises and never loops long."""
    assert not verify_inclusion(bytes(32), first, second, proof, root)
    if first == second or first == 0:
        return
    assert not verify_consistency(first, bytes(32), second, root, proof)


def test_empty_logs() -> None:
    """An empty log is the beginning of every log, without a proof, and contains nothing."""
    tree, nodes = grown(ALL[:3])
    assert consistency_proof(nodes, 0, 3) == consistency_proof(nodes, 3, 3) == []
    assert verify_consistency(0, EMPTY_ROOT, 3, tree.root(), [])
    assert verify_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, [])
    assert not verify_consistency(0, tree.root(), 3, tree.root(), [])
    assert not verify_consistency(0, tree.root(), 0, tree.root(), [])
    assert not verify_consistency(0, EMPTY_ROOT, 3, tree.root(), [EMPTY_ROOT])
    assert not verify_consistency(2, EMPTY_ROOT, 3, tree.root(), [])
    assert not verify_inclusion(leaf_hash(b""), 0, 0, [], EMPTY_ROOT)
    assert root_at(nodes, 0) == Tree.load(nodes, 0).root() == EMPTY_ROOT


def test_what_cannot_be_proven_is_an_error() -> None:
    """Positions outside the log and lost nodes are named errors; a leaf that is no hash changes nothing."""
    tree, nodes = grown(ALL[:3])
    for index, size in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(NotInTree):
            inclusion_proof(nodes, index, size)
    for old, new in ((4, 3), (-1, 3)):
        with pytest.raises(NotInTree):
            consistency_proof(nodes, old, new)
    with pytest.raises(NodeMissing, match="node 3 of level 0"):
        inclusion_proof(nodes, 2, 4)
    with pytest.raises(ValueError, match="32 bytes"):
        tree.extend([bytes(32), b"short"])
    assert tree.size == 3
    assert tree.root() == mth(ALL[:3])


class Full(MemoryNodes):
    def put(self, runs: object) -> None:
        raise OSError("no space left")


def test_a_failed_flush_loses_nothing() -> None:
    """When the store cannot take the nodes, they are still there to be put again."""
    tree = Tree()
    tree.extend([leaf_hash(each) for each in ALL])
    with pytest.raises(OSError, match="no space"):
        tree.flush(Full())
    nodes = MemoryNodes()
    tree.flush(nodes)
    assert root_at(nodes, 70) == tree.root()
