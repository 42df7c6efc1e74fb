"""What the parts of an interval cost: overhead, money, carbon and depreciation follow the energy and the time.

Pure integer functions; every split is by largest remainder, so the parts sum exactly to the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tokenworks.core.units import NS_PER_S, rate_of, split
from tokenworks.core.words import Work
from tokenworks.power.supply import Supply
from tokenworks.site.words import SliceLoad

NS_PER_HOUR = 3_600 * NS_PER_S


class Energy(NamedTuple):
    """Where the millijoules of an interval are; slices and services in the order in which they were given."""

    meter: int
    slices: list[int]
    idle: int
    services: list[int]
    overhead: int
    residual: int
    scale_ppm: int


class Bill(NamedTuple):
    """Overhead, money and carbon of the requests and then the services, in their order; None where unknown."""

    overhead_mj: list[int]
    """Of the requests only."""
    energy_nano: Sequence[int | None]
    overhead_nano: Sequence[int | None]
    """Of the requests only."""
    carbon_ug: Sequence[int | None]
    """A request's covers its energy and its overhead, a service's its energy."""
    idle_nano: int | None
    overhead_total_nano: int | None
    total_nano: int | None
    carbon_total_ug: int | None


def split_or_last(total: int, weights: Sequence[int]) -> list[int]:
    """``split``, but where nothing weighs anything the last part bears the total, not everyone alike."""
    if any(weights):
        return split(total, weights)
    return [0] * (len(weights) - 1) + [total]


def bill(supply: Supply, energy: Energy, requests_mj: Sequence[int]) -> Bill:
    """Split overhead, money and carbon of an interval over its requests, services and idle.

    The money of a positive residual is in ``idle_nano``; overhead that is no request's, in ``overhead_total_nano``.
    """
    own_mj, unplaced_mj = [*requests_mj, *energy.services], max(0, energy.residual)
    overhead_mj = split_or_last(energy.overhead, [*own_mj, energy.idle])[: len(requests_mj)]
    other_overhead_mj = energy.overhead - sum(overhead_mj)
    total_nano, carbon_total_ug = supply.bill_nano(energy.meter), supply.carbon_ug(energy.meter)
    energy_nano: Sequence[int | None] = [None] * len(own_mj)
    overhead_nano: Sequence[int | None] = [None] * len(requests_mj)
    carbon_ug: Sequence[int | None] = [None] * len(own_mj)
    idle_nano = overhead_total_nano = None
    if total_nano is not None:
        parts = split_or_last(total_nano, [*own_mj, energy.overhead, unplaced_mj, energy.idle])
        energy_nano, overhead_total_nano, idle_nano = parts[:-3], parts[-3], parts[-2] + parts[-1]
        overhead_nano = split_or_last(overhead_total_nano, [*overhead_mj, other_overhead_mj])[:-1]
    if carbon_total_ug is not None:
        full_mj = [mj + extra for mj, extra in zip(requests_mj, overhead_mj, strict=True)]
        rest_mj = energy.idle + unplaced_mj + other_overhead_mj
        carbon_ug = split_or_last(carbon_total_ug, [*full_mj, *energy.services, rest_mj])[:-1]
    return Bill(
        overhead_mj,
        energy_nano,
        overhead_nano,
        carbon_ug,
        idle_nano,
        overhead_total_nano,
        total_nano,
        carbon_total_ug,
    )


def depreciation(
    loads: Iterable[SliceLoad],
    duration_ns: int,
    works: Iterable[Work],
    shared: Mapping[str, tuple[int, Mapping[str, int]]],
) -> tuple[dict[str, int], int | None]:
    """Nano-currency of slice time by receipt, and that of the time nobody used; a slice's parts sum to its cost.

    ``shared`` is busy time and its parts by receipt, by slice. A receipt is absent, and the idle part None, when the
    cost of none of their slices is known.
    """
    costs = {load.slice: load.cost_nano_per_hour for load in loads if load.cost_nano_per_hour is not None}
    by_receipt = {work.receipt: 0 for work in works if work.slice in costs}
    idle_nano = 0
    for slice_, cost in costs.items():
        busy_ns, parts = shared.get(slice_, (0, {}))
        total = rate_of(duration_ns, cost, NS_PER_HOUR)
        *used, unused = split_or_last(total, [*parts.values(), duration_ns - busy_ns])
        idle_nano += unused
        for receipt, nano in zip(parts, used, strict=True):
            by_receipt[receipt] += nano
    return by_receipt, (idle_nano if costs else None)
