"""A site's contract and batteries on the running grid: asked again, corrected, restarted, short of supply."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenworks.core.units import MJ_PER_KWH, NS_PER_S
from tokenworks.gridfile.tables import Charge, Contract, Site, Supply
from tokenworks.pricing import SitePricing

T0, MINUTE = 1_700_000_000 * NS_PER_S, 60 * NS_PER_S
GRID = Supply(name="grid", carbon_ug_per_kwh=400_000_000)
SUN = Supply(name="roof", kind="solar", capacity_mw=1_000_000, carbon_ug_per_kwh=45_000_000)
CELLS = Supply(name="cells", kind="battery", energy_mj=MJ_PER_KWH, power_mw=10_000_000, efficiency_permille=1_000)
BY_KWH = Contract(charges=(Charge(kind="energy", price_nano_per_kwh=10**8),))
DEMAND = Charge(kind="demand", name="peak", nano_per_kw=10**9)
SITE = Site(name="a/b", supply_tables=(GRID, SUN, CELLS), contract=BY_KWH)
SUN_MJ = 60_000_000
"""Of a minute: 1 kW."""


@pytest.fixture
def pricing(tmp_path: Path) -> SitePricing:
    return SitePricing(SITE, "USD", tmp_path)


def test_an_interval_is_billed_by_its_sources(pricing: SitePricing) -> None:
    """Sun first, then the grid at the contract's price; carbon and mix follow."""
    costs = pricing(T0, T0 + MINUTE, 2 * SUN_MJ)
    assert costs.nano == SUN_MJ * 10**8 // MJ_PER_KWH + 1  # rounded half up
    assert costs.carbon_ug is not None
    assert abs(costs.carbon_ug - (400 + 45) * 10**6 * SUN_MJ / MJ_PER_KWH) <= 2
    assert costs.mix_permille == {"grid": 500, "roof": 500}


def test_batteries_carry_energy_from_interval_to_interval_and_over_a_restart(tmp_path: Path) -> None:
    """What the sun left is used later, by the process that comes after, and only once."""
    first = SitePricing(SITE, "USD", tmp_path)
    first(T0, T0 + MINUTE, 0)
    second = SitePricing(SITE, "USD", tmp_path)
    later = second(T0 + MINUTE, T0 + 2 * MINUTE, 2 * SUN_MJ)
    assert (later.nano, later.mix_permille) == (0, {"roof": 1_000})
    again = second(T0 + 2 * MINUTE, T0 + 3 * MINUTE, 2 * SUN_MJ)
    assert again.mix_permille == {"grid": 500, "roof": 500}


def test_asking_again_does_not_use_the_battery_twice(pricing: SitePricing) -> None:
    """The same interval, made longer because it could not be booked, and one corrected later."""
    pricing(T0, T0 + MINUTE, 0)
    short = pricing(T0 + MINUTE, T0 + 2 * MINUTE, 2 * SUN_MJ)
    assert pricing(T0 + MINUTE, T0 + 2 * MINUTE, 2 * SUN_MJ) == short
    assert pricing(T0 + MINUTE, T0 + 3 * MINUTE, 3 * SUN_MJ).nano == 0
    pricing(T0 + 3 * MINUTE, T0 + 4 * MINUTE, SUN_MJ)
    assert pricing(T0 + MINUTE, T0 + 3 * MINUTE, 3 * SUN_MJ).nano == 0, "a correction sees what was stored then"


def test_peaks_are_billed_month_by_month(tmp_path: Path) -> None:
    """All so far, said once; over a restart, a month's end and an interval that was made longer or corrected."""
    site = Site(name="s", supply_tables=(GRID,), contract=Contract(charges=(*BY_KWH.charges, DEMAND)))
    first = SitePricing(site, "USD", tmp_path)

    def said(pricing: SitePricing) -> list[tuple[str, int]]:
        return [(bill.what, bill.nano) for bill in pricing.bills("s", "grid")]

    assert said(first) == []
    start = T0 // (15 * MINUTE) * 15 * MINUTE
    first(start, start + 7 * MINUTE, 7 * SUN_MJ)
    [bill] = first.bills("s", "grid")
    assert (bill.site, bill.supply, bill.part, bill.at_ns) == ("s", "grid", "demand", start)
    assert (bill.what, bill.nano) == ("peak 2023-11", 7 * 10**9 // 15 + 1)  # rounded half up
    assert said(first) == []
    first(start, start + 8 * MINUTE, 15 * SUN_MJ)
    assert said(first) == [("peak 2023-11", 10**9)]
    first(start, start + 8 * MINUTE, 12 * SUN_MJ)
    assert said(first) == [("peak 2023-11", 8 * 10**8)], "its journal refused it, or less was metered after all"
    second = SitePricing(site, "USD", tmp_path)
    second(start + 8 * MINUTE, start + 15 * MINUTE, 18 * SUN_MJ)
    assert said(second) == [("peak 2023-11", 2 * 10**9)]
    second(start + 15 * MINUTE, start + 30 * MINUTE, 15 * SUN_MJ)
    assert said(second) == [], "a lower window"
    month = (T0 // NS_PER_S // 86_400 + 16) * 86_400 * NS_PER_S  # 2023-11-30
    second(month, month + 1455 * MINUTE, 97 * 45 * SUN_MJ)
    assert said(second) == [("peak 2023-11", 3 * 10**9), ("peak 2023-12", 3 * 10**9)]


def test_a_bill_that_was_refused_is_said_again(tmp_path: Path) -> None:
    """It counts as said when the next is asked for, and not before."""
    pricing = SitePricing(Site(name="s", contract=Contract(charges=(DEMAND,))), "USD", tmp_path)
    pricing(T0, T0 + MINUTE, SUN_MJ)
    refused = next(iter(pricing.bills("s", "grid")))
    assert [*pricing.bills("s", "grid")] == [refused]


def test_what_nothing_could_serve_has_no_known_price(tmp_path: Path) -> None:
    """An island at night: the meter counted, nobody knows from where."""
    island = SitePricing(Site(name="i", supply_tables=(SUN,), contract=BY_KWH), "USD", tmp_path)
    assert island(T0, T0 + MINUTE, SUN_MJ).nano == 0
    dark = island(T0 + MINUTE, T0 + 2 * MINUTE, 2 * SUN_MJ)
    assert (dark.nano, dark.carbon_ug) == (None, None)


def test_a_spoilt_file_is_an_empty_battery(tmp_path: Path) -> None:
    """And no reason not to start."""
    SitePricing(SITE, "USD", tmp_path)(T0, T0 + MINUTE, 0)
    [path] = (tmp_path / "power").iterdir()
    path.write_text("{")
    assert SitePricing(SITE, "USD", tmp_path)(T0 + MINUTE, T0 + 2 * MINUTE, 2 * SUN_MJ).nano != 0


def test_an_interval_longer_than_an_hour_is_priced(pricing: SitePricing) -> None:
    """After a pause; nothing is matched by the hour then."""
    assert pricing(T0, T0 + 90 * MINUTE, 180 * SUN_MJ).nano is not None
