from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
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
    Margin,
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
def test_the_bill_is_the_sum_of_what_its_intervals_were_charged(found: list[Flow]) -> None:
    """After money that leaks: of every line and of the whole, the parts sum to the total, to the nano."""
    bill = CONTRACT.bill(found)
    assert bill.nano == sum(part or 0 for part in bill.parts)
    assert bill.nano == sum(part or 0 for line in bill.lines.values() for part in line)
    for index, part in enumerate(bill.parts):
        assert part == sum(line[index] or 0 for line in bill.lines.values())


@settings(deadline=None)
@given(flows())
def test_each_charge_is_what_exact_fractions_say(found: list[Flow]) -> None:
    """After rounding and mixed steps: quarter by quarter in exact fractions, every part is within half a nano."""
    lines = CONTRACT.bill(found).lines
    for index, flow in enumerate(found):
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
            part = lines[name][index]
            assert part is not None
            assert abs(part - price * mj / MJ_PER_KWH) <= Fraction(1, 2), name


def _price(instant: int) -> int:
    return int(MARKET.values[instant // QUARTER])


@settings(deadline=None)
@given(flows(most=12), st.integers(0, 12))
def test_energy_and_standing_charges_add_up_over_any_cut(found: list[Flow], cut: int) -> None:
    """After monthly surprises: the bill of a period is the sum of the bills of its parts, whatever is cut where."""
    contract = Contract("energy", ENERGY)
    whole, first, second = (contract.bill(part) for part in (found, found[:cut], found[cut:]))
    assert whole.parts == first.parts + second.parts


@settings(deadline=None)
@given(flows(), st.randoms())
def test_the_order_of_the_intervals_does_not_matter(found: list[Flow], chance: random.Random) -> None:
    """After late meters: intervals that arrive in another order are charged the same, each of them."""
    order = list(range(len(found)))
    chance.shuffle(order)
    sorted_parts, mixed = CONTRACT.bill(found).parts, CONTRACT.bill([found[i] for i in order]).parts
    assert mixed == [sorted_parts[i] for i in order]


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
    parts = demand.parts_nano(found, True)
    # The largest remainder of cutting an interval over quarters moves at most 1 mJ per interval.
    assert abs(sum(part or 0 for part in parts) - expected) <= 43 * len(found) + len(by_month)
    assert all(part == 0 for part, flow in zip(parts, found, strict=True) if not flow.import_mj)
    assert demand.parts_nano(found, False) == [0] * len(found)


def test_of_two_equal_peaks_the_first_pays_and_its_intervals_share_in_order_of_time() -> None:
    """After ties: which quarter bears the peak, and who in it the odd nano, does not hang on the order of arrival."""
    half = QUARTER // 2
    early, late = (Flow(start_ns=n * half, end_ns=(n + 1) * half, import_mj=450_000_000) for n in range(2))
    later = Flow(start_ns=QUARTER, end_ns=2 * QUARTER, import_mj=900_000_000)
    demand = Demand("demand", 3, SHANGHAI)  # one kilowatt: three nano
    assert demand.parts_nano([early, late, later], True) == [2, 1, 0]
    assert demand.parts_nano([later, late, early], True) == [0, 1, 2]


def test_a_month_of_capacity_is_its_price_to_the_nano() -> None:
    """After accrual: minute by minute a standing charge comes to its monthly sum, in a month of any length."""
    charge = Standing("meter", 1_000_000_007, ZoneInfo("Europe/Rome"))
    begin, end = next(months(1_741_000_000 * NS_PER_S, 1_741_000_001 * NS_PER_S, ZoneInfo("Europe/Rome")))
    spans = [Flow(start_ns=n, end_ns=min(end, n + 7 * HOUR)) for n in range(begin, end, 7 * HOUR)]
    assert end - begin == (31 * 24 - 1) * HOUR
    assert sum(part or 0 for part in charge.parts_nano(spans, False)) == 1_000_000_007


def test_a_missing_price_is_unknown_and_never_free() -> None:
    """After gaps: an interval with an unknown price has no cost, nor has the bill; one without energy costs 0."""
    contract = Contract("c", (Energy("spot", Signal([0], [HOUR], [5])),))
    bought = [Flow(start_ns=n * HOUR, end_ns=(n + 1) * HOUR, import_mj=MJ_PER_KWH) for n in range(2)]
    idle = Flow(start_ns=2 * HOUR, end_ns=3 * HOUR)
    bill = contract.bill([*bought, idle])
    assert (bill.parts, bill.nano) == ([5, None, 0], None)
    assert contract.marginal_nano_per_kwh(HOUR) is None


@pytest.mark.parametrize(
    ("margin", "nano"),
    [
        (Margin("import"), 700),
        (Margin("export"), -60),  # less of an export that costs: the load is paid
        (Margin("curtailed"), 250),
        (Margin("sun"), 330),
        (Margin("import", 9, 10), 700),
        (Margin("import", 10, 10), 700 + 4 * 1_000),  # a kWh within a quarter is 4 kW
    ],
)
def test_one_more_kilowatt_hour(margin: Margin, nano: int) -> None:
    """After the planner: what a kWh more would cost depends on what it moves, and on the peak if it sets it."""
    charges: Sequence[Charge] = (
        Energy("in", Signal.constant(700)),
        Energy("sun", Signal.constant(330), of="sun"),
        Energy("out", Signal.constant(-60), of="export", sign=-1),
        Energy("off", Signal.constant(250), of="curtailed", sign=-1),
        *difference("base", Signal.constant(1), Signal.constant(2), power_mw=5),
        Demand("demand", 1_000),
        Standing("meter", 10**9),
    )
    assert Contract("c", tuple(charges)).marginal_nano_per_kwh(0, margin) == nano


@settings(deadline=None)
@given(flows(most=3), st.sampled_from(["import", "export", "curtailed"]))
def test_the_marginal_price_is_the_difference_of_two_bills(found: list[Flow], moves: str) -> None:
    """After two truths: ex ante and ex post are one price; a kWh more on the meter changes the bill by the margin."""
    contract = Contract("flat", (Energy("in", TARIFF), *ENERGY[2:5], *ENERGY[7:9]))
    flow = found[0]
    start = flow.start_ns // QUARTER * QUARTER
    base = Flow(start_ns=start, end_ns=start + 5 * MIN, import_mj=0, export_mj=0, produced_mj={"sun": 10 * MJ_PER_KWH})
    moved = msgspec.structs.replace(base, **{f"{moves}_mj": MJ_PER_KWH})
    before, after = contract.bill([base]).nano, contract.bill([moved]).nano
    assert before is not None
    assert after is not None
    marginal = contract.marginal_nano_per_kwh(start, Margin(moves))
    assert marginal == (after - before if moves == "import" else before - after)


def test_a_true_up_is_the_closed_bill_less_what_was_charged() -> None:
    """After live books: charged interval by interval while the month runs, the rest at its end makes the bill whole."""
    month = [Flow(start_ns=n * HOUR, end_ns=(n + 1) * HOUR, import_mj=(n % 7) * 10**9) for n in range(400)]
    running = [CONTRACT.bill([flow], closing=False).nano for flow in month]
    closed = CONTRACT.bill(month)
    true_up = [part - (now or 0) for part, now in zip(closed.parts, running, strict=True) if part is not None]
    assert closed.nano == sum(now or 0 for now in running) + sum(true_up)
    assert sum(true_up) == sum(part or 0 for part in closed.lines["demand"])


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
