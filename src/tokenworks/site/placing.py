"""Where the millijoules of an interval are: meters over boards over a model, each level closing on the one above.

The lowest metered level is scaled to its meter; above it, what the parts do not explain is a signed residual.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tokenworks.core.units import energy_mj, rate_of, split
from tokenworks.site.words import Readings, Site, SliceLoad

PPM = 1_000_000
SCALE_ALARM_PPM = (900_000, 1_200_000)
"""Outside of this a meter and the model under it disagree by more than instruments do."""


class Energy(NamedTuple):
    """Where the millijoules of an interval are; slices and services in the order in which they were given."""

    meter: int
    slices: list[int]
    idle: int
    services: list[int]
    overhead: int
    residual: int
    scale_ppm: int
    fixed_overhead: int = 0
    """Of the overhead: what follows reserved capacity."""
    reserved: dict[str, int] = {}
    scales_ppm: dict[str, int] = {}
    quality_permille: int = 0
    notes: tuple[str, ...] = ()


class _Group(NamedTuple):
    """Energy of what shares a meter: idle by owner, services, slices, and what a board counted without any work."""

    idle: dict[str, int]
    services: list[int]
    slices: list[int]
    unclaimed: int = 0

    @property
    def total(self) -> int:
        return sum(self.idle.values()) + sum(self.services) + sum(self.slices) + self.unclaimed


def split_or_last(total: int, weights: Sequence[int]) -> list[int]:
    """``split``, but where nothing weighs anything the last part bears the total, not everyone alike."""
    if any(weights):
        return split(total, weights)
    return [0] * (len(weights) - 1) + [total]


def _fitted(model: _Group, reading: int) -> _Group:
    """The model fitted to its meter: idle and services at most as modelled, the work on the slices takes what is left.

    What nothing in the model can carry (no work ran; a meter that counted backward) stays outside.
    """
    most = max(0, reading)
    idle = min(sum(model.idle.values()), most)
    serving = min(sum(model.services), most - idle)
    working = most - idle - serving if any(model.slices) or model.unclaimed else 0
    *slices, unclaimed, _ = split_or_last(working, [*model.slices, model.unclaimed, 0])
    owners = dict(zip(model.idle, split_or_last(idle, [*model.idle.values(), 0]), strict=False))
    return _Group(owners, split_or_last(serving, [*model.services, 0])[:-1], slices, unclaimed)


def _counted(loads: Mapping[str, SliceLoad], busy_mj: dict[str, int], boards: Mapping[str, int], ns: int) -> int:
    """Put boards' counters, less their idle energy, in the place of the model of their slices, which share it: never
    more than the board. Returns what boards counted though no work ran on them."""
    unclaimed = 0
    for board, counter in sorted(boards.items()):
        mine = [name for name, load in loads.items() if load.board == board]
        dynamic = max(0, counter - sum(energy_mj(loads[name].idle_mw, ns) for name in mine))
        *parts, left = split_or_last(dynamic, [*(busy_mj.get(name, 0) for name in mine), 0])
        busy_mj.update((name, mj) for name, mj in zip(mine, parts, strict=True) if name in busy_mj)
        unclaimed += left
    return unclaimed


def _model(
    site: Site, ns: int, busy_ns: Mapping[str, int], cpu_ns: Sequence[int], said: Readings, server: str | None
) -> _Group:
    """What one server (None: the whole site) took by model and board counters. Slices of others are left at 0."""
    loads = {load.slice: load for load in site.loads if server in (None, load.server)}
    here = server in (None, "")
    known = {load.slice for load in site.loads}
    busy_mj = {
        name: energy_mj(loads[name].busy_mw, busy) if name in loads else 0
        for name, busy in busy_ns.items()
        if name in loads or (here and name not in known)
    }
    mine = {load.board for load in loads.values()} - {""}
    unclaimed = _counted(loads, busy_mj, {b: mj for b, mj in said.boards.items() if b in mine}, ns)
    idle: dict[str, int] = {"": energy_mj(site.base_idle_mw, ns) if here else 0}
    for name, host_mw in site.hosts_mw.items():
        idle[""] += energy_mj(host_mw, ns) if server in (None, name) else 0
    for load in loads.values():
        idle[load.reserved] = idle.get(load.reserved, 0) + energy_mj(load.idle_mw, ns)
    if server in said.floor_mw:  # measured, for the state it was in
        floor = energy_mj(said.floor_mw[server or ""], ns)
        idle = dict(zip(idle, split(floor, list(idle.values())), strict=True))
    services = [energy_mj(site.thread_busy_mw, each) if here else 0 for each in cpu_ns]
    return _Group(idle, services, [busy_mj.get(name, 0) for name in busy_ns], unclaimed)


def place(site: Site, ns: int, busy_ns: Mapping[str, int], cpu_ns: Sequence[int], said: Readings) -> Energy:
    """Put every millijoule of an interval of ``ns`` somewhere, from the busy time of slices and services [ns].

    ``meter == slices + idle + services + overhead + residual``, whatever was read. Without any reading all is modelled.
    """
    whole = _model(site, ns, busy_ns, cpu_ns, said, None)
    modelled = sum(_overhead(site, whole.total, ns, said)) + whole.total
    load = None if said.load is None else said.load - said.implausible
    notes, scales, it, placed, by_difference = list(said.notes), dict[str, int](), said.it, 0, True
    if not said.servers:
        if it is None and load is not None:
            it = rate_of(max(0, load), whole.total, modelled) if modelled else max(0, load)
        parts = [whole if it is None else _fitted(whole, it)]
        placed = it or 0
    else:
        parts, below = [], 0
        for name in sorted({*said.servers, *site.hosts_mw, *(each.server for each in site.loads), ""}):
            group, reading = _model(site, ns, busy_ns, cpu_ns, said, name), said.servers.get(name)
            if reading is None:  # a model stands in, so what is missing in the facility's meter is not overhead
                by_difference = by_difference and (it is not None or group.total == 0)
                notes += [f"{_called(name)}: its meter is silent"] if name in said.servers else []
            else:
                scales[name] = _scale(reading, group.total)
                group = _fitted(group, reading)
                placed += reading
            below += group.total if reading is None else reading
            parts.append(group)
        it = below if it is None else it
    known = it is not None
    it = whole.total if it is None else it
    fixed, variable = _overhead(site, it, ns, said)
    overhead = fixed + variable
    if load is not None and by_difference:
        overhead = max(0, load - it)
        placed += overhead
        fixed = rate_of(overhead, fixed, fixed + variable) if fixed + variable else 0
    meter = it + overhead if said.load is None else said.load
    used = sum(part.total - part.unclaimed for part in parts)
    residual = meter - used - overhead
    idle, reserved = _owners(part.idle for part in parts)
    scale = _scale(meter, modelled) if known else PPM
    said_of = {_called(name): ppm for name, ppm in scales.items()} or {"the site": scale}
    low, high = SCALE_ALARM_PPM
    notes += [f"{n}: the meter says {p / PPM:.2f} of the model" for n, p in said_of.items() if not low <= p <= high]
    believed = max(0, min(placed, meter) - abs(residual)) * said.seen_permille
    return Energy(
        meter, [sum(each) for each in zip(*(part.slices for part in parts), strict=True)], idle,
        [sum(each) for each in zip(*(part.services for part in parts), strict=True)], overhead, residual, scale,
        fixed, reserved, scales, min(1_000, believed // meter) if meter > 0 else 0, tuple(notes),
    )  # fmt: skip


def _owners(idle: Iterable[dict[str, int]]) -> tuple[int, dict[str, int]]:
    """All idle energy, and that of reserved slices by who reserved them."""
    sums: dict[str, int] = {}
    for each in idle:
        for name, mj in each.items():
            sums[name] = sums.get(name, 0) + mj
    return sum(sums.values()), {name: mj for name, mj in sorted(sums.items()) if name}


def _overhead(site: Site, it_mj: int, ns: int, said: Readings) -> tuple[int, int]:
    """Fixed and variable overhead by the model; never of an energy that has overhead in it already."""
    if site.facility is not None:
        return site.facility.overhead_mj(max(0, it_mj), ns, said.sink_mc)
    return 0, rate_of(max(0, it_mj), site.overhead.value, 1_000)


def _called(server: str) -> str:
    return f"server {server}" if server else "the site's machine"


def _scale(reading: int, model: int) -> int:
    # Without any modelled energy there is nothing to compare the meter with: 0 says that the model is worthless.
    return reading * PPM // model if model else (0 if reading else PPM)
