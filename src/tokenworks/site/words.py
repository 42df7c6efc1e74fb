"""The words of floor 2: a site, its slices of which it knows only power and cost, and what its meters said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tokenworks.core.words import Provenance, Sourced, Word
from tokenworks.power.supply import Supply
from tokenworks.site.facility import Facility

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
    server: str = ""
    """What shares a meter with it: a server, tray or rack. Empty: the site's own machine, with the base idle power."""
    board: str = ""
    """Slices of one board share its counter. Empty: a board of its own, without one."""
    stream_mw: int | None = None
    """Power of streaming weights, which all works of a batch share alike; None: all of ``busy_mw``."""
    prefill_nj: int = 0
    """Nanojoules per input token that no cache spared: each work bears its own."""
    context_nj: int = 0
    """Nanojoules per output token and token of its context (KV cache, attention): each work bears its own."""
    embodied_ug_per_hour: int | None = None
    """Of making the hardware, over its life. None: unknown."""
    reserved: str = ""
    """Who reserved it and bears its idle energy. Empty: nobody, the site does."""


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
    hosts_mw: dict[str, int] = {}
    """Idle power of each server beside its slices (processors, memory, fans)."""
    facility: Facility | None = None
    """Modules and cooling; then the overhead is their result, and ``overhead`` is not used."""

    def __post_init__(self) -> None:
        powers = [self.base_idle_mw, self.thread_busy_mw, self.overhead.value, *self.hosts_mw.values()]
        powers += [power for load in self.loads for power in (load.idle_mw, load.busy_mw, load.stream_mw or 0)]
        powers += [power for load in self.loads for power in (load.cost_nano_per_hour or 0, load.prefill_nj)]
        powers += [power for load in self.loads for power in (load.embodied_ug_per_hour or 0, load.context_nj)]
        if min(powers) < 0:
            raise ValueError(f"site {self.name}: power, overhead and cost cannot be negative")
        if len({load.slice for load in self.loads}) != len(self.loads):
            raise ValueError(f"site {self.name}: a slice is named twice")

    @property
    def pue_permille(self) -> int:
        """Facility energy over IT energy, in permille."""
        return 1_000 + self.overhead.value


class Costs(NamedTuple):
    """What the energy of an interval's whole load cost and emitted, as floor 1 traced it; None: unknown."""

    nano: int | None
    carbon_ug: int | None
    market_ug: int | None
    mix_permille: dict[str, int]


Pricing = Callable[[int, int, int], Costs]
"""From start, end and the millijoules of the load to what they cost."""


class Readings(NamedTuple):
    """Millijoules of one interval by what counted them. Absent: has no meter. None (a server's): its sensor is dead."""

    load: int | None = None
    """The whole facility, at its busbar."""
    it: int | None = None
    servers: Mapping[str, int | None] = {}
    boards: Mapping[str, int] = {}
    implausible: int = 0
    """Counted by the facility's meter beyond what the site can draw; part of ``load`` but of no use: residual."""
    floor_mw: Mapping[str, int] = {}
    """Measured idle power of whole servers in the state they were in, instead of the listed one."""
    sink_mc: int | None = None
    """Thousandths of a degree: wet bulb, or the sea. None: the design's."""
    seen_permille: int = 1_000
    """Of the time, the part that the sensors saw."""
    notes: tuple[str, ...] = ()
