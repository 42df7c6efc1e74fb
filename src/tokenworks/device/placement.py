"""Placement: Demands onto slices of unlike devices, best fit first. Pure.

Each demand takes the devices on which it leaves least free, so that large free places survive. The hardest choose first
(many devices, large shares, much memory); when not all find room, so do the easiest, and the better order counts.
Multi-dimensional packing is NP-hard; the tests measure the distance to an exact search.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenworks.core.words import Demand, Word

WHOLE = 1_000


class Spot(Word, frozen=True):
    """One device as placement sees it."""

    id: str
    node: str
    model: str
    """Only devices of one model work together."""
    backend: str
    """What demands ask for: its vendor, or a software stack."""
    memory_mb: int
    gflops: int | None = None
    link: str | None = None
    """The fast interconnect that it is on; None: it has none."""
    available: bool = True
    booked_permille: int = 0
    booked_mb: int = 0
    used_mb: int = 0
    """Measured."""

    @property
    def free_mb(self) -> int:
        """The larger of booked and measured memory is taken, never booked numbers alone."""
        return max(0, self.memory_mb - max(self.booked_mb, self.used_mb))


class Placement(Word, frozen=True):
    """Who got what, who got nothing and why, and how well the available devices are filled afterwards."""

    placed: dict[str, tuple[str, ...]]
    refused: dict[str, str]
    compute_permille: int
    """Of all compute, taken."""
    memory_permille: int
    """Of all memory, taken."""
    fragmentation_permille: int
    """Of the free compute, on devices that are partly taken: no demand for a whole card can use it."""


class _Room:
    """What is free while demands are placed."""

    def __init__(self, spots: Sequence[Spot]) -> None:
        self.spots = [spot for spot in spots if spot.available]
        self.share = [WHOLE - spot.booked_permille for spot in self.spots]
        self.memory = [spot.free_mb for spot in self.spots]
        self.groups: dict[str, dict[tuple[str, ...], list[int]]] = {"any": {}, "node": {}, "link": {}}
        for i, spot in enumerate(self.spots):
            on = spot.link or f"alone {i}"
            for near, where in (("any", ()), ("node", (spot.node,)), ("link", (spot.node, on))):
                self.groups[near].setdefault((spot.model, *where), []).append(i)

    def left(self, i: int, demand: Demand) -> int | None:
        """What would stay free of a device, compute and memory in permille of it; None: the demand cannot have it."""
        spot, share, memory = self.spots[i], self.share[i] - demand.share_permille, self.memory[i] - demand.memory_mb
        slow = demand.gflops and (spot.gflops or 0) * demand.share_permille < demand.gflops * WHOLE
        if share < 0 or memory < 0 or slow or (demand.backends and spot.backend not in demand.backends):
            return None
        return share + WHOLE * memory // max(1, spot.memory_mb)

    def best(self, demand: Demand) -> list[int]:
        """The devices that leave least free; of equals those whose group is broken most. Empty: there are none."""
        best: tuple[tuple[int, int], list[int]] = (0, 0), []
        for group in self.groups["link" if demand.count == 1 else demand.near].values():
            fits = sorted((left, i) for i in group if (left := self.left(i, demand)) is not None)
            score = sum(left for left, _ in fits[: demand.count]), len(fits)
            if len(fits) >= demand.count and (not best[1] or score < best[0]):
                best = score, [i for _, i in fits[: demand.count]]
        return best[1]


def place(spots: Sequence[Spot], demands: Sequence[Demand]) -> Placement:
    """Place as many as the rule finds room for. Raises ValueError for two demands of one name or a senseless one."""
    for demand in demands:
        shared = demand.count > 1 and demand.share_permille != WHOLE
        if demand.count < 1 or demand.memory_mb < 0 or not 0 < demand.share_permille <= WHOLE or shared:
            raise ValueError(f"{demand.name}: at least one device, a share of 1 to 1,000, and whole cards for several")
    if len({demand.name for demand in demands}) < len(demands):
        raise ValueError("two demands of one name")
    hardest = sorted(demands, key=lambda d: (-d.count, -d.share_permille, -d.memory_mb))
    easiest = sorted(demands, key=lambda d: (d.count * d.share_permille, d.memory_mb))
    found = _fill(_Room(spots), hardest)
    other = _fill(_Room(spots), easiest) if found.refused else found
    return other if len(other.placed) > len(found.placed) else found


def _fill(room: _Room, demands: Sequence[Demand]) -> Placement:
    placed: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    for demand in demands:
        chosen = room.best(demand)
        for i in chosen:
            room.share[i] -= demand.share_permille
            room.memory[i] -= demand.memory_mb
        if chosen:
            placed[demand.name] = tuple(room.spots[i].id for i in chosen)
        else:
            fits = sum(room.left(i, demand) is not None for i in range(len(room.spots)))
            close = "alike" if demand.near == "any" else f"close enough together ({demand.near})"
            far = f", none of them {close}" if fits >= demand.count else ""
            refused[demand.name] = f"{fits} devices of its kind have room for it, {demand.count} are needed{far}"
    compute, free = WHOLE * len(room.spots), sum(room.share)
    memory = sum(spot.memory_mb for spot in room.spots)
    return Placement(
        placed=placed,
        refused=refused,
        compute_permille=WHOLE * (compute - free) // max(1, compute),
        memory_permille=WHOLE * (memory - sum(room.memory)) // max(1, memory),
        fragmentation_permille=WHOLE * sum(share for share in room.share if share < WHOLE) // max(1, free),
    )
