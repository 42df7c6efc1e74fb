from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.power import HOUR, MIN, flows

from tokenworks.core.units import MJ_PER_KWH
from tokenworks.power.account import UNTRACED, Account, Stock, account, green_permille, match_hours, mix_permille
from tokenworks.power.contract import Contract, Energy, Flow
from tokenworks.power.plant import Battery, Feed, Plant, Supplies
from tokenworks.power.signal import Signal

GRID = Signal(
    [n * HOUR for n in range(1_000)], [(n + 1) * HOUR for n in range(1_000)], [n * 10**6 for n in range(1_000)]
)
SUPPLIES = Supplies(
    feed=Feed(name="grid", carbon=GRID, residual=Signal.constant(700_000_000)),
    plants=(
        Plant(name="sun", kind="solar", capacity_mw=10**12, carbon=Signal.constant(45_000_000)),
        Plant(name="farm", kind="wind", capacity_mw=10**12, carbon=Signal.constant(11_000_000), remote=True),
    ),
    batteries=(Battery(name="cell", capacity_mj=10**13, power_mw=10**12, efficiency_permille=870),),
)
START = Stock({"grid": 500, "sun": 10**12}, -(10**15), 10**14, 10**12)


def booked(found: list[Flow], costs: list[int | None]) -> list[Account]:
    stocks, accounts = {"cell": START}, list[Account]()
    for flow, cost, matched in zip(found, costs, match_hours(found), strict=True):
        accounts.append(account(SUPPLIES, flow, cost, stocks, matched))
        stocks = accounts[-1].stocks
    return accounts


@settings(deadline=None)
@given(flows(batteries=True, most=12), st.lists(st.integers(-(10**12), 10**12), min_size=12, max_size=12))
def test_nothing_is_lost_from_source_to_load(found: list[Flow], prices: list[int]) -> None:
    """After leaks: energy by source, money and carbon of all loads, exports, losses and stocks are what came in."""
    costs = prices[: len(found)]
    accounts = booked(found, list(costs))
    last = accounts[-1].stocks["cell"]
    untraced = sum(each.untraced_mj for each in accounts)
    into = START.mj + sum(flow.import_mj + flow.produced_mj["sun"] for flow in found) + untraced
    assert into == last.mj + sum(each.load.mj + each.exported.mj + each.lost_mj for each in accounts)
    assert START.nano is not None
    assert last.nano is not None
    assert START.nano + sum(costs) == last.nano + sum(each.load.nano or 0 for each in accounts)
    for each, flow in zip(accounts, found, strict=True):
        assert each.load.mj == flow.load_mj
        assert each.exported.mj == flow.export_mj
        assert each.lost_mj >= 0
    for book in ("carbon_ug", "market_ug"):
        came = getattr(START, book)
        for flow, matched in zip(found, match_hours(found), strict=True):
            came += getattr(account(SUPPLIES, _alone(flow), 0, {}, matched).load, book)
        out = sum(getattr(each.load, book) + getattr(each.exported, book) for each in accounts)
        assert came == out + getattr(last, book)


def _alone(flow: Flow) -> Flow:
    """The same sources with all of it taken by the load, nothing from the battery."""
    return Flow(
        start_ns=flow.start_ns, end_ns=flow.end_ns, import_mj=flow.import_mj, produced_mj=flow.produced_mj,
        remote_mj=flow.remote_mj,
    )  # fmt: skip


@settings(deadline=None)
@given(flows(batteries=True, most=12))
def test_a_battery_is_never_negative(found: list[Flow]) -> None:
    """After overdrawn stocks: energy by source and carbon of a stock stay at or above nothing, whatever is asked."""
    for each in booked(found, [10**9] * len(found)):
        stock = each.stocks["cell"]
        assert all(mj > 0 for mj in stock.mix_mj.values())
        assert (stock.carbon_ug or 0) >= 0
        assert (stock.market_ug or 0) >= 0
        assert all(mj > 0 for mj in each.load.mix_mj.values())


@settings(deadline=None)
@given(flows(batteries=True, most=6), st.lists(st.integers(-(10**9), 10**9), min_size=6, max_size=6))
def test_a_battery_gives_back_its_running_average(found: list[Flow], prices: list[int]) -> None:
    """After FIFO and guesses: in exact fractions, what is drawn leaves at the average of what is in the pool."""
    energy, money = Fraction(START.mj), Fraction(START.nano or 0)
    for flow, cost, each in zip(found, prices, booked(found, list(prices[: len(found)])), strict=False):
        out, into = flow.discharged_mj.get("cell", 0), flow.charged_mj.get("cell", 0)
        drawn = min(energy, Fraction(-(-out * 1_000 // 870)))
        if out and energy:
            money, energy = money - money * drawn / energy, energy - drawn
        rest = flow.load_mj + into
        money += Fraction(cost) * into / rest if rest and into else 0
        energy += into
        stock = each.stocks["cell"]
        assert stock.mj == energy
        assert stock.nano is not None
        assert abs(stock.nano - money) <= 2 * len(found)


def test_what_was_bought_at_a_negative_price_is_given_back_at_it() -> None:
    """After negative prices: an hour at -500 per MWh leaves a debt in the battery, and the next hour's load gets it."""
    contract = Contract("spot", (Energy("spot", Signal([0], [HOUR], [-500_000_000])),))
    charging = Flow(start_ns=0, end_ns=HOUR, import_mj=10 * MJ_PER_KWH, charged_mj={"cell": 10 * MJ_PER_KWH})
    using = Flow(start_ns=HOUR, end_ns=2 * HOUR, discharged_mj={"cell": 87 * MJ_PER_KWH // 10})
    first = account(SUPPLIES, charging, contract.bill(charging), {})
    second = account(SUPPLIES, using, contract.bill(using), first.stocks)
    assert (first.load.nano, first.stocks["cell"].nano) == (0, -5_000_000_000)
    assert (second.load.nano, second.lost_mj, second.stocks["cell"]) == (-5_000_000_000, 13 * MJ_PER_KWH // 10, Stock())


def test_unknown_money_or_carbon_stays_unknown_until_the_battery_was_empty() -> None:
    """After honest gaps: a stock that was charged at an unknown price has none, and starts clean once it is empty."""
    late = 2_000 * HOUR  # the grid's intensity is not known there
    charging = Flow(start_ns=late, end_ns=late + HOUR, import_mj=1_000, charged_mj={"cell": 1_000})
    first = account(SUPPLIES, charging, None, {})
    assert (first.stocks["cell"].nano, first.stocks["cell"].carbon_ug) == (None, None)
    using = Flow(start_ns=0, end_ns=HOUR, discharged_mj={"cell": 870})
    second = account(SUPPLIES, using, 0, first.stocks)
    assert (second.load.nano, second.load.carbon_ug, second.stocks["cell"]) == (None, None, Stock())


def test_a_standing_charge_of_an_idle_hour_stays_with_the_load() -> None:
    """After zero energies: an hour in which nothing flowed still costs its fee, with a battery that did nothing."""
    idle = Flow(start_ns=0, end_ns=HOUR, charged_mj={"cell": 0}, discharged_mj={"cell": 0})
    found = account(SUPPLIES, idle, 5, {"cell": Stock({"sun": 9}, 7)})
    assert (found.load.nano, found.stocks["cell"]) == (5, Stock({"sun": 9}, 7))


def test_more_than_was_stored_is_shown_as_untraced() -> None:
    """After a meter that disagrees with our account: the excess has no source, money or carbon, and is told."""
    using = Flow(start_ns=0, end_ns=HOUR, discharged_mj={"cell": 600})
    found = account(SUPPLIES, using, 0, {"cell": Stock({"sun": 500}, 9, 8, 7)})
    assert (found.untraced_mj, found.lost_mj, found.stocks["cell"]) == (100, 0, Stock())
    assert found.load == Stock({"sun": 500, UNTRACED: 100}, 9, 8, 7)
    assert found.green_mj == 500


def test_two_carbon_ledgers_for_one_kilowatt_hour() -> None:
    """After greenwashing: by location all import has the grid's average; by contract only what the farm made that hour
    is clean, and the rest has the residual mix."""
    flow = Flow(
        start_ns=500 * HOUR, end_ns=501 * HOUR, import_mj=10 * MJ_PER_KWH, remote_mj={"farm": 4 * MJ_PER_KWH}
    )  # fmt: skip
    found = account(SUPPLIES, flow, 0, {})
    assert found.load.carbon_ug == 10 * 500 * 10**6
    assert found.load.market_ug == 4 * 11 * 10**6 + 6 * 700 * 10**6
    assert found.load.mix_mj == {"grid": 6 * MJ_PER_KWH, "farm": 4 * MJ_PER_KWH}
    assert found.green_mj == 4 * MJ_PER_KWH


@settings(deadline=None)
@given(flows(most=12))
def test_matching_is_by_the_hour_and_never_beyond_it(found: list[Flow]) -> None:
    """After annual matching: per hour the matched energy is the smaller of import and generation, per interval at most
    its import."""
    matched = match_hours(found)
    hours = {flow.start_ns // HOUR for flow in found}
    for hour in hours:
        inside = [i for i, flow in enumerate(found) if flow.start_ns // HOUR == hour]
        made = sum(found[i].remote_mj["farm"] for i in inside)
        assert sum(matched[i].get("farm", 0) for i in inside) == min(made, sum(found[i].import_mj for i in inside))
    assert all(0 <= by.get("farm", 0) <= flow.import_mj for by, flow in zip(matched, found, strict=True))


def test_several_plants_match_in_proportion_to_what_they_made() -> None:
    """After favourites: two plants that made 3 to 1 in an hour match 3 to 1, in each of its intervals."""
    flows_ = [
        Flow(start_ns=0, end_ns=30 * MIN, import_mj=100, remote_mj={"a": 300}),
        Flow(start_ns=30 * MIN, end_ns=HOUR, import_mj=200, remote_mj={"b": 100}),
    ]
    assert match_hours(flows_) == [{"a": 75, "b": 25}, {"a": 150, "b": 50}]


def test_the_hourly_share_is_below_the_annual_one() -> None:
    """After claims of 100 %: a farm that makes all of it by night is 50 % of a flat load by the hour, 100 % a year."""
    night = Flow(start_ns=0, end_ns=HOUR, import_mj=1_000, remote_mj={"farm": 2_000})
    day = Flow(start_ns=HOUR, end_ns=2 * HOUR, import_mj=1_000)
    accounts = [
        account(SUPPLIES, flow, 0, {}, mj) for flow, mj in zip([night, day], match_hours([night, day]), strict=True)
    ]
    assert green_permille(SUPPLIES, accounts, [night, day]) == (500, 1_000)
    assert green_permille(SUPPLIES, [], []) is None


def test_an_interval_over_an_hour_cannot_be_matched() -> None:
    """After coarse meters: what is longer than the hour it must match in is refused."""
    with pytest.raises(ValueError, match="hour"):
        match_hours([Flow(start_ns=0, end_ns=HOUR + MIN, import_mj=1)])


def test_the_grid_shows_its_fuels() -> None:
    """After receipts: shares of all sources sum to 1000, the grid's part as its fuels, ours by name."""
    feed = Feed(name="grid", mix_permille={"gas": 600, "wind": 400})
    assert mix_permille(feed, Stock({"grid": 2_000, "sun": 1_000})) == {"gas": 400, "wind": 267, "sun": 333}
    assert mix_permille(Feed(name="grid"), Stock({"grid": 5})) == {"grid": 1_000}
    assert mix_permille(feed, Stock()) == {}
