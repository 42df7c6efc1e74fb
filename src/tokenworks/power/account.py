"""Where a site's energy came from: source vector, money and carbon of its load, interval by interval, nothing lost.

Within an interval every use (load, charging, export) carries the same mix of sources (proportional sharing). A battery
is a stock of energy, money and carbon: what leaves it leaves at the running average of what is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tokenworks.core.units import MJ_PER_KWH, rate_of, split
from tokenworks.power.contract import Flow, total
from tokenworks.power.plant import Feed, Supplies
from tokenworks.power.signal import Steps, weighed
from tokenworks.power.tables import HOUR_NS

UNTRACED = "untraced"
"""The source of what a battery gave that was not in it by our account."""


class Stock(NamedTuple):
    """Energy with its books: by source, the money it cost (negative after negative prices), carbon by location and by
    contract. None: not known; a battery knows it again once it has been empty."""

    mix_mj: dict[str, int] = {}
    nano: int | None = 0
    carbon_ug: int | None = 0
    market_ug: int | None = 0

    @property
    def mj(self) -> int:
        """All of it."""
        return sum(self.mix_mj.values())

    def part(self, mj: int) -> Stock:
        """The part that an energy is of this, at the average; each book rounded half up."""
        if mj == 0:
            return Stock()
        mix = dict(zip(self.mix_mj, split(mj, list(self.mix_mj.values())), strict=True))
        return Stock(mix, *(None if book is None else rate_of(book, mj, self.mj) for book in self[1:]))

    def plus(self, other: Stock, sign: int = 1) -> Stock:
        """The sum or, with ``sign`` -1, what is left; nothing is left of books whose energy is all gone."""
        mine, theirs = self.mix_mj, other.mix_mj
        mix = {source: mine.get(source, 0) + sign * theirs.get(source, 0) for source in {**mine, **theirs}}
        sums = (None if a is None or b is None else a + sign * b for a, b in zip(self[1:], other[1:], strict=True))
        return Stock({source: mj for source, mj in mix.items() if mj}, *sums)

    def draw(self, mj: int) -> tuple[Stock, Stock]:
        """Take out at most all of it, at the average: (the part, the rest)."""
        part = self.part(mj)
        return part, Stock() if 0 < mj == self.mj else self.plus(part, -1)


class Account(NamedTuple):
    """One interval of a site's load, and its batteries afterwards.

    Per source, and for money and carbon: what came in and was stored before == load + export + loss + stored after,
    but for what is untraced. Exported energy leaves with its carbon; its money is the contract's and stays. ``lost_mj``
    was lost in batteries and is booked when they discharge, an overhead beyond the load. ``untraced_mj`` was discharged
    though it was not in the stock; its money and carbon are not known and not counted. ``green_mj`` of the load is from
    clean plants, own, or contracted and made in the same hour.
    """

    load: Stock
    exported: Stock
    lost_mj: int
    untraced_mj: int
    green_mj: int
    stocks: dict[str, Stock]


def match_hours(flows: Sequence[Flow]) -> list[dict[str, int]]:
    """Of each interval's import, what remote plants under contract made in the same UTC hour [mJ], by plant.

    An interval belongs to the hour in which it starts (raises ValueError for one longer than that); within the hour it
    is shared by import. (Hourly matching as proposed for the GHG Protocol's Scope 2 in 2025.)
    """
    hours: dict[int, list[int]] = {}
    for index, flow in enumerate(flows):
        if flow.end_ns - flow.start_ns > HOUR_NS:
            raise ValueError("an interval longer than an hour cannot be matched by the hour")
        hours.setdefault(flow.start_ns // HOUR_NS, []).append(index)
    matched: list[dict[str, int]] = [{}] * len(flows)
    for members in hours.values():
        imports, made = [flows[index].import_mj for index in members], Stock()
        for index in members:
            made = made.plus(Stock(flows[index].remote_mj))
        pool = made.part(min(made.mj, sum(imports)))
        for index, mj in zip(members, split(pool.mj, imports), strict=True):
            part, pool = pool.draw(mj)
            matched[index] = part.mix_mj
    return matched


def green_permille(supplies: Supplies, accounts: Sequence[Account], flows: Sequence[Flow]) -> tuple[int, int] | None:
    """Clean energy per load: (matched by the hour, summed over the whole period). None: there was no load."""
    load_mj = sum(each.load.mj for each in accounts)
    made_mj = sum(flow.of(plant.name) for flow in flows for plant in supplies.plants if plant.green)
    hourly_mj = sum(each.green_mj for each in accounts)
    return (hourly_mj * 1_000 // load_mj, min(load_mj, made_mj) * 1_000 // load_mj) if load_mj else None


def account(
    supplies: Supplies,
    flow: Flow,
    cost_nano: int | None,
    stocks: Mapping[str, Stock],
    matched_mj: Mapping[str, int] | None = None,
) -> Account:
    """Trace one interval, for which the contract charged ``cost_nano``. ``matched_mj``: as ``match_hours`` says; None:
    matched in the interval alone, which is never more. A battery without a stock starts empty."""
    if matched_mj is None:
        (matched_mj,) = match_hours([flow])
    after, came, lost, untraced = dict(stocks), _fresh(supplies, flow, cost_nano, matched_mj), 0, 0
    batteries = {battery.name: battery for battery in supplies.batteries}
    for name, mj in flow.discharged_mj.items():
        drawn = -(-mj * 1_000 // batteries[name].efficiency_permille)  # rounded up
        part, after[name] = (stock := after.get(name, Stock())).draw(min(drawn, stock.mj))
        missing = max(0, mj - part.mj)
        arrives = Stock({**part.part(mj - missing).mix_mj, UNTRACED: missing}, *part[1:])
        came, lost, untraced = came.plus(arrives), lost + part.mj - (mj - missing), untraced + missing
    exported = came.part(flow.export_mj)._replace(nano=0)
    load = came.plus(exported, -1)
    for name, mj in flow.charged_mj.items():
        into, load = load.draw(mj)
        after[name] = after.get(name, Stock()).plus(into)
    clean = {plant.name for plant in supplies.plants if plant.green}
    green = sum(mj for source, mj in load.mix_mj.items() if source in clean)
    return Account(load, exported, lost, untraced, green, after)


def _fresh(supplies: Supplies, flow: Flow, cost_nano: int | None, matched_mj: Mapping[str, int]) -> Stock:
    """What came in from outside: energy by source, the bill, carbon by place and by contract."""
    feed, known = supplies.feed or Feed(name="grid"), {plant.name: plant.carbon for plant in supplies.plants}
    other_mj = flow.import_mj - sum(matched_mj.values())
    mix = {feed.name: other_mj, **matched_mj, **flow.produced_mj}
    own = [_emitted(known.get(name), flow, mj) for name, mj in flow.produced_mj.items()]
    bought = [_emitted(known.get(name), flow, mj) for name, mj in matched_mj.items()]
    bought.append(_emitted(feed.residual or feed.carbon, flow, other_mj))
    carbon_ug = total([_emitted(feed.carbon, flow, flow.import_mj), *own])
    return Stock({source: mj for source, mj in mix.items() if mj}, cost_nano, carbon_ug, total([*bought, *own]))


def mix_permille(feed: Feed, stock: Stock) -> dict[str, int]:
    """Shares of the sources of an energy, that of the grid as its fuels where they are known; they sum to 1000."""
    mix: dict[str, int] = {}
    for source, mj in stock.mix_mj.items():
        fuels = feed.mix_permille if source == feed.name and feed.mix_permille else {source: 1_000}
        for fuel, permille in fuels.items():
            mix[fuel] = mix.get(fuel, 0) + mj * permille
    return dict(zip(mix, split(1_000, list(mix.values())), strict=True)) if mix else {}


def _emitted(intensity: Steps | None, flow: Flow, mj: int) -> int | None:
    """Micrograms of an energy spread evenly over the interval."""
    if mj == 0:
        return 0
    integral = None if intensity is None else weighed(intensity, flow.start_ns, flow.end_ns)
    return None if integral is None else rate_of(mj, integral, MJ_PER_KWH * (flow.end_ns - flow.start_ns))
