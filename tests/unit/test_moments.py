"""What changes at a site without a request, in virtual time: prices of tariffs and markets, windows of contact."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from tests.support.site import home

from tokenworks import gridfile
from tokenworks.brain.route import Offer, Scales, choose, eligible, price
from tokenworks.compose import plan
from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import EngineDown
from tokenworks.core.units import MJ_PER_KWH, NS_PER_S
from tokenworks.core.words import Request, Work
from tokenworks.gridfile.tables import Charge, Contract, SignalFile, Site, Supply, Tier
from tokenworks.moments import Moment, moments, show
from tokenworks.pricing import SitePricing
from tokenworks.site.agent import SiteAgent
from tokenworks.site.facility import Window
from tokenworks.site.words import Site as Place

ROOT = Path(__file__).parents[2]
HOUR_NS = 3_600 * NS_PER_S
MIDNIGHT = int(datetime(2024, 4, 24, tzinfo=UTC).timestamp()) * NS_PER_S


class Load:
    """A replica that has nothing to do."""

    ready, full, running, wait_ns = True, False, 0, 0
    prefill_tps = decode_tps = 100.0


def offer(site: str, nano: int | None = 10**8) -> Offer:
    return Offer(
        replica=f"{site}-1", site=site, model="m", load=Load(), slots=4, context_tokens=100, capabilities=frozenset(),
        latency_ns=0, busy_mw=1_000_000, price_nano_per_kwh=nano, carbon_ug_per_kwh=None, device_nano_per_hour=None,
    )  # fmt: skip


def request() -> Request:
    return Request(
        id="r", arrived_ns=0, endpoint="chat", model="m", body=b"{}", input_max=100, stream=False, show_usage=False,
        output_max=100, choices=1, needs=frozenset(),
    )  # fmt: skip


def named(name: str, windows: tuple[Window, ...] = ()) -> Place:
    site = home(1)
    assert site.facility is not None
    return msgspec.structs.replace(site, name=name, facility=msgspec.structs.replace(site.facility, windows=windows))


def hours(pricing: SitePricing, count: int, what: str = "price") -> list[int | None]:
    """By hour from midnight on."""
    found = [getattr(pricing.now(home().supply, MIDNIGHT + hour * HOUR_NS), what) for hour in range(count)]
    return [each and each.value for each in found]


TIERS = (Tier(price_nano_per_kwh=3 * 10**8, hours=("08:00-20:00",)), Tier(price_nano_per_kwh=2 * 10**7))
BY_HOUR = Contract(charges=(Charge(kind="energy", tiers=TIERS),))


def spot(tmp_path: Path) -> SitePricing:
    """Under the market of the committed week, at one USD per USD."""
    table = SignalFile(file=str(ROOT / "data/power/caiso-np15-week.csv"), column="price_per_mwh")
    fee = 5 * 10**6
    contract = Contract(name="spot", charges=(Charge(kind="energy", index=table, adder_nano_per_kwh=fee),))
    return SitePricing(Site(name="b", supply_tables=(Supply(),), contract=contract), "USD", tmp_path)


def test_time_of_use_moves_the_price_of_now(tmp_path: Path) -> None:
    """After a price that is known only as a bill: each hour of the day has its tier's."""
    pricing = SitePricing(Site(name="a", supply_tables=(Supply(),), contract=BY_HOUR), "USD", tmp_path)
    assert hours(pricing, 24) == [2 * 10**7] * 8 + [3 * 10**8] * 12 + [2 * 10**7] * 4


def test_a_spot_table_moves_it_below_zero_and_its_end_leaves_it_unknown(tmp_path: Path) -> None:
    """The committed week of prices, of which 35 hours are negative, against the file itself; after it, nothing."""
    rows = (ROOT / "data/power/caiso-np15-week.csv").read_text().splitlines()
    column = rows[0].split(",").index("price_per_mwh")
    expected = [round(float(row.split(",")[column]) * 10**6) + 5 * 10**6 for row in rows[1:]]
    found = hours(spot(tmp_path), 169)
    assert found == [*expected, None]
    assert sum(each < 5 * 10**6 for each in expected) == 35


def test_the_router_follows_the_cheaper_site_hour_by_hour(tmp_path: Path) -> None:
    """A tariff here, a market there: each hour's choice is the cheaper one, and hours below zero attract load."""
    tariff = SitePricing(Site(name="a", supply_tables=(Supply(),), contract=BY_HOUR), "USD", tmp_path)
    market, sites = spot(tmp_path), [named("a"), named("b")]
    agents = {name: SiteAgent(each, ManualClock(), lambda _: None) for name, each in zip("ab", sites, strict=True)}
    offers = {"m": [offer("a"), offer("b")]}
    chosen, negative = [], 0
    for hour in range(168):
        now = moments(sites, {"a": tariff.now, "b": market.now}, MIDNIGHT + hour * HOUR_NS)
        show(now, offers, agents)
        decision = choose(request(), *eligible(request(), offers), Scales())
        chosen.append(decision.chosen.site)
        negative += decision.chosen.terms_nano["energy"] < 0
        price_a, price_b = (now[name].supply.price for name in "ab")
        assert price_a is not None
        assert price_b is not None
        assert decision.chosen.site == min((price_a.value, "a"), (price_b.value, "b"))[1]
    assert set(chosen) == {"a", "b"}
    assert negative > 20


def test_estimates_follow_the_moment() -> None:
    """What a fresh response is told of its energy's money is at the price of now, also when that is below zero."""
    agent = SiteAgent(home(0), ManualClock(), lambda _: None)
    work = Work(
        receipt="r", replica="x", site="s", slice="a", start_ns=0, first_ns=None, end_ns=10 * NS_PER_S,
        input_tokens=1, output_tokens=1,
    )  # fmt: skip
    agent.begin("r", "x", "a", 0)
    supply = home().supply
    for nano in (7 * 10**8, -7 * 10**8):
        price_ = msgspec.structs.replace(supply.price, value=nano)  # type: ignore[type-var]
        show({"s": Moment(supply=msgspec.structs.replace(supply, price=price_), away="")}, {}, {"s": agent})
        line = agent.estimate(work)
        assert line.energy_mj > 0
        assert line.energy_nano is not None
        assert abs(line.energy_nano - line.energy_mj * nano / MJ_PER_KWH) <= 1


def test_carbon_follows_the_sources_and_more_load_moves_what_it_moves(tmp_path: Path) -> None:
    """By the grid's table of the hour while it imports; an exporting site's next kilowatt-hour is sold one less."""
    grid = Supply(name="grid", carbon_ug_per_kwh=400_000_000, export_limit_mw=10**12)
    sun = Supply(name="roof", kind="solar", capacity_mw=10**6, carbon_ug_per_kwh=45_000_000)
    charges = (Charge(kind="energy", price_nano_per_kwh=2 * 10**8), Charge(kind="export", price_nano_per_kwh=6 * 10**7))
    pricing = SitePricing(
        Site(name="s", supply_tables=(grid, sun), contract=Contract(charges=charges)), "USD", tmp_path
    )

    def now() -> tuple[int | None, int | None]:
        found = pricing.now(home().supply, MIDNIGHT)
        return found.price.value if found.price else None, found.carbon.value if found.carbon else None

    assert now() == (2 * 10**8, 400_000_000), "before the first interval: the grid's"
    pricing(MIDNIGHT, MIDNIGHT + 60 * NS_PER_S, 120_000_000)  # half sun, half grid
    assert now() == (2 * 10**8, 222_500_000)
    pricing(MIDNIGHT + 60 * NS_PER_S, MIDNIGHT + 120 * NS_PER_S, 30_000_000)  # half of the sun is sold
    assert now() == (6 * 10**7, 45_000_000)
    pricing(MIDNIGHT + 120 * NS_PER_S, MIDNIGHT + 180 * NS_PER_S, 60_000_000)  # all of it is used
    assert now() == (0, 45_000_000), "nobody charges for more of the roof"
    shares = pricing.shares()
    assert shares == {"clean_hourly": 714, "clean": 857, "self_used": 833, "of_load": 714, "exported": 167}


def test_a_site_out_of_contact_gets_nothing_and_the_error_says_why() -> None:
    """In its window it serves; outside a request goes elsewhere, and when there is nothing else it is told why."""
    window = Window(start_ns=100 * NS_PER_S, length_ns=10 * NS_PER_S, period_ns=60 * NS_PER_S)
    last = Window(start_ns=0, length_ns=NS_PER_S)
    sites = [named("orbit", (window,)), named("ground"), named("gone", (last,))]
    agents = {name: SiteAgent(home(), ManualClock(), lambda _: None) for name in ("orbit", "ground", "gone")}
    offers = {"m": [offer("orbit", 1), offer("ground"), offer("gone")]}
    for second, serving in ((99, "ground"), (100, "orbit"), (109, "orbit"), (110, "ground"), (160, "orbit")):
        show(moments(sites, {}, second * NS_PER_S), offers, agents)
        options, refused = eligible(request(), offers)
        assert choose(request(), options, refused, Scales()).chosen.site == serving
        assert refused["gone-1"] == "site gone cannot be reached any more"
        assert ("orbit-1" in refused) == (serving == "ground")
    show(moments(sites, {}, 110 * NS_PER_S), offers, agents)
    with pytest.raises(EngineDown, match="site orbit cannot be reached before 1970-01-01T00:02:40"):
        eligible(request(), {"m": offers["m"][::2]})


def test_the_examples_orbit_is_out_of_contact_before_its_first_window() -> None:
    """From the grid file to the reason: the ground station's window of examples/orbit.toml."""
    sites = plan(gridfile.load(ROOT / "examples" / "orbit.toml")).sites
    start_ns = 1_798_762_800 * NS_PER_S  # 2027-01-01T00:20Z
    assert "before 2027-01-01T00:20" in moments(sites, {}, start_ns - 1)["satellite"].away
    assert moments(sites, {}, start_ns) == {"satellite": Moment(supply=sites[1].supply, away="")}


def test_an_unknown_price_is_no_term(tmp_path: Path) -> None:
    """After the table's end: what is not known is left out of the sum, not taken for nothing."""
    now = moments([named("b")], {"b": spot(tmp_path).now}, MIDNIGHT + 200 * HOUR_NS)
    offers = {"m": [offer("b")]}
    show(now, offers, {"b": SiteAgent(home(), ManualClock(), lambda _: None)})
    assert "energy" not in price(request(), offers["m"][0], Scales()).terms_nano
