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
