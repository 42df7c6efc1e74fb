"""The tree of RFC 9162 over SHA-256: appending, roots, inclusion and consistency proofs, and their verification.

The tree in memory is its right edge only. Roots of complete subtrees go through the port ``Nodes``: level 0 holds the
leaf hashes, the node ``(level, index)`` covers the leaves from ``index << level`` up to ``(index + 1) << level``. A
complete subtree never changes, so the nodes prove any past size, not only the latest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from tokenworks.exchange.log.errors import NodeMissing, NotInTree

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()
PROOF_MAX = 64
"""Hashes in a proof: a tree of 2^63 leaves needs no more."""

_sha256 = hashlib.sha256


class Run(NamedTuple):
    """Roots of complete subtrees of one size, one beside the other."""

    level: int
    place: int
    """Of the first."""
    hashes: list[bytes]


class Nodes(Protocol):
    """Where roots of complete subtrees are kept. What was put is never changed or taken away."""

    def get(self, level: int, index: int) -> bytes | None:
        """The node's hash, or None when it is not there."""

    def put(self, runs: Iterable[Run]) -> None:
        """Keep all of them. Those of one level come in order, none left out."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf's content."""
    return _sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node. Its first byte differs from a leaf's, so that none passes for the other."""
    return _sha256(b"\x01" + left + right).digest()


class Tree:
    """The growing end of a log: one hash per level, and the nodes made since the last flush."""

    def __init__(self) -> None:
        self.size = 0
        self._edge: dict[int, bytes] = {}
        """By level, the last subtree that has nothing beside it yet: one for each bit of the size."""
        self._fresh: list[Run] = []

    @classmethod
    def load(cls, nodes: Nodes, size: int) -> Tree:
        """The tree as it was at that size, from at most 64 reads. Raises NodeMissing."""
        made = cls()
        made.size, made._edge = size, {level: _node(nodes, level, place) for level, place in _complete(0, size)}
        return made

    def extend(self, leaves: Iterable[bytes]) -> int:
        """Add leaves by their hashes; returns the index of the first. Raises ValueError and adds none for other bytes.

        Level by level: each two neighbours make one hash of the level above.
        """
        hashes = list(leaves)
        if any(len(leaf) != HASH_BYTES for leaf in hashes):
            raise ValueError("a leaf is added by its hash of 32 bytes")
        first, level, place, sha256 = self.size, 0, self.size, _sha256
        self.size += len(hashes)
        while hashes:
            self._fresh.append(Run(level, place, hashes))
            if place & 1:
                hashes, place = [self._edge.pop(level), *hashes], place - 1
            if len(hashes) & 1:
                self._edge[level] = hashes[-1]
            pairs = zip(hashes[::2], hashes[1::2], strict=False)
            hashes = [sha256(b"\x01" + left + right).digest() for left, right in pairs]
            level, place = level + 1, place >> 1
        return first

    def root(self) -> bytes:
        """The root over all leaves so far."""
        return _fold([self._edge[level] for level in sorted(self._edge, reverse=True)])

    def flush(self, nodes: Nodes) -> None:
        """Put the nodes made since the last flush. They stay here when that fails, so it can be tried again."""
        nodes.put(self._fresh)
        self._fresh = []


def _fold(edge: Sequence[bytes]) -> bytes:
    """The root over neighbouring subtrees, the largest first."""
    if not edge:
        return EMPTY_ROOT
    root = edge[-1]
    for left in reversed(edge[:-1]):
        root = node_hash(left, root)
    return root


def _node(nodes: Nodes, level: int, index: int) -> bytes:
    found = nodes.get(level, index)
    if found is None:
        raise NodeMissing(f"the receipts log lost the node {index} of level {level}", hint="restore it from a backup")
    return found


def _complete(start: int, end: int) -> list[tuple[int, int]]:
    """The complete subtrees from ``start`` to ``end``, the largest first; ``start`` is aligned to the largest."""
    found = []
    while start < end:
        level = (end - start).bit_length() - 1
        found.append((level, start >> level))
        start += 1 << level
    return found


def _range_root(nodes: Nodes, start: int, end: int) -> bytes:
    return _fold([_node(nodes, *place) for place in _complete(start, end)])


def _split(start: int, end: int) -> int:
    """Where RFC 9162 parts a tree: after the largest power of two that is less than its size."""
    return start + (1 << ((end - start - 1).bit_length() - 1))


def root_at(nodes: Nodes, size: int) -> bytes:
    """The root of a past size. Raises NodeMissing."""
    return _range_root(nodes, 0, size)


def _beside(nodes: Nodes, index: int, size: int, end_at: int) -> tuple[list[bytes], int, int]:
    """The way down to a leaf, or to the subtree around it that ends at a size: the roots beside it, and its range."""
    start, end, beside = 0, size, []
    while end - start > 1 and end != end_at:
        middle = _split(start, end)
        if index < middle:
            beside.append(_range_root(nodes, middle, end))
            end = middle
        else:
            beside.append(_range_root(nodes, start, middle))
            start = middle
    return beside, start, end


def inclusion_proof(nodes: Nodes, index: int, size: int) -> list[bytes]:
    """The hashes that lead from a leaf to the root of that size, nearest first. Raises NotInTree and NodeMissing."""
    if not 0 <= index < size:
        raise NotInTree(f"there is no leaf {index} in a log of {size}")
    return _beside(nodes, index, size, 0)[0][::-1]


def consistency_proof(nodes: Nodes, old: int, new: int) -> list[bytes]:
    """The hashes that show that the tree of size ``old`` begins the one of size ``new``. Raises NotInTree, NodeMissing.

    Empty for equal sizes and for an empty old tree: there is nothing to show.
    """
    if not 0 <= old <= new:
        raise NotInTree(f"a log of {new} leaves does not go on from one of {old}")
    if old in (0, new):
        return []
    proof, start, end = _beside(nodes, old - 1, new, old)
    if start:  # otherwise the last hash would be the old root, which the verifier has
        proof.append(_range_root(nodes, start, end))
    return proof[::-1]


def _are_hashes(*hashes: bytes) -> bool:
    return len(hashes) <= PROOF_MAX + 2 and all(len(each) == HASH_BYTES for each in hashes)


def _climb(place: int, last: int, node: bytes, proof: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """From a node up: the root of the tree that ends with it, and of the whole. None: the proof has another length."""
    older = newer = node
    for beside in proof:
        if last == 0:
            return None
        if place & 1 or place == last:
            older, newer = node_hash(beside, older), node_hash(beside, newer)
            while place and not place & 1:  # a right edge that is not full: these levels have nothing beside
                place, last = place >> 1, last >> 1
        else:
            newer = node_hash(newer, beside)
        place, last = place >> 1, last >> 1
    return (older, newer) if last == 0 else None


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the leaf hash stands at ``index`` in the tree of that root. The size must come from a checkpoint."""
    if not 0 <= index < size or not _are_hashes(leaf, root, *proof):
        return False
    found = _climb(index, size - 1, leaf, proof)
    return found is not None and found[1] == root


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the new tree has the old one as its beginning: nothing was changed, moved or left out."""
    if not 0 <= old_size <= new_size or not _are_hashes(old_root, new_root, *proof):
        return False
    if old_size == new_size:
        return not proof and old_root == new_root and (old_size > 0 or old_root == EMPTY_ROOT)
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT
    hashes = list(proof) if old_size & (old_size - 1) else [old_root, *proof]
    level = (old_size & -old_size).bit_length() - 1  # of the last complete subtree of the old tree
    return bool(hashes) and _climb((old_size - 1) >> level, (new_size - 1) >> level, hashes[0], hashes[1:]) == (
        old_root,
        new_root,
    )
