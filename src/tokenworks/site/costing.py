"""What the parts of an interval cost: overhead, money, carbon and water follow the energy and the reserved capacity.

Pure integer functions; every split is by largest remainder, so the parts sum exactly to the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenworks.core.units import NS_PER_S, energy_mj
from tokenworks.power.supply import Supply
from tokenworks.site.placing import Energy, split_or_last
from tokenworks.site.words import Costs, Pricing, Site

NS_PER_HOUR = 3_600 * NS_PER_S


class Held(NamedTuple):
    """What requests held, in the order of their receipts: millijoules, time [ns] and capacity [uJ if it were used]."""

    mj: Any
    ns: Any
    capacity_uj: Any


class Lists:
    """Arithmetic on the figures of all requests at once; ``bulk`` has the same on arrays."""

    def zeros(self, count: int) -> Any:
        return [0] * count

    def add(self, sums: Any, places: Any, figures: Any) -> None:
        """No place comes twice."""
        for at, figure in zip(places, figures, strict=True):
            sums[at] += figure

    def scaled(self, ns: Any, mw: int) -> Any:
        """Microjoules of a power over times."""
        return [each * mw // 1_000_000 for each in ns]

    def divide(self, total: int, requests: Any, others: list[int]) -> tuple[Any, list[int]]:
        """Split a total over the weights of requests and then of others; the last bears what weighs nothing."""
        parts = split_or_last(total, [*requests, *others])
        return parts[: len(requests)], parts[len(requests) :]

    def plus(self, a: Any, b: Any) -> Any:
        return [x + y for x, y in zip(a, b, strict=True)]

    def total(self, figures: Any) -> int:
        return sum(figures)

    def unknown(self, count: int) -> Any:
        """As many figures, none known."""
        return [None] * count


LISTS = Lists()


def flat(supply: Supply) -> Pricing:
    """The supply's one price and intensity. Market-based carbon is not counted, as nothing is contracted."""
    return lambda _start, _end, mj: Costs(supply.bill_nano(mj), supply.carbon_ug(mj), None, supply.mix_permille)


def bill(
    site: Site, ns: int, energy: Energy, held: Held, costs: Costs, sink_mc: int | None, on: Lists
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split overhead, money, carbon and water of an interval: columns of its requests, and totals of its own.

    Fixed overhead follows reserved capacity, variable overhead energy. The money of a positive residual is in
    ``idle_nano``; overhead that is no request's, in ``overhead_nano``. A request's carbon and water cover its energy
    and its overhead, a service's its energy.
    """
    services, unplaced, count = energy.services, max(0, energy.residual), len(held.mj)
    variable, _ = on.divide(energy.overhead - energy.fixed_overhead, held.mj, [*services, energy.idle])
    capacity = sum(energy_mj(load.idle_mw + load.busy_mw, ns) for load in site.loads) * 1_000
    fixed, _ = on.divide(energy.fixed_overhead, held.capacity_uj, [max(0, capacity - on.total(held.capacity_uj))])
    overhead = on.plus(variable, fixed)
    other_overhead = energy.overhead - on.total(overhead)
    full, rest = on.plus(held.mj, overhead), energy.idle + unplaced + other_overhead
    energy_nano = overhead_nano = on.unknown(count)
    service_nano: Sequence[int | None] = [None] * len(services)
    idle_nano = overhead_total = None
    if costs.nano is not None:
        energy_nano, others = on.divide(costs.nano, held.mj, [*services, energy.overhead, unplaced, energy.idle])
        service_nano, overhead_total, idle_nano = others[:-3], others[-3], others[-2] + others[-1]
        overhead_nano, _ = on.divide(overhead_total, overhead, [other_overhead])

    def along(amount: int | None) -> tuple[Any, Sequence[int | None]]:
        """Requests by energy and overhead, services by energy."""
        if amount is None:
            return on.unknown(count), [None] * len(services)
        parts, others = on.divide(amount, full, [*services, rest])
        return parts, others[:-1]

    water_ul = None if site.facility is None else site.facility.water_ul(energy.meter, sink_mc)
    (carbon, service_ug), (market, _), (water, _) = along(costs.carbon_ug), along(costs.market_ug), along(water_ul)
    columns = {
        "energy_mj": held.mj, "energy_nano": energy_nano, "overhead_mj": overhead, "overhead_nano": overhead_nano,
        "carbon_ug": carbon, "slice_ns": held.ns, "market_ug": market, "water_ul": water,
    }  # fmt: skip
    totals = {
        "service_nano": service_nano, "service_ug": service_ug, "idle_nano": idle_nano,
        "overhead_nano": overhead_total, "bill_nano": costs.nano, "carbon_ug": costs.carbon_ug,
        "market_ug": costs.market_ug, "water_ul": water_ul, "mix_permille": costs.mix_permille,
    }  # fmt: skip
    return columns, totals
