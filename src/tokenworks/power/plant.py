"""Supplies of a site and what they can do in the coming step: each states a feasible range of power, and ``dispatch``
finds a balance within all of them. (The idea is Vessim's.) Power into the busbar is positive, charging is negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tokenworks.core.units import NS_PER_S, energy_mj
from tokenworks.power.contract import Flow
from tokenworks.power.signal import Steps, mean

PPM = 1_000_000


class Range(NamedTuple):
    """Least and greatest mean power over a step, milliwatts."""

    min_mw: int
    max_mw: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """The grid: what may be drawn (None: no limit) and given back, and micrograms per kWh: ``carbon`` is the average of
    its consumption (location-based), ``residual`` of what nobody has contracted (market-based; None: the same)."""

    name: str
    limit_mw: int | None = None
    export_limit_mw: int = 0
    carbon: Steps | None = None
    residual: Steps | None = None
    mix_permille: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """Solar, wind or a genset. ``availability``: parts per million of capacity; None: always all of it. ``remote``: not
    at the site but under contract, its energy delivered over the grid."""

    name: str
    kind: Literal["solar", "wind", "genset"]
    capacity_mw: int
    availability: Steps | None = None
    carbon: Steps | None = None
    remote: bool = False

    @property
    def green(self) -> bool:
        """Whether its energy counts as clean."""
        return self.kind != "genset"

    def feasible(self, start_ns: int, end_ns: int) -> Range | None:
        """From nothing to what is available; None where that is not known."""
        share = PPM if self.availability is None else mean(self.availability, start_ns, end_ns)
        return None if share is None else Range(0, self.capacity_mw * share // PPM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """``efficiency_permille`` is that of the round trip; the loss shows at discharge."""

    name: str
    capacity_mj: int
    power_mw: int
    efficiency_permille: int = 900

    def feasible(self, start_ns: int, end_ns: int, stored_mj: int) -> Range:
        """As far as room, content and the converter allow."""
        room, content = max(0, self.capacity_mj - stored_mj), stored_mj * self.efficiency_permille // 1_000
        into, out = (mj * NS_PER_S // (end_ns - start_ns) for mj in (room, content))
        return Range(-min(self.power_mw, into), min(self.power_mw, out))


@dataclass(frozen=True, slots=True, kw_only=True)
class Supplies:
    """All supplies of a site, no two of one name. No feed: an island."""

    feed: Feed | None
    plants: tuple[Plant, ...] = ()
    batteries: tuple[Battery, ...] = ()


def dispatch(
    supplies: Supplies, load_mj: int, start_ns: int, end_ns: int, stored_mj: Mapping[str, int]
) -> tuple[Flow, int]:
    """Modelled energy of an interval with this load, and the part of the load [mJ] that nothing could serve.

    Without meters this is what is assumed, and it is a simple policy, not an optimum: sun and wind first, then
    batteries, the grid, gensets; a surplus charges batteries, is exported as far as allowed, else not produced. A plant
    of unknown availability makes nothing. ``stored_mj``: contents by battery. The flow balances exactly.
    """
    length_ns = end_ns - start_ns
    produced, remote, charged, discharged = dict[str, int](), dict[str, int](), dict[str, int](), dict[str, int]()
    for plant in supplies.plants:
        if plant.green and (power := plant.feasible(start_ns, end_ns)):
            (remote if plant.remote else produced)[plant.name] = energy_mj(power.max_mw, length_ns)
    open_mj = load_mj - sum(produced.values())
    for battery in supplies.batteries:
        power = battery.feasible(start_ns, end_ns, stored_mj.get(battery.name, 0))
        if open_mj > 0:
            discharged[battery.name] = min(open_mj, power.max_mw * length_ns // NS_PER_S)
            open_mj -= discharged[battery.name]
        elif open_mj < 0:
            charged[battery.name] = min(-open_mj, -power.min_mw * length_ns // NS_PER_S)
            open_mj += charged[battery.name]
    feed = supplies.feed or Feed(name="", limit_mw=0)
    exported = min(max(0, -open_mj), energy_mj(feed.export_limit_mw, length_ns))
    open_mj += exported
    for name in reversed(produced):  # what has no taker is not produced
        spilt = min(max(0, -open_mj), produced[name])
        produced[name] -= spilt
        open_mj += spilt
    imported = open_mj if feed.limit_mw is None else min(open_mj, energy_mj(feed.limit_mw, length_ns))
    open_mj -= imported
    for plant in supplies.plants:
        if not plant.green and open_mj > 0 and (power := plant.feasible(start_ns, end_ns)):
            produced[plant.name] = min(open_mj, energy_mj(power.max_mw, length_ns))
            open_mj -= produced[plant.name]
    flow = Flow(
        start_ns=start_ns, end_ns=end_ns, import_mj=imported, export_mj=exported, produced_mj=produced,
        charged_mj=charged, discharged_mj=discharged, remote_mj=remote,
    )  # fmt: skip
    return flow, open_mj
