"""The splitting of a site's meter: every millijoule gets exactly one place. Pure integer functions.

Concurrent works use a slice jointly, and a jointly used cost divides equally among its users: that is its Shapley
value, and Shapley values add over the segments of an interval. Parts are rounded by largest remainder, in the order
of receipt ids, so any order of the works gives the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from tokenworks.core.units import energy_mj, rate_of, split
from tokenworks.core.words import LAYERS, EnergyLine, Interval, Provenance, ServiceLine, Work
from tokenworks.site.costing import Bill, Energy, bill, depreciation, split_or_last
from tokenworks.site.words import Site

PPM = 1_000_000

_FINE = math.lcm(*range(1, 33))
"""Ticks of the fair-share clock per nanosecond: exact up to 32 concurrent works, off by 1e-14 ns per segment above."""

Shares = dict[str, tuple[int, dict[str, int]]]


def shares(works: Iterable[Work], start_ns: int, end_ns: int) -> Shares:
    """Per slice: the time [ns] that it was busy in [start, end), and the parts of it by receipt, in order of receipt.

    Wherever n works overlap, each gets a n-th of that time. The parts sum exactly to the busy time.
    O(k log k) for k works.
    """
    spans: dict[str, list[tuple[int, int, str]]] = {}
    for work in works:
        begin, finish = max(work.start_ns, start_ns), min(work.end_ns, end_ns)
        if begin < finish:
            spans.setdefault(work.slice, []).append((begin, finish, work.receipt))
    return {slice_: _share(spans[slice_]) for slice_ in sorted(spans)}


def _share(spans: list[tuple[int, int, str]]) -> tuple[int, dict[str, int]]:
    """Sweep with a clock that runs at 1/n while n works run: a work's share is how far it moved meanwhile.

    Rounding once at the end keeps equal works within 1 ns of each other however often their company changed.
    """
    edges = sorted([(begin, 1) for begin, _, _ in spans] + [(finish, -1) for _, finish, _ in spans])
    busy_ns = ticks = running = last_ns = 0
    ticks_at: dict[int, int] = {}
    for instant_ns, step in edges:
        if running:
            busy_ns += instant_ns - last_ns
            ticks += (instant_ns - last_ns) * _FINE // running
        ticks_at[instant_ns] = ticks
        running += step
        last_ns = instant_ns
    weights: dict[str, int] = {}
    for begin, finish, receipt in spans:
        weights[receipt] = weights.get(receipt, 0) + ticks_at[finish] - ticks_at[begin]
    receipts = sorted(weights)
    return busy_ns, dict(zip(receipts, split(busy_ns, [weights[r] for r in receipts]), strict=True))


def _modelled(site: Site, duration_ns: int, shared: Shares, cpu_ns: Sequence[int]) -> Energy:
    """The model alone: power times time."""
    busy_mw = {load.slice: load.busy_mw for load in site.loads}
    slices = [energy_mj(busy_mw.get(slice_, 0), busy_ns) for slice_, (busy_ns, _) in shared.items()]
    idle = energy_mj(site.base_idle_mw + sum(load.idle_mw for load in site.loads), duration_ns)
    services = [energy_mj(site.thread_busy_mw, ns) for ns in cpu_ns]
    it = sum(slices) + idle + sum(services)
    overhead = rate_of(it, site.overhead.value, 1_000)
    return Energy(it + overhead, slices, idle, services, overhead, 0, PPM)


def _scaled(site: Site, model: Energy, reading: int) -> Energy:
    """The model fitted to the meter: idle and services at most as modelled, the work on the slices takes what is left.

    What nothing in the model can carry (no work ran; a meter that counted backward) is the signed residual.
    """
    it = rate_of(max(0, reading), 1_000, site.pue_permille)
    idle = min(model.idle, it)
    serving = min(sum(model.services), it - idle)
    services = split_or_last(serving, [*model.services, 0])[:-1]
    working = it - idle - serving if any(model.slices) else 0
    overhead = max(0, reading) - it
    return Energy(
        meter=reading,
        slices=split_or_last(working, [*model.slices, 0])[:-1],
        idle=idle,
        services=services,
        overhead=overhead,
        residual=reading - idle - serving - working - overhead,
        # Without any modelled energy there is nothing to compare the meter with: 0 says that the model is worthless.
        scale_ppm=reading * PPM // model.meter if model.meter else (0 if reading else PPM),
    )


def close_interval(
    site: Site,
    start_ns: int,
    end_ns: int,
    works: Sequence[Work],
    ended: frozenset[str],
    services: Mapping[str, int],
    reading_mj: int | None,
) -> Interval:
    """Close [start, end) of a site: ``services`` is processor time [ns] per floor, ``reading_mj`` the whole facility.

    One line per receipt that held a slice in the interval, or that ``ended`` with a work given here (zeros, so that
    its energy record becomes final). Time on a slice that the site does not know counts, but has no modelled energy.
    Money follows millijoules; that of a positive residual is in ``idle_nano``. Service lines stand without overhead;
    a request's carbon includes its overhead. Raises ValueError when the interval ends before it starts.
    """
    if end_ns < start_ns:
        raise ValueError("an interval cannot end before it starts")
    shared = shares(works, start_ns, end_ns)
    layers = [layer for layer in LAYERS if layer in services] + sorted(set(services) - set(LAYERS))
    cpu_ns = [services[layer] for layer in layers]
    energy = _modelled(site, end_ns - start_ns, shared, cpu_ns)
    if reading_mj is not None:
        energy = _scaled(site, energy, reading_mj)
    held = _held(energy, shared, {work.receipt for work in works if work.receipt in ended})
    costs = bill(site.supply, energy, [mj for mj, _ in held.values()])
    device_nano, idle_device_nano = depreciation(site.loads, end_ns - start_ns, works, shared)
    return Interval(
        site=site.name,
        supply=site.supply.name,
        start_ns=start_ns,
        end_ns=end_ns,
        meter_mj=energy.meter,
        meter=Provenance.MODELLED if reading_mj is None else Provenance.MEASURED,
        scale_ppm=energy.scale_ppm,
        requests=_request_lines(held, costs, device_nano, ended),
        services=_service_lines(layers, cpu_ns, energy, costs),
        idle_mj=energy.idle,
        idle_nano=costs.idle_nano,
        overhead_mj=energy.overhead,
        overhead_nano=costs.overhead_total_nano,
        residual_mj=energy.residual,
        bill_nano=costs.total_nano,
        carbon_ug=costs.carbon_total_ug,
        idle_device_nano=idle_device_nano,
        mix_permille=site.supply.mix_permille,
    )


def _held(energy: Energy, shared: Shares, ended: set[str]) -> dict[str, tuple[int, int]]:
    """Millijoules and slice time [ns] by receipt, in order of receipt: each slice's energy follows its time."""
    held = dict.fromkeys(ended, (0, 0))
    for slice_mj, (_, parts) in zip(energy.slices, shared.values(), strict=True):
        for (receipt, ns), mj in zip(parts.items(), split(slice_mj, list(parts.values())), strict=True):
            before_mj, before_ns = held.get(receipt, (0, 0))
            held[receipt] = (before_mj + mj, before_ns + ns)
    return dict(sorted(held.items()))


def _request_lines(
    held: Mapping[str, tuple[int, int]], costs: Bill, device_nano: Mapping[str, int], ended: frozenset[str]
) -> tuple[EnergyLine, ...]:
    return tuple(
        EnergyLine(
            receipt=receipt,
            energy_mj=energy_mj_,
            energy_nano=costs.energy_nano[i],
            overhead_mj=costs.overhead_mj[i],
            overhead_nano=costs.overhead_nano[i],
            carbon_ug=costs.carbon_ug[i],
            slice_ns=slice_ns,
            device_nano=device_nano.get(receipt),
            ended=receipt in ended,
        )
        for i, (receipt, (energy_mj_, slice_ns)) in enumerate(held.items())
    )


def _service_lines(
    layers: Sequence[str], cpu_ns: Sequence[int], energy: Energy, costs: Bill
) -> tuple[ServiceLine, ...]:
    first = len(costs.overhead_mj)  # services follow the requests
    return tuple(
        ServiceLine(
            layer=layer,
            cpu_ns=cpu_ns[j],
            energy_mj=energy.services[j],
            energy_nano=costs.energy_nano[first + j],
            carbon_ug=costs.carbon_ug[first + j],
        )
        for j, layer in enumerate(layers)
    )
