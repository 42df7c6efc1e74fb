from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.power import HOUR, MIN, flows

from tokenworks.core.units import MJ_PER_KWH, NS_PER_S
from tokenworks.power.contract import (
    Charge,
    Contract,
    Demand,
    Energy,
    Flow,
    Peak,
    Standing,
    capacity,
    difference,
    direct_connection_permille,
)
from tokenworks.power.signal import Signal
from tokenworks.power.tariff import Indexed, Tier, TimeOfUse, months

SHANGHAI = ZoneInfo("Asia/Shanghai")
QUARTER = 15 * MIN
MARKET = Signal(
    [n * QUARTER for n in range(4_000)],
    [(n + 1) * QUARTER for n in range(4_000)],
    [random.Random(n).randint(-500_000_000, 900_000_000) for n in range(4_000)],
)
TARIFF = TimeOfUse(SHANGHAI, (Tier(1_200_000_000, spans=((480, 1200),)), Tier(400_000_001)))
ENERGY: tuple[Charge, ...] = (
    Energy("tariff", TARIFF),
    Energy("spot", Indexed(MARKET, 11_000_003, 1_070)),
    Energy("sun", Signal.constant(333_333_333), of="sun"),
    *difference("farm", Signal.constant(410_000_000), MARKET, of="farm"),
    *difference("base", Signal.constant(390_000_000), MARKET, power_mw=2_000_000_000),
    Energy("export", MARKET, of="export", sign=-1),
    Energy("curtailment", Signal.constant(250_000_000), of="curtailed", sign=-1),
    capacity("capacity", 23_000_000_001, 4_000_000_000, SHANGHAI),
)
CONTRACT = Contract("all", (*ENERGY, Demand("demand", 38_400_000_000, SHANGHAI)))


@settings(deadline=None)
@given(flows())
def test_the_bill_is_the_sum_of_its_charges(found: list[Flow]) -> None:
    """After money that leaks: of every interval, to the nano; a peak is in none of them."""
    for flow in found:
        assert CONTRACT.bill(flow) == sum(charge.nano(flow) or 0 for charge in ENERGY)


@settings(deadline=None)
@given(flows())
def test_each_charge_is_what_exact_fractions_say(found: list[Flow]) -> None:
    """After rounding and mixed steps: quarter by quarter in exact fractions, every part is within half a nano."""
    charges = {charge.name: charge for charge in CONTRACT.charges}
    for flow in found:
        length = flow.end_ns - flow.start_ns
        cuts = range(flow.start_ns, flow.end_ns, 5 * MIN)
        spot = sum(Fraction((1_070 * _price(cut) + 500) // 1_000 + 11_000_003) * 5 * MIN for cut in cuts) / length
        market = sum(Fraction(_price(cut)) * 5 * MIN for cut in cuts) / length
        baseload_mj = 2_000_000_000 * length // NS_PER_S
        for name, mj, price in (
            ("spot", flow.import_mj, spot),
            ("sun", flow.produced_mj["sun"], Fraction(333_333_333)),
            ("farm: strike", flow.remote_mj["farm"], Fraction(410_000_000)),
            ("farm: index", -flow.remote_mj["farm"], market),
            ("base: index", -baseload_mj, market),
            ("export", -flow.export_mj, market),
            ("curtailment", -flow.curtailed_mj, Fraction(250_000_000)),
        ):
            part = charges[name].nano(flow)
            assert part is not None
            assert abs(part - price * mj / MJ_PER_KWH) <= Fraction(1, 2), name


def _price(instant: int) -> int:
    return int(MARKET.values[instant // QUARTER])


@settings(deadline=None)
@given(flows(most=12))
def test_the_peak_is_the_highest_quarter_of_the_month(found: list[Flow]) -> None:
    """After demand charges: the total is the price of the highest quarter in exact fractions, borne by that quarter."""
    demand = Demand("demand", 38_400_000_000, SHANGHAI)
    by_quarter: dict[int, Fraction] = {}
    for flow in found:
        for begin in range(flow.start_ns, flow.end_ns, 5 * MIN):
            part = Fraction(flow.import_mj) * 5 * MIN / (flow.end_ns - flow.start_ns)
            by_quarter[begin // QUARTER] = by_quarter.get(begin // QUARTER, Fraction(0)) + part
    by_month: dict[int, Fraction] = {}
    for quarter, mj in by_quarter.items():
        month = (quarter * QUARTER + 8 * HOUR) // (31 * 24 * HOUR)  # January 1970 in Shanghai, and after it
        by_month[month] = max(by_month.get(month, Fraction(0)), mj)
    expected = sum((mj * 38_400_000_000 / (1_000_000 * 900) for mj in by_month.values()), start=Fraction(0))
    # Interval by interval, over months and pauses: at each moment the months so far, as if they were over.
    peak, months_nano = Peak(), dict[int, int]()
    for flow in sorted(found, key=lambda flow: flow.start_ns):
        steps = demand.follow(peak, flow)
        assert all(a.highest_mj <= b.highest_mj for a, b in pairwise((peak, *steps)) if a.month_ns == b.month_ns)
        months_nano |= {step.month_ns: demand.month_nano(step.highest_mj) for step in steps}
        peak = steps[-1]
    # The largest remainder of cutting an interval over quarters moves at most 1 mJ per interval.
    assert abs(sum(months_nano.values()) - expected) <= 43 * len(found) + len(by_month)


def test_a_window_is_the_sum_of_its_intervals() -> None:
    """After halves: a quarter that two intervals share is one window, a pause is one without import."""
    half, demand = QUARTER // 2, Demand("demand", 3, SHANGHAI)  # one kilowatt: three nano
    early, late = (Flow(start_ns=n * half, end_ns=(n + 1) * half, import_mj=450_000_000) for n in range(2))
    [first] = demand.follow(Peak(), early)
    [second] = demand.follow(first, late)
    assert [demand.month_nano(each.highest_mj) for each in (first, second)] == [2, 3]
    *_, last = demand.follow(second, Flow(start_ns=2 * QUARTER, end_ns=5 * QUARTER, import_mj=900_000_000))
    assert last == second._replace(window_ns=4 * QUARTER, mj=300_000_000)


def test_a_month_of_capacity_is_its_price_to_the_nano() -> None:
    """After accrual: minute by minute a standing charge comes to its monthly sum, in a month of any length."""
    charge = Standing("meter", 1_000_000_007, ZoneInfo("Europe/Rome"))
    begin, end = next(months(1_741_000_000 * NS_PER_S, 1_741_000_001 * NS_PER_S, ZoneInfo("Europe/Rome")))
    spans = [Flow(start_ns=n, end_ns=min(end, n + 7 * HOUR)) for n in range(begin, end, 7 * HOUR)]
    assert end - begin == (31 * 24 - 1) * HOUR
    assert sum(charge.nano(span) or 0 for span in spans) == 1_000_000_007


def test_a_missing_price_is_unknown_and_never_free() -> None:
    """After gaps: an interval with an unknown price has no cost; one without energy costs 0."""
    contract = Contract("c", (Energy("spot", Signal([0], [HOUR], [5])),))
    bought = [Flow(start_ns=n * HOUR, end_ns=(n + 1) * HOUR, import_mj=MJ_PER_KWH) for n in range(2)]
    idle = Flow(start_ns=2 * HOUR, end_ns=3 * HOUR)
    assert [contract.bill(flow) for flow in (*bought, idle)] == [5, None, 0]
    assert contract.marginal_nano_per_kwh(HOUR) is None


@pytest.mark.parametrize(
    ("moves", "nano"),
    [
        ("import", 700),
        ("export", -60),  # less of an export that costs: the load is paid
        ("curtailed", 250),
        ("sun", 330),
    ],
)
def test_one_more_kilowatt_hour(moves: str, nano: int) -> None:
    """After the planner: what a kWh more would cost depends on what it moves; peaks are not in it."""
    charges: Sequence[Charge] = (
        Energy("in", Signal.constant(700)),
        Energy("sun", Signal.constant(330), of="sun"),
        Energy("out", Signal.constant(-60), of="export", sign=-1),
        Energy("off", Signal.constant(250), of="curtailed", sign=-1),
        *difference("base", Signal.constant(1), Signal.constant(2), power_mw=5),
        Demand("demand", 1_000),
        Standing("meter", 10**9),
    )
    assert Contract("c", tuple(charges)).marginal_nano_per_kwh(0, moves) == nano


@settings(deadline=None)
@given(flows(most=3), st.sampled_from(["import", "export", "curtailed"]))
def test_the_marginal_price_is_the_difference_of_two_bills(found: list[Flow], moves: str) -> None:
    """After two truths: ex ante and ex post are one price; a kWh more on the meter changes the bill by the margin."""
    contract = Contract("flat", (Energy("in", TARIFF), *ENERGY[2:5], *ENERGY[7:9]))
    flow = found[0]
    start = flow.start_ns // QUARTER * QUARTER
    base = Flow(start_ns=start, end_ns=start + 5 * MIN, import_mj=0, export_mj=0, produced_mj={"sun": 10 * MJ_PER_KWH})
    moved = msgspec.structs.replace(base, **{f"{moves}_mj": MJ_PER_KWH})
    before, after = contract.bill(base), contract.bill(moved)
    assert before is not None
    assert after is not None
    marginal = contract.marginal_nano_per_kwh(start, moves)
    assert marginal == (after - before if moves == "import" else before - after)


def test_ratios_of_a_green_direct_connection() -> None:
    """After the rule: what a plant beside the site made is used there, exported or, of nothing, unknown."""
    noon = Flow(start_ns=0, end_ns=HOUR, produced_mj={"sun": 1_000}, export_mj=250)
    night = Flow(start_ns=HOUR, end_ns=2 * HOUR, import_mj=750)
    ratios = direct_connection_permille([noon, night], ["sun"])
    assert ratios == {"self_used": 750, "of_load": 500, "exported": 250}
    assert direct_connection_permille([night], ["sun"])["self_used"] is None


@pytest.mark.parametrize("wrong", [{"import_mj": -1}, {"export_mj": 1}, {"end_ns": 0}, {"produced_mj": {"sun": -1}}])
def test_an_impossible_interval_is_refused(wrong: dict[str, int]) -> None:
    """After lying meters: negative energies, a negative load and a time that runs backwards never reach a bill."""
    with pytest.raises(ValueError, match="interval"):
        Flow(**{"start_ns": 0, "end_ns": 1, **wrong})  # type: ignore[arg-type]
