from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tokenworks import gridfile
from tokenworks.compose import plan
from tokenworks.compose_power import SitePower, site_power
from tokenworks.core.errors import GridFileError
from tokenworks.core.units import MJ_PER_KWH
from tokenworks.power.account import Stock, account, green_permille, match_hours
from tokenworks.power.contract import Flow
from tokenworks.power.events import limits
from tokenworks.power.plant import dispatch
from tokenworks.power.signal import at
from tokenworks.power.tables import HOUR_NS, load

ROOT = Path(__file__).parents[2]
WEEK_NS = int(datetime(2024, 4, 24, tzinfo=UTC).timestamp()) * 10**9
HEAD = '[[replica]]\nmodel = "m"\n[[site]]\nname = "a"\n'


def example(site: int) -> SitePower:
    return site_power(gridfile.load(ROOT / "examples" / "contracts.toml").sites[site], "CNY")


def test_a_week_of_the_example_closes_to_the_nano() -> None:
    """After the whole floor at once: a week of sun, wind, battery and contracts, dispatched, billed and traced, loses
    nothing: energy, money and carbon of the load and the battery are those of the sources."""
    power = example(1)
    stocks, flows = {"cells": Stock()}, list[Flow]()
    for hour in range(168):
        start = WEEK_NS + hour * HOUR_NS
        stored = {"cells": stocks["cells"].mj}
        flow, unserved = dispatch(power.supplies, 2_000 * MJ_PER_KWH, start, start + HOUR_NS, stored)
        assert unserved == 0
        flows.append(flow)
        stocks = account(power.supplies, flow, 0, stocks).stocks
    costs = [power.contract.bill(flow) for flow in flows]
    assert None not in costs
    assert len(power.contract.charges) == 8
    stocks, accounts = {"cells": Stock()}, []
    for flow, cost, matched in zip(flows, costs, match_hours(flows), strict=True):
        accounts.append(account(power.supplies, flow, cost, stocks, matched))
        stocks = accounts[-1].stocks
    assert sum(cost or 0 for cost in costs) == sum(each.load.nano or 0 for each in accounts) + (
        stocks["cells"].nano or 0
    )
    into = sum(flow.import_mj + sum(flow.produced_mj.values()) for flow in flows)
    assert into == stocks["cells"].mj + sum(each.load.mj + each.exported.mj + each.lost_mj for each in accounts)
    shares = green_permille(power.supplies, accounts, flows)
    assert shares is not None
    assert 300 < shares[0] < shares[1] <= 1_000


def test_the_chinese_tariff_of_the_example() -> None:
    """After the wall clock: the tier of Shanghai's hour and holiday is the marginal price."""
    contract = example(0).contract

    def price(text: str) -> int | None:
        return contract.marginal_nano_per_kwh(int(datetime.fromisoformat(text).timestamp()) * 10**9)

    assert price("2024-04-24T10:00+08:00") == 1_110_000_000
    assert price("2024-04-24T12:00+08:00") == 240_000_000
    assert price("2024-05-01T12:00+08:00") == 120_000_000
    assert price("2024-04-24T23:00+08:00") == 600_000_000


def test_events_of_the_example_become_limits() -> None:
    """After announced events: a curtailment with a ramp and a shift with its window, ready for the brain."""
    heat, noon = example(1).events
    assert [limit.max_mw for limit in limits(heat, "coast", 2_000)][10] == 1_500
    assert [limit.firm for limit in limits(noon, "coast", 2_000_000_000)] == [False, False]


def test_a_site_without_a_contract_pays_the_price_of_its_feed() -> None:
    """After the plain grid: one price and one intensity, as listed or as the file says, and unknown when neither is."""
    site = gridfile.parse(HEAD + 'supply = { price = "0.2 USD/kWh", carbon = "100 g/kWh" }', "g").sites[0]
    said = site_power(site, "USD")
    assert said.contract.marginal_nano_per_kwh(0) == 200_000_000
    assert said.supplies.feed is not None
    assert said.supplies.feed.carbon is not None
    assert at(said.supplies.feed.carbon, 0) == 100_000_000
    bare = gridfile.parse(HEAD, "g").sites[0]
    assert site_power(bare, "USD").contract.marginal_nano_per_kwh(0) == 88_000_000
    assert site_power(bare, "EUR").contract.marginal_nano_per_kwh(0) is None


def test_the_residual_mix_is_the_files() -> None:
    """Market-based carbon of what is not contracted: of the residual mix where the file has one."""
    site = gridfile.parse(HEAD + 'supply = { carbon = "100 g/kWh", residual = "600 g/kWh" }', "g").sites[0]
    power, flow = site_power(site, "USD"), Flow(start_ns=0, end_ns=HOUR_NS, import_mj=MJ_PER_KWH)
    traced = account(power.supplies, flow, 0, {})
    assert (traced.load.carbon_ug, traced.load.market_ug) == (100_000_000, 600_000_000)


def test_an_event_without_sense_names_its_site() -> None:
    """After typing: an event with two targets is told before the grid starts."""
    text = '[[site.event]]\nid = "e"\nkind = "curtail"\nstart = 2026-01-01T00:00:00Z\nduration = "1 h"\ncut = 0.5\n'
    site = gridfile.parse(HEAD + text + 'cap = "1 MW"', "g").sites[0]
    with pytest.raises(GridFileError, match="site 'a': an event has one target"):
        site_power(site, "USD")


def test_the_committed_tables_are_what_their_readme_says() -> None:
    """After data that rots: a week of prices with negative hours, and a week of wind."""
    prices = load(ROOT / "data/power/caiso-np15-week.csv", "price_per_mwh")
    assert (prices.starts.size, int(prices.starts[0]), int((prices.values < 0).sum())) == (168, WEEK_NS, 35)
    truth = load(ROOT / "data/power/wind-week.csv", "availability")
    assert at(truth, WEEK_NS) == 416_300


def test_power_of_every_example_can_be_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """All grids in examples/ become plans, and their sites' supplies, contracts and events floor 1's words."""
    monkeypatch.setenv("UPSTREAM_API_KEY", "x")
    found = {}
    for path in sorted((ROOT / "examples").glob("*.toml")):
        worked_out = plan(gridfile.load(path))
        for table in worked_out.powers:
            found[path.stem, table.name] = site_power(table, worked_out.currency)
    assert [event.id for event in found["modular-factory", "campus"].events] == ["evening"]
    assert [plant.name for plant in found["seabed-24mw", "lingang"].supplies.plants] == ["offshore"]
    assert found["orbit", "satellite"].supplies.feed is None


def test_modules_and_contact_windows_become_a_facility() -> None:
    """Blocks, and the orbit's contacts; a site without modules has none."""
    sites = {site.name: site for site in plan(gridfile.load(ROOT / "examples" / "orbit.toml")).sites}
    assert sites["ground"].facility is None
    facility = sites["satellite"].facility
    assert facility is not None
    assert facility.it_mw == 17_000_000
    start_ns = 1_798_762_800 * 10**9  # 2027-01-01T00:20Z
    assert facility.reachable(start_ns) == (start_ns, start_ns + 600 * 10**9)
    assert facility.reachable(start_ns + 601 * 10**9) == (start_ns + 5_700 * 10**9, start_ns + 6_300 * 10**9)
