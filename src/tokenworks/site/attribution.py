"""The splitting of a site's meter: every millijoule gets exactly one place. Pure integer functions.

Concurrent works use a slice jointly, and a jointly used cost divides equally among its users: that is its Shapley
value, and Shapley values add over the parts of a cost and the segments of an interval. Streaming weights is joint;
prefill and reading one's own context are each work's own. Batches are reconstructed from Work records, so the shares
are modelled; then they are normalised to the meter. Parts are rounded by largest remainder, in the order of receipt
ids, so any order of the works gives the same lines. ``bulk`` does the same for millions of works.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tokenworks.core.units import NS_PER_S, rate_of, split
from tokenworks.core.words import FIGURES, LAYERS, EnergyLine, Interval, Provenance, ServiceLine, Work
from tokenworks.site.costing import LISTS, NS_PER_HOUR, Held, Lists, bill, flat
from tokenworks.site.placing import PPM, place
from tokenworks.site.words import Pricing, Readings, Site, SliceLoad

RATES = (
    ("device_nano", "idle_device_nano", "cost_nano_per_hour"),
    ("embodied_ug", "idle_embodied_ug", "embodied_ug_per_hour"),
)
"""What follows slice time: on a request's line, on the interval for what nobody used, and per hour of a slice."""
FINE = math.lcm(*range(1, 16))
"""Ticks of the fair-share clock per nanosecond: exact up to 15 concurrent works, off by 3e-6 ns per segment above.
An hour of ticks fits into 64 bits, for ``bulk``."""
BULK_MIN, BULK_NS_MAX = 1_000, 3_600 * NS_PER_S
"""From so many works on, and up to so long an interval, arrays are used."""

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
            ticks += (instant_ns - last_ns) * FINE // running
        ticks_at[instant_ns] = ticks
        running += step
        last_ns = instant_ns
    weights: dict[str, int] = {}
    for begin, finish, receipt in spans:
        weights[receipt] = weights.get(receipt, 0) + ticks_at[finish] - ticks_at[begin]
    receipts = sorted(weights)
    return busy_ns, dict(zip(receipts, split(busy_ns, [weights[r] for r in receipts]), strict=True))


def weights(
    load: SliceLoad | None, works: Iterable[Work], held: Mapping[str, int], start_ns: int, end_ns: int
) -> list[int]:
    """What each receipt that held a slice weighs in its energy: nanojoules by the model, in order of receipt.

    Its time is its Shapley share of streaming the weights; its own are prefill (spread over the time to the first
    token) and context (over the time after it). Where the model says nothing at all, time itself weighs.
    """
    if load is None:
        return list(held.values())
    stream_mw = load.busy_mw if load.stream_mw is None else load.stream_mw
    found = {receipt: stream_mw * ns // 1_000 for receipt, ns in held.items()}
    for work in works if load.prefill_nj or load.context_nj else ():
        if max(work.start_ns, start_ns) < min(work.end_ns, end_ns):
            first_ns = work.end_ns if work.first_ns is None else min(max(work.first_ns, work.start_ns), work.end_ns)
            fresh = max(0, work.input_tokens - work.cached_tokens) * load.prefill_nj
            read = work.output_tokens * (2 * work.input_tokens + work.output_tokens) // 2 * load.context_nj
            found[work.receipt] += _within(fresh, work.start_ns, first_ns, start_ns, end_ns)
            found[work.receipt] += _within(read, first_ns, work.end_ns, start_ns, end_ns)
    return list(found.values()) if any(found.values()) else list(held.values())


def _within(amount: int, begin_ns: int, finish_ns: int, start_ns: int, end_ns: int) -> int:
    """The part of an amount spread evenly over a span that falls into [start, end); a moment's is where it begins."""
    if begin_ns >= finish_ns:
        return amount if start_ns <= begin_ns < end_ns else 0
    inside_ns = max(0, min(finish_ns, end_ns) - max(begin_ns, start_ns))
    return amount * (inside_ns * PPM // (finish_ns - begin_ns)) // PPM


class Share(NamedTuple):
    """One slice of an interval: how long it was busy, who held it (places of receipts), for how long, weighing what."""

    slice: str
    busy_ns: int
    ids: Any
    ns: Any
    weights: Any


def close_interval(
    site: Site,
    start_ns: int,
    end_ns: int,
    works: Sequence[Work],
    ended: frozenset[str],
    services: Mapping[str, int],
    reading: Readings | int | None,
    pricing: Pricing | None = None,
) -> Interval:
    """Close [start, end) of a site: ``services`` is processor time [ns] per floor, ``reading`` what meters counted.

    A number is the whole facility's; None: nothing was metered. ``pricing`` is asked what the load cost; without it,
    the site's flat supply. One line per receipt that held a slice in the interval, or that ``ended`` with a work given
    here (zeros, so that its energy record becomes final). Time on a slice that the site does not know counts, but has
    no modelled energy. Money follows millijoules; that of a positive residual is in ``idle_nano``. Service lines stand
    without overhead; a request's carbon and water include its overhead. Raises ValueError when the interval ends before
    it starts.
    """
    said = reading if isinstance(reading, Readings) else Readings(load=reading)
    loads, here = {load.slice: load for load in site.loads}, list[Work]()
    for work in works:
        if work.receipt in ended or max(work.start_ns, start_ns) < min(work.end_ns, end_ns):
            here.append(work)
    receipts = sorted({work.receipt for work in here})
    at = {receipt: place for place, receipt in enumerate(receipts)}
    if len(here) >= BULK_MIN and end_ns - start_ns <= BULK_NS_MAX:
        from tokenworks.site import bulk  # numpy: only who has many works pays for it

        head, arrays = bulk.close_columns(
            site, start_ns, end_ns, bulk.columns(here, at), len(receipts), services, said, pricing
        )
        columns = {name: [None] * len(receipts) if each is None else each.tolist() for name, each in arrays.items()}
    else:
        shared, on = shares(here, start_ns, end_ns), dict[str, list[Work]]()
        for work in here:
            on.setdefault(work.slice, []).append(work)
        found = [
            Share(name, busy_ns, [at[receipt] for receipt in parts], list(parts.values()),
                  weights(loads.get(name), on[name], parts, start_ns, end_ns))
            for name, (busy_ns, parts) in shared.items()
        ]  # fmt: skip
        head, columns = close_shares(site, start_ns, end_ns, found, len(receipts), services, said, pricing)
    rated = {
        column: {w.receipt for w in works if w.slice in loads and getattr(loads[w.slice], rate) is not None}
        for column, _, rate in RATES
    }
    rows = zip(*(columns[name] for name in FIGURES), strict=True)
    lines = []
    for receipt, row in zip(receipts, rows, strict=True):
        figures = dict(zip(FIGURES, row, strict=True))
        figures |= {column: None for column, known in rated.items() if receipt not in known}
        lines.append(EnergyLine(receipt=receipt, ended=receipt in ended, **figures))
    return msgspec.structs.replace(head, requests=tuple(lines))


def close_shares(
    site: Site,
    start_ns: int,
    end_ns: int,
    found: Sequence[Share],
    count: int,
    services: Mapping[str, int],
    said: Readings,
    pricing: Pricing | None,
    on: Lists = LISTS,
) -> tuple[Interval, dict[str, Any]]:
    """The interval without the lines of its requests, and those as columns (``FIGURES``) of ``count`` receipts."""
    if end_ns < start_ns:
        raise ValueError("an interval cannot end before it starts")
    ns, loads = end_ns - start_ns, {load.slice: load for load in site.loads}
    layers = [layer for layer in LAYERS if layer in services] + sorted(set(services) - set(LAYERS))
    cpu_ns = [services[layer] for layer in layers]
    energy = place(site, ns, {each.slice: each.busy_ns for each in found}, cpu_ns, said)
    held = Held(on.zeros(count), on.zeros(count), on.zeros(count))
    for each, mj in zip(found, energy.slices, strict=True):
        load = loads.get(each.slice)
        on.add(held.mj, each.ids, on.divide(mj, each.weights, [])[0])
        on.add(held.ns, each.ids, each.ns)
        on.add(held.capacity_uj, each.ids, on.scaled(each.ns, load.idle_mw + load.busy_mw if load else 0))
    costs = (pricing or flat(site.supply))(start_ns, end_ns, energy.meter)
    columns, totals = bill(site, ns, energy, held, costs, said.sink_mc, on)
    service_nano, service_ug = totals.pop("service_nano"), totals.pop("service_ug")
    for column, total, rate in RATES:
        rates = {name: getattr(load, rate) for name, load in loads.items() if getattr(load, rate) is not None}
        unused = {name: rate_of(ns, per_hour, NS_PER_HOUR) for name, per_hour in rates.items()}
        columns[column] = on.zeros(count)
        for each in found:
            if each.slice in rates:
                used, [unused[each.slice]] = on.divide(unused[each.slice], each.ns, [ns - each.busy_ns])
                on.add(columns[column], each.ids, used)
        totals[total] = sum(unused.values()) if rates else None
    lines = zip(layers, cpu_ns, energy.services, service_nano, service_ug, strict=True)
    return Interval(
        site=site.name, supply=site.supply.name, start_ns=start_ns, end_ns=end_ns, meter_mj=energy.meter,
        meter=Provenance.MODELLED if said.load is None else Provenance.MEASURED, scale_ppm=energy.scale_ppm,
        requests=(),
        services=tuple(
            ServiceLine(layer=layer, cpu_ns=cpu, energy_mj=mj, energy_nano=nano, carbon_ug=ug)
            for layer, cpu, mj, nano, ug in lines
        ),
        idle_mj=energy.idle, overhead_mj=energy.overhead, residual_mj=energy.residual, reserved_mj=energy.reserved,
        scales_ppm=energy.scales_ppm, quality_permille=energy.quality_permille, notes=energy.notes, **totals,
    ), columns  # fmt: skip
