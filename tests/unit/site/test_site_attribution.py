from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Interval, Provenance, Sourced, Work
from tokenworks.power.supply import Supply
from tokenworks.site.attribution import close_interval
from tokenworks.site.words import Site, SliceLoad

END = 60 * NS_PER_S


def listed(value: int) -> Sourced:
    return Sourced(value=value, provenance=Provenance.LISTED)


def work(receipt: str, start_s: float, end_s: float, slice_: str = "a") -> Work:
    return Work(
        receipt=receipt,
        replica="r",
        site="s",
        slice=slice_,
        start_ns=round(start_s * NS_PER_S),
        first_ns=None,
        end_ns=round(end_s * NS_PER_S),
        input_tokens=1,
        output_tokens=1,
    )


def load(slice_: str, idle_mw: int = 1_000, busy_mw: int = 2_000, cost: int | None = 3_600_000) -> SliceLoad:
    return SliceLoad(slice=slice_, idle_mw=idle_mw, busy_mw=busy_mw, power=Provenance.MODELLED, cost_nano_per_hour=cost)


def plant(
    *loads: SliceLoad,
    overhead: int = 500,
    price: int | None = 88_000_000,
    carbon: int | None = 481_000_000,
    base: int = 0,
    thread: int = 2_760,
) -> Site:
    return Site(
        name="s",
        entity="e",
        jurisdiction=None,
        place=None,
        overhead=listed(overhead),
        supply=Supply(
            name="grid",
            price=None if price is None else listed(price),
            carbon=None if carbon is None else listed(carbon),
            mix_permille={"coal": 1_000},
        ),
        loads=loads,
        base_idle_mw=base,
        thread_busy_mw=thread,
    )


POWER = st.integers(0, 700_000)
SITES = st.builds(
    lambda a, b, cost, overhead, price, carbon, base, thread: plant(
        load("a", a[0], a[1], cost),
        load("b", b[0], b[1], None),
        overhead=overhead,
        price=price,
        carbon=carbon,
        base=base,
        thread=thread,
    ),
    st.tuples(POWER, POWER),
    st.tuples(POWER, POWER),
    st.none() | st.integers(0, 10**10),
    st.integers(0, 3_000),
    st.none() | st.integers(-(10**9), 10**9),
    st.none() | st.integers(0, 10**10),
    POWER,
    POWER,
)
WORKS = st.lists(
    st.builds(
        lambda receipt, start, length, slice_: work(f"r{receipt}", start, start + length, slice_),
        st.integers(0, 6),
        st.floats(-20, 70),
        st.floats(0, 30),
        st.sampled_from(["a", "b", "gone"]),
    ),
    max_size=10,
)
ENDED = st.frozensets(st.sampled_from([f"r{n}" for n in range(8)]))
SERVICES = st.dictionaries(st.sampled_from(["agents", "brain", "other"]), st.integers(0, 10**11))
READINGS = st.none() | st.integers(-(10**6), 10**9) | st.integers(-3, 300)


def closes(site: Site, interval: Interval) -> None:
    """Every identity of an Interval, to the smallest unit."""
    requests, services = interval.requests, interval.services
    placed = sum(r.energy_mj for r in requests) + interval.idle_mj + sum(s.energy_mj for s in services)
    assert placed + interval.overhead_mj + interval.residual_mj == interval.meter_mj
    assert sum(r.overhead_mj for r in requests) <= interval.overhead_mj
    assert min([0, interval.idle_mj, interval.overhead_mj, *(s.energy_mj for s in services)]) == 0
    assert all(r.energy_mj >= 0 and r.overhead_mj >= 0 and r.slice_ns >= 0 for r in requests)
    assert interval.bill_nano == site.supply.bill_nano(interval.meter_mj)
    assert interval.carbon_ug == site.supply.carbon_ug(interval.meter_mj)
    energy_nano = [r.energy_nano for r in requests] + [s.energy_nano for s in services]
    money = [*energy_nano, interval.idle_nano, interval.overhead_nano]
    known = [nano for nano in money if nano is not None]
    carbon = [r.carbon_ug for r in requests] + [s.carbon_ug for s in services]
    if interval.bill_nano is None:
        assert known == []
        assert all(r.overhead_nano is None for r in requests)
    else:
        assert len(known) == len(money)
        assert sum(known) == interval.bill_nano
        shared = sum(r.overhead_nano or 0 for r in requests)
        assert abs(shared) <= abs(interval.overhead_nano or 0)
    if interval.carbon_ug is None:
        assert set(carbon) <= {None}
    else:
        assert None not in carbon
        if interval.meter_mj >= 0:
            assert sum(ug or 0 for ug in carbon) <= interval.carbon_ug


@given(SITES, WORKS, ENDED, SERVICES, READINGS)
def test_every_interval_closes(
    site: Site, works: list[Work], ended: frozenset[str], services: dict[str, int], reading: int | None
) -> None:
    """Closure: energy, money and carbon add up to the meter exactly, for any works, figures and readings."""
    interval = close_interval(site, 0, END, works, ended, services, reading)
    closes(site, interval)
    assert interval.meter is (Provenance.MODELLED if reading is None else Provenance.MEASURED)
    if reading is None:
        assert (interval.residual_mj, interval.scale_ppm) == (0, 1_000_000)
    else:
        assert interval.meter_mj == reading


@given(SITES, WORKS, st.randoms(use_true_random=False), READINGS)
def test_order_of_works_changes_no_line(
    site: Site, works: list[Work], order: random.Random, reading: int | None
) -> None:
    """Order independence: permuting the works changes nothing in the interval."""
    shuffled = list(works)
    order.shuffle(shuffled)
    ended = frozenset({"r1", "r2"})
    assert close_interval(site, 0, END, works, ended, {}, reading) == close_interval(
        site, 0, END, shuffled, ended, {}, reading
    )


@given(SITES, WORKS, st.floats(0, 50), st.floats(0.001, 10), READINGS)
def test_equal_works_cost_the_same(
    site: Site, works: list[Work], start: float, length: float, reading: int | None
) -> None:
    """Symmetry: two equal works differ by at most one unit in energy, overhead, time and depreciation."""
    twins = [work("x", start, start + length), work("y", start, start + length)]
    lines = {r.receipt: r for r in close_interval(site, 0, END, [*works, *twins], frozenset(), {}, reading).requests}
    x, y = lines["x"], lines["y"]
    assert abs(x.energy_mj - y.energy_mj) <= 1
    assert abs(x.slice_ns - y.slice_ns) <= 1
    if x.energy_mj == y.energy_mj:
        assert abs(x.overhead_mj - y.overhead_mj) <= 1
    if x.slice_ns == y.slice_ns and x.device_nano is not None and y.device_nano is not None:
        assert abs(x.device_nano - y.device_nano) <= 1


@given(SITES, WORKS, READINGS)
def test_no_overlap_no_energy(site: Site, works: list[Work], reading: int | None) -> None:
    """Dummy: a work outside the interval has no line; if it ended it has one of zeros, and changes no other."""
    without = close_interval(site, 0, END, works, frozenset(), {}, reading)
    dummies = [work("x", 60, 61), work("y", -2, 0), work("z", 5, 5)]
    interval = close_interval(site, 0, END, [*works, *dummies], frozenset({"x"}), {}, reading)
    lines = {r.receipt: r for r in interval.requests}
    assert "y" not in lines
    assert "z" not in lines
    zero = lines.pop("x")
    assert zero.ended
    assert (zero.energy_mj, zero.overhead_mj, zero.slice_ns, zero.device_nano or 0) == (0, 0, 0, 0)
    assert (zero.energy_nano or 0, zero.overhead_nano or 0, zero.carbon_ug or 0) == (0, 0, 0)
    assert tuple(lines.values()) == without.requests


def test_lone_work_by_hand() -> None:
    """After the formula: 10 s at 2 W above idle, 60 s of 1 W idle, 1 s of gateway, 50 % overhead, in round figures."""
    site = plant(load("a"), price=3_600_000_000, carbon=7_200_000_000)  # 1 nano and 2 ug a millijoule
    interval = close_interval(site, 0, END, [work("x", 5, 15)], frozenset({"x"}), {"agents": NS_PER_S}, None)
    [line], [service] = interval.requests, interval.services
    assert (line.energy_mj, line.overhead_mj, line.slice_ns, line.ended) == (20_000, 10_000, 10 * NS_PER_S, True)
    assert (line.energy_nano, line.overhead_nano, line.carbon_ug) == (20_000, 10_000, 60_000)
    assert (line.device_nano, interval.idle_device_nano) == (10_000, 50_000)
    assert (service.layer, service.cpu_ns, service.energy_mj, service.energy_nano) == (
        "agents",
        NS_PER_S,
        2_760,
        2_760,
    )
    assert (interval.idle_mj, interval.idle_nano, interval.overhead_mj) == (60_000, 60_000, 41_380)
    assert interval.meter_mj == interval.bill_nano == 124_140
    assert interval.mix_permille == {"coal": 1_000}


def test_meter_scales_only_the_work() -> None:
    """After the meter: idle and services stay as modelled, the rest is the work's, and scale_ppm tells the ratio."""
    args = (0, END, [work("x", 0, 10), work("y", 0, 30)], frozenset[str](), {"brain": NS_PER_S})
    model = close_interval(plant(load("a")), *args, None)
    same = close_interval(plant(load("a")), *args, model.meter_mj)
    assert same.requests == model.requests
    more = close_interval(plant(load("a")), *args, model.meter_mj + 90_000)
    assert (more.idle_mj, more.services[0].energy_mj) == (model.idle_mj, model.services[0].energy_mj)
    assert sum(r.energy_mj for r in more.requests) == sum(r.energy_mj for r in model.requests) + 60_000
    assert more.residual_mj == 0
    assert more.scale_ppm == (model.meter_mj + 90_000) * 1_000_000 // model.meter_mj


@pytest.mark.parametrize("reading", [0, 30_000, 89_999])
def test_reading_below_idle_is_all_idle(reading: int) -> None:
    """After negative lines: a meter below the modelled idle leaves requests nothing, and the quality figure drops."""
    interval = close_interval(plant(load("a")), 0, END, [work("x", 0, 10)], frozenset(), {"brain": 9}, reading)
    assert [r.energy_mj for r in interval.requests] == [0]
    assert interval.idle_mj + interval.overhead_mj == reading
    assert interval.residual_mj == 0
    assert interval.scale_ppm < 1_000_000


def test_what_no_work_explains_is_residual() -> None:
    """After a surplus that nobody ran for: it is a residual, its money on the idle account; counting back too."""
    interval = close_interval(plant(load("a"), price=3_600_000_000), 0, END, [], frozenset(), {}, 120_000)
    assert (interval.idle_mj, interval.overhead_mj, interval.residual_mj) == (60_000, 40_000, 20_000)
    assert (interval.idle_nano, interval.overhead_nano) == (80_000, 40_000)
    backward = close_interval(plant(load("a")), 0, END, [work("x", 0, 1)], frozenset(), {}, -5)
    assert (backward.residual_mj, backward.idle_mj, backward.requests[0].energy_mj) == (-5, 0, 0)


def test_retries_of_one_receipt_are_one_line() -> None:
    """After two lines for one receipt: works on two slices merge, and unknown cost of one hides not the other's."""
    site = plant(load("a"), load("b", busy_mw=4_000, cost=None))
    interval = close_interval(site, 0, END, [work("x", 0, 1, "a"), work("x", 1, 3, "b")], frozenset({"x"}), {}, None)
    [line] = interval.requests
    assert (line.energy_mj, line.slice_ns, line.device_nano) == (2_000 + 8_000, 3 * NS_PER_S, 1_000)
    only_b = close_interval(site, 0, END, [work("x", 1, 3, "b")], frozenset(), {}, None)
    assert only_b.requests[0].device_nano is None
    assert only_b.idle_device_nano == 60_000
    nothing_known = close_interval(plant(load("a", cost=None)), 0, END, [], frozenset(), {}, None)
    assert nothing_known.idle_device_nano is None


@given(SITES, WORKS, st.integers(0, END))
def test_depreciation_sums_to_the_cost_of_the_slice(site: Site, works: list[Work], end_ns: int) -> None:
    """Closure of device money: what receipts bear and what nobody used is the slice's cost for the interval."""
    interval = close_interval(site, 0, end_ns, works, frozenset(), {}, None)
    cost = site.loads[0].cost_nano_per_hour
    borne = sum(r.device_nano or 0 for r in interval.requests)
    if cost is None:
        assert (borne, interval.idle_device_nano) == (0, None)
    else:
        hour = 3_600 * NS_PER_S
        assert borne + (interval.idle_device_nano or 0) == (2 * cost * end_ns + hour) // (2 * hour)


def test_interval_that_ends_before_it_starts_is_refused() -> None:
    """After time running backwards."""
    with pytest.raises(ValueError, match="end before"):
        close_interval(plant(), 1, 0, [], frozenset(), {}, None)
