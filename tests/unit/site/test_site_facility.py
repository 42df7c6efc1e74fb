from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.units import NS_PER_S, energy_mj
from tokenworks.site.facility import Facility, Module, Window, cooling_kinds, pue_ppm

KINDS = st.sampled_from(["air", "liquid", "immersion", "sea"])
HOUR = 3_600 * NS_PER_S
MW = 10**9


def block(kind: str, **more: int) -> Facility:
    figures = {"capacity_mw": 2 * MW, "it_mw": 1_700_000_000, "fixed_mw": 8_000_000, **more}
    return Facility(modules=(Module(name="m", cooling=kind, **figures),))  # type: ignore[arg-type]


def pue(facility: Facility, it_mw: int, sink_mc: int) -> float:
    it = energy_mj(it_mw, HOUR)
    return (pue_ppm(it + sum(facility.overhead_mj(it, HOUR, sink_mc)), it) or 0) / 1e6


@pytest.mark.parametrize(
    ("kind", "sink_c", "low", "high"),
    [
        ("air", 10, 1.10, 1.20),
        ("air", 28, 1.20, 1.45),
        ("liquid", 18, 1.05, 1.22),
        ("immersion", 18, 1.02, 1.08),
        ("sea", 15, 1.03, 1.15),
    ],
)
def test_pue_comes_out_where_such_sites_are(kind: str, sink_c: int, low: float, high: float) -> None:
    """After a model from nowhere: at 80 % load each kind of cooling lands in the range its sources report."""
    assert low <= pue(block(kind), 1_360_000_000, sink_c * 1_000) <= high


@given(KINDS, st.integers(1, 1_700), st.integers(1, 1_700), st.integers(-30, 40), st.integers(-30, 40))
def test_more_heat_and_a_warmer_sink_never_take_less(kind: str, a: int, b: int, cold: int, warm: int) -> None:
    """Monotone: overhead and water grow with IT power and with the temperature of the sink."""
    facility, (less, more), (cold, warm) = block(kind), sorted((a, b)), sorted((cold, warm))
    overhead = [
        sum(facility.overhead_mj(energy_mj(mw * 10**6, HOUR), HOUR, sink * 1_000))
        for mw, sink in ((less, cold), (more, cold), (more, warm))
    ]
    assert overhead == sorted(overhead)
    water = [facility.water_ul(energy_mj(more * 10**6, HOUR), sink * 1_000) for sink in (cold, warm)]
    assert water == sorted(water)


def test_an_idle_site_has_its_fixed_overhead_and_a_bad_pue() -> None:
    """PUE is a result: at a tenth of the load the fixed part weighs ten times, and without IT energy there is none."""
    assert block("liquid").overhead_mj(0, HOUR, 18_000) == (energy_mj(8_000_000, HOUR), 0)
    assert pue(block("liquid"), 17_000_000, 18_000) > pue(block("liquid"), 1_700_000_000, 18_000)
    assert pue_ppm(5, 0) is None


@given(st.integers(-20_000, 50_000), st.integers(1, 10**9))
def test_the_chiller_is_carnots_over_its_lift(sink_mc: int, heat_mw: int) -> None:
    """The formula in floating point: Q lift / (share of Carnot x cold temperature), and fans."""
    air = cooling_kinds()["air"]
    lift = max(0.0, sink_mc / 1e3 + air.approach_c - air.coolant_c)
    expected = heat_mw * (air.fans + lift / (air.carnot * (air.coolant_c + 273.15)))
    assert math.isclose(air.power_mw(heat_mw, sink_mc), expected, rel_tol=1e-9, abs_tol=2)


def test_water_is_what_evaporates_and_what_is_drained() -> None:
    """By hand: a kilowatt-hour evaporates 1.48 litres, a third more is drained at four cycles; dry kinds use none."""
    litres = {kind: each.water_ul(3_600_000_000, 30_000) / 1e6 for kind, each in cooling_kinds().items()}
    assert math.isclose(litres["air"], 1.975, rel_tol=1e-3)
    assert litres["immersion"] == litres["sea"] == 0
    assert 0 < litres["liquid"] < litres["air"]
    assert cooling_kinds()["air"].water_ul(3_600_000_000, -5_000) == 0
    assert block("air").water_ul(-5, None) == 0


def test_every_kind_of_cooling_names_its_source() -> None:
    """After figures from nowhere."""
    assert set(cooling_kinds()) == {"air", "liquid", "immersion", "sea"}
    assert all(each.source for each in cooling_kinds().values())


def test_capital_and_operation_per_hour_of_a_slice() -> None:
    """By hand: 10 M over 15 years and 0.2 M a year, by reserved kilowatts; unknown as soon as a part of it is."""
    facility = block("liquid", capex_nano=10 * 10**15, opex_nano_per_year=2 * 10**14)
    expected = (10e15 / 15 + 2e14) / 8_766 * 10_000_000 / 1_700_000_000
    assert math.isclose(facility.cost_nano_per_hour(10_000_000) or 0, expected, rel_tol=1e-6)
    assert Facility(modules=(*facility.modules, *block("air").modules)).cost_nano_per_hour(1) is None


def test_an_orbiting_site_is_there_in_its_windows() -> None:
    """Eight minutes every 92: now, or when next, or never again; without windows always."""
    minute = 60 * NS_PER_S
    facility = Facility(
        modules=block("air").modules,
        windows=(Window(start_ns=10 * minute, length_ns=8 * minute, period_ns=92 * minute),),
    )
    assert facility.reachable(0) == (10 * minute, 18 * minute)
    assert facility.reachable(12 * minute) == (10 * minute, 18 * minute)
    assert facility.reachable(18 * minute) == (102 * minute, 110 * minute)
    assert facility.reachable(1_000 * minute) == (1_022 * minute, 1_030 * minute)
    once = Facility(modules=block("air").modules, windows=(Window(start_ns=0, length_ns=5),))
    assert once.reachable(4) == (0, 5)
    assert once.reachable(5) is None
    assert block("air").reachable(7) == (0, 1 << 62)


def test_modules_share_the_load_by_their_capacity() -> None:
    """Two equal halves take what one whole takes, within rounding; an instant takes nothing."""
    one = block("liquid")
    half = Module(name="h", capacity_mw=MW, it_mw=850_000_000, fixed_mw=4_000_000)
    two = Facility(modules=(half, half))
    it = energy_mj(1_000_000_000, HOUR)
    for whole, parts in zip(one.overhead_mj(it, HOUR, None), two.overhead_mj(it, HOUR, None), strict=True):
        assert math.isclose(whole, parts, rel_tol=1e-6)
    assert one.overhead_mj(0, 0, None) == (0, 0)


def test_impossible_facilities_are_refused() -> None:
    """After a division by a module of nothing."""
    with pytest.raises(ValueError, match="IT capacity"):
        Module(name="m", capacity_mw=1, it_mw=2)
    with pytest.raises(ValueError, match="a module"):
        Facility(modules=())
