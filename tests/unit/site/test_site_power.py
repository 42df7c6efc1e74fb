"""The power of a site at the moment: the model of what runs, and what meters told last."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.clock import ManualClock
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Provenance, Sourced
from tokenworks.power.supply import Supply
from tokenworks.site.agent import SiteAgent
from tokenworks.site.meters.meter import GAP_NS_MAX, Meter, Panel, Sample, Wire
from tokenworks.site.pace import Pace
from tokenworks.site.words import Site, SliceLoad

LOAD = SliceLoad(slice="x", idle_mw=10, busy_mw=90, power=Provenance.MODELLED, cost_nano_per_hour=None)
SITE = Site(
    name="s", entity="e", jurisdiction=None, place=None, overhead=Sourced(value=500, provenance=Provenance.LISTED),
    supply=Supply(name="m", price=None, carbon=None), loads=(LOAD,), base_idle_mw=100,
)  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8), st.integers(0, 60), st.integers(0, 60))
def test_busy_time_is_the_union_of_works(spans: list[tuple[int, int]], start: int, end: int) -> None:
    """Against counting every nanosecond."""
    spans = [(min(span), max(span)) for span in spans]
    pace = Pace()
    for at, change in sorted([(a, 1) for a, _ in spans] + [(b, -1) for _, b in spans], key=lambda e: (e[0], -e[1])):
        pace.step(at, change)
    assert pace.busy_ns(start, end) == sum(any(a <= ns < b for a, b in spans) for ns in range(start, end))


class Room:
    """An agent whose meters the test feeds."""

    def __init__(self, *levels: str) -> None:
        self.clock = ManualClock()
        self.meters = [Meter(10**6) for _ in levels]
        wires = [Wire(self, "c", level, "", meter) for level, meter in zip(levels, self.meters, strict=True)]  # type: ignore[arg-type]
        self.agent = SiteAgent(SITE, self.clock, lambda interval: None, panel=Panel(wires))

    async def read(self) -> Mapping[str, Sample]:
        return {}

    def power(self) -> tuple[int, Provenance]:
        now = self.clock.now_ns()
        return self.agent.power(now - NS_PER_S, now)


def test_without_meters_it_is_modelled() -> None:
    """Idle, and busy for the part of the time in which something ran, with overhead: 1.5 (100 + 10 + 90 / 2)."""
    room = Room()
    room.agent.begin("r", "p", "x", room.clock.now_ns())
    room.clock.advance(0.5)
    room.agent.forget("r", "p", "x")
    room.clock.advance(0.5)
    assert room.power() == (233, Provenance.MODELLED)


def test_a_meter_of_the_whole_site_is_believed() -> None:
    """By its last two counts, or its last power; no longer than it may be silent."""
    room = Room("load")
    begin = room.clock.now_ns()
    room.meters[0].see(Sample(begin, mj=5))
    assert room.power()[1] is Provenance.MODELLED, "one count is no power"
    room.clock.advance(2)
    room.meters[0].see(Sample(room.clock.now_ns(), mj=805))
    assert room.power() == (400, Provenance.MEASURED)
    assert room.agent.meters() == [("load", 400, "")]
    room.meters[0].see(Sample(room.clock.now_ns() + 1, mw=300))
    assert room.power() == (300, Provenance.MEASURED)
    room.clock.advance(GAP_NS_MAX / NS_PER_S + 1)
    assert room.power() == (165, Provenance.MODELLED)


def test_a_meter_of_a_server_stands_in_for_its_model() -> None:
    """The machine's own counter; the building above it stays modelled, and so the whole is said to be."""
    room = Room("servers")
    room.meters[0].see(Sample(room.clock.now_ns(), mw=200))
    assert room.power() == (300, Provenance.MODELLED)
