"""The words of floor 2: a site, and the slices on it of which it knows only power and cost."""

from __future__ import annotations

from tokenworks.core.words import Provenance, Sourced, Word
from tokenworks.power.supply import Supply

ASSUMED_OVERHEAD = Sourced(
    value=580,
    provenance=Provenance.LISTED,
    source="world average PUE 1.58 in 2023, Uptime Institute survey",
    error_permille=1_000,
)
"""Overhead of a site about which nobody said anything, permille of its IT energy. Good sites add 20 to 100."""


class SliceLoad(Word, frozen=True):
    """One slice as the site sees it: a load with a cost."""

    slice: str
    idle_mw: int
    busy_mw: int
    """Power above idle when fully busy."""
    power: Provenance
    cost_nano_per_hour: int | None
    """None: unknown."""


class Site(Word, frozen=True, kw_only=True):
    """A factory: supply, facility overhead and loads. Raises ValueError for negative power or a slice named twice."""

    name: str
    entity: str
    jurisdiction: str | None
    place: str | None
    latency_ns: int = 0
    overhead: Sourced
    """Permille of the IT energy that the facility adds: 580 for a PUE of 1.58."""
    supply: Supply
    loads: tuple[SliceLoad, ...]
    base_idle_mw: int = 0
    """Idle power of the machine that belongs to no slice."""
    thread_busy_mw: int = 0
    """Power above idle of one busy processor thread, for the gateway's own processor time."""

    def __post_init__(self) -> None:
        powers = [self.base_idle_mw, self.thread_busy_mw, self.overhead.value]
        powers += [power for load in self.loads for power in (load.idle_mw, load.busy_mw, load.cost_nano_per_hour or 0)]
        if min(powers) < 0:
            raise ValueError(f"site {self.name}: power, overhead and cost cannot be negative")
        if len({load.slice for load in self.loads}) != len(self.loads):
            raise ValueError(f"site {self.name}: a slice is named twice")

    @property
    def pue_permille(self) -> int:
        """Facility energy over IT energy, in permille."""
        return 1_000 + self.overhead.value
