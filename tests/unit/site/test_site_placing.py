from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.site import POWER, WORKS, home, slice_, work

from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import FIGURES, Interval, Work
from tokenworks.site.attribution import close_interval
from tokenworks.site.correcting import correction
from tokenworks.site.words import Costs, Readings, Site

END = 60 * NS_PER_S
SERVERS = st.dictionaries(st.sampled_from(["s1", "s2", ""]), st.none() | POWER)
READINGS = st.builds(
    Readings,
    load=st.none() | POWER,
    it=st.none() | POWER,
    servers=SERVERS,
    boards=st.dictionaries(st.just("b"), POWER),
    implausible=st.integers(0, 1_000),
    floor_mw=st.dictionaries(st.sampled_from(["s1", ""]), st.integers(0, 10**5)),
    sink_mc=st.none() | st.integers(-30_000, 45_000),
    seen_permille=st.integers(0, 1_000),
).map(lambda said: said if said.load is not None else said._replace(implausible=0))


def pricing(start_ns: int, end_ns: int, mj: int) -> Costs:
    return Costs(mj * 5 // 7 - 10**5, mj * 3, mj * 2, {"wind": 1_000})


def close(site: Site, works: list[Work], said: Readings, ended: frozenset[str] = frozenset()) -> Interval:
    return close_interval(site, 0, END, works, ended, {"agents": NS_PER_S, "brain": 7}, said, pricing)


def check(interval: Interval) -> None:
    """Every identity, to the smallest unit."""
    r, s = interval.requests, interval.services
    placed = sum(x.energy_mj for x in r) + sum(x.energy_mj for x in s) + interval.idle_mj + interval.overhead_mj
    assert placed + interval.residual_mj == interval.meter_mj
    assert min([0, interval.idle_mj, interval.overhead_mj, *(x.energy_mj for x in r), *(x.overhead_mj for x in r)]) == 0
    assert sum(x.overhead_mj for x in r) <= interval.overhead_mj
    money = sum(x.energy_nano or 0 for x in r) + sum(x.energy_nano or 0 for x in s)
    assert money + (interval.idle_nano or 0) + (interval.overhead_nano or 0) == interval.bill_nano
    for name, total in (("carbon_ug", interval.carbon_ug), ("market_ug", interval.market_ug)):
        assert sum(getattr(x, name) for x in r) <= max(0, total or 0)
    if interval.water_ul is not None:
        assert 0 <= sum(x.water_ul or 0 for x in r) <= interval.water_ul
    assert sum(interval.reserved_mj.values()) <= interval.idle_mj
    assert 0 <= interval.quality_permille <= 1_000


@given(st.integers(0, 3), WORKS, READINGS)
def test_every_level_closes_whatever_was_read(variant: int, works: list[Work], said: Readings) -> None:
    """Closure at every level: energy, money and carbon add up to the meter, for any schedule and any readings."""
    interval = close(home(variant), works, said)
    check(interval)
    if said.load is not None:
        assert interval.meter_mj == said.load
    assert set(interval.scales_ppm) == {name for name, mj in said.servers.items() if mj is not None}


@given(st.integers(0, 3), WORKS, READINGS, st.randoms(use_true_random=False))
def test_order_of_works_changes_nothing(variant: int, works: list[Work], said: Readings, order: random.Random) -> None:
    """Order independence, with servers, boards and components."""
    shuffled = list(works)
    order.shuffle(shuffled)
    assert close(home(variant), works, said) == close(home(variant), shuffled, said)


@given(WORKS, READINGS, st.floats(0, 50), st.floats(0.001, 10), st.tuples(*[st.integers(0, 2_000)] * 3))
def test_equal_requests_in_one_batch_are_charged_alike(
    works: list[Work], said: Readings, start: float, length: float, tokens: tuple[int, int, int]
) -> None:
    """Symmetry: the same request in the same batch bears the same, within a unit."""
    twins = [work(name, start, start + length, "a", tokens, start + length / 3) for name in ("x", "y")]
    x, y = (line for line in close(home(), works + twins, said).requests if line.receipt in ("x", "y"))
    assert abs(x.energy_mj - y.energy_mj) <= 1
    assert abs(x.slice_ns - y.slice_ns) <= 1


@given(WORKS, READINGS)
def test_a_dummy_bears_nothing_and_changes_nobody(works: list[Work], said: Readings) -> None:
    """Dummy: a request without time or tokens in the interval has zeros at most, and every other line stays."""
    dummies = [work("x", 61, 70), work("y", 5, 5, tokens=(0, 0, 0))]
    without, with_ = close(home(), works, said), close(home(), works + dummies, said, frozenset({"x", "y"}))
    lines = {line.receipt: line for line in with_.requests}
    assert all((lines.pop(name).energy_mj, 0) == (0, 0) for name in "xy")
    assert tuple(lines.values()) == without.requests


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=6))
def test_another_request_never_raises_what_one_pays_for_streaming(spans: list[tuple[int, int]]) -> None:
    """Sharing: weights are streamed for a batch once, so a larger batch makes no one's part larger."""
    works = [work(f"r{n}", start, start + length, "c") for n, (start, length) in enumerate(spans)]
    alone, company = close(home(), works, Readings()), close(home(), [*works, work("z", 0, 60, "c")], Readings())
    held = {line.receipt: line.slice_ns for line in company.requests}
    assert all(held[line.receipt] <= line.slice_ns + 1 for line in alone.requests)


@given(WORKS, st.integers(1, 59))
def test_two_halves_make_the_whole(works: list[Work], cut: int) -> None:
    """Additivity: what the model says of two parts of an interval is what it says of the whole, within rounding."""
    site, at = home(), cut * NS_PER_S
    halves = [close_interval(site, *span, works, frozenset(), {}, None) for span in ((0, at), (at, END))]
    whole = close_interval(site, 0, END, works, frozenset(), {}, None)
    assert abs(whole.idle_mj - sum(half.idle_mj for half in halves)) <= 1
    assert abs(sum(r.energy_mj for r in whole.requests) - sum(r.energy_mj for h in halves for r in h.requests)) <= 6


def test_prefill_and_context_are_each_works_own() -> None:
    """By hand: 100 J of dynamic energy, half of it streaming; a prompt from the cache has no prefill to pay."""
    site = home()
    cached = work("cached", 0, 1, "a", (1_000, 1_000, 0), 1)
    fresh = work("fresh", 0, 1, "a", (1_000, 0, 0), 1)
    lines = {line.receipt: line for line in close(site, [cached, fresh], Readings()).requests}
    # Streaming: 300 W for 1 s in two; prefill: 1,000 tokens of 0.4 mJ. Together 300 J of the model, so scaled to it.
    assert lines["fresh"].energy_mj + lines["cached"].energy_mj == 300_000
    assert lines["fresh"].energy_mj == round(300_000 * (150_000 + 400) / 300_400)
    long = work("long", 0, 1, "a", (1_000, 1_000, 100), 0)
    lines = {line.receipt: line for line in close(site, [cached, long], Readings()).requests}
    context = 100 * 1_000 + 100 * 100 // 2
    assert lines["long"].energy_mj == round(300_000 * (150_000 + context * 3e-3) / (300_000 + context * 3e-3))


def test_shares_are_the_shapley_values_of_a_batch() -> None:
    """Against the definition: the mean over all orders of arrival of what each adds to the cost of the batch."""
    spans = {"x": (0, 6), "y": (2, 8), "z": (3, 4)}

    def cost(batch: set[str]) -> int:
        """Seconds in which anything of the batch runs: weights are streamed once for all of it."""
        return len({second for name in batch for second in range(*spans[name])})

    exact = dict.fromkeys(spans, 0.0)
    for order in permutations(spans):
        for n, name in enumerate(order):
            exact[name] += (cost(set(order[: n + 1])) - cost(set(order[:n]))) / 6
    lines = close(home(), [work(name, *span, "c") for name, span in spans.items()], Readings()).requests
    assert all(abs(line.slice_ns - exact[line.receipt] * NS_PER_S) <= 1 for line in lines)  # they sum to whole ns


@given(WORKS, POWER, st.booleans())
def test_slices_of_a_board_never_sum_above_it(works: list[Work], counter: int, metered: bool) -> None:
    """Shared devices: without a server meter the slices of a board sum to at most its counter (not each to all of it);
    with one, the counters are scaled to it."""
    both = [each for each in works if each.slice in "ab"]
    said = Readings(boards={"b": counter}, servers={"s1": 40_000_000} if metered else {})
    interval = close(home(), both, said)
    requests = sum(line.energy_mj for line in interval.requests)
    floor = (40_000 + 2 * 20_000) * 60
    assert requests <= (40_000_000 - floor if metered else max(0, counter - 2 * 20_000 * 60))
    check(interval)


def test_a_dead_sensor_is_never_zero() -> None:
    """A server whose meter is silent is modelled: its requests keep their energy, the residual grows, quality falls."""
    works = [work("x", 0, 30, "a"), work("y", 0, 30, "c")]
    model = close(home(2), works, Readings())
    it = 40_000_000
    live = close(home(2), works, Readings(load=60_000_000, it=it, servers={"s1": 25_000_000, "s2": 14_900_000, "": 0}))
    dead = close(home(2), works, Readings(load=60_000_000, it=it, servers={"s1": 25_000_000, "s2": None, "": 0}))
    y = {line.receipt: line.energy_mj for line in dead.requests}["y"]
    assert y == {line.receipt: line.energy_mj for line in model.requests}["y"] > 0
    assert abs(dead.residual_mj) > abs(live.residual_mj)
    assert dead.quality_permille < live.quality_permille
    assert "server s2: its meter is silent" in dead.notes
    check(dead)


def test_a_dead_server_is_not_the_buildings_overhead() -> None:
    """With the building's meter alone above a silent server, the difference is residual: overhead stays as modelled."""
    works = [work("x", 0, 30, "a"), work("y", 0, 30, "c")]
    live = close(home(2), works, Readings(load=60_000_000, servers={"s1": 25_000_000, "s2": 14_900_000, "": 62_760}))
    assert (live.residual_mj, live.overhead_mj) == (0, 60_000_000 - 25_000_000 - 14_900_000 - 62_760)
    dead = close(home(2), works, Readings(load=60_000_000, servers={"s1": 25_000_000, "s2": None, "": 62_760}))
    assert dead.overhead_mj == (dead.meter_mj - dead.overhead_mj - dead.residual_mj + 1) // 2
    assert dead.residual_mj > 0
    assert dead.quality_permille < live.quality_permille
    check(dead)


def test_meters_that_disagree_with_the_model_are_said() -> None:
    """Data quality: the factor by which a meter scales its model is published, and told when it is far from 1."""
    works = [work("x", 0, 60, "a")]
    model = (20_000 * 2 + 40_000) * 60 + 300_000 * 60
    for reading, alarms in ((model, 0), (model * 2, 1), (model // 2, 1)):
        interval = close(home(2), works, Readings(servers={"s1": reading}))
        assert interval.scales_ppm == {"s1": reading * 1_000_000 // model}
        assert sum("server s1: the meter says" in note for note in interval.notes) == alarms
    boards = close(home(2), works, Readings(servers={"s1": model}, boards={"b": model - 40_000 * 60}))
    assert boards.scales_ppm == {"s1": 1_000_000}
    assert boards.requests[0].energy_mj == 300_000 * 60


def test_what_the_meter_cannot_mean_is_residual() -> None:
    """After a jump: what the site could not have drawn is in the bill, and on nobody's receipt."""
    works, plain = [work("x", 0, 60, "a")], Readings(load=50_000_000)
    said = Readings(load=50_000_000 + 9_000_000, implausible=9_000_000)
    interval, without = close(home(), works, said), close(home(), works, plain)
    assert interval.residual_mj == without.residual_mj + 9_000_000
    assert [line.energy_mj for line in interval.requests] == [line.energy_mj for line in without.requests]
    assert interval.quality_permille < without.quality_permille


def test_reserved_idle_is_the_reservers() -> None:
    """Idle energy of a reserved slice stands by who reserved it; the rest is the site's."""
    interval = close(home(), [], Readings())
    assert interval.reserved_mj == {"r": 20_000 * 60}
    assert interval.idle_mj == (3 * 20_000 + 40_000 + 1_000) * 60


def test_fixed_overhead_follows_reserved_capacity() -> None:
    """A facility's fixed part is borne by who held slices, by their capacity, whatever they drew; the rest is idle."""
    interval = close(home(), [work("x", 0, 60, "a")], Readings())
    fixed = 35_000 * 60
    full = 60 * (320_000 * 3)
    held = 60 * 320_000
    own = interval.requests[0].energy_mj
    variable = interval.overhead_mj - fixed
    it = own + interval.idle_mj + sum(line.energy_mj for line in interval.services)
    expected = fixed * held / full + variable * own / it
    assert abs(interval.requests[0].overhead_mj - expected) <= 1


@given(WORKS, WORKS, READINGS, READINGS)
def test_corrections_add_up_to_what_is_known(
    works: list[Work], late: list[Work], first: Readings, then: Readings
) -> None:
    """Closure after late corrections: the entries of a time sum to what it would be with all that is known; each
    correction closes too, and when nothing is new there is none."""
    site = home()
    before = close(site, works, first, frozenset({"r1"}))
    again = close(site, works + late, then, frozenset({"r1", "r2"}))
    entry = correction([before], again)
    entries = [before] + ([] if entry is None else [entry])
    assert correction(entries, again) is None
    assert [each.corrects for each in entries] == list(range(len(entries)))
    for name in ("meter_mj", "idle_mj", "overhead_mj", "residual_mj", "bill_nano", "carbon_ug", "water_ul"):
        assert sum(getattr(each, name) or 0 for each in entries) == (getattr(again, name) or 0), name
    for line in again.requests:
        mine = [each for e in entries for each in e.requests if each.receipt == line.receipt]
        for name in FIGURES:
            assert sum(getattr(each, name) or 0 for each in mine) == (getattr(line, name) or 0), name
        assert sum(each.ended for each in mine) == line.ended
    for each in entries:
        placed = sum(r.energy_mj for r in each.requests) + sum(s.energy_mj for s in each.services)
        assert placed + each.idle_mj + each.overhead_mj + each.residual_mj == each.meter_mj
        money = sum(r.energy_nano or 0 for r in each.requests) + sum(s.energy_nano or 0 for s in each.services)
        assert money + (each.idle_nano or 0) + (each.overhead_nano or 0) == each.bill_nano


def test_negative_figures_of_a_slice_are_refused() -> None:
    """After books that could not be split."""
    with pytest.raises(ValueError, match="negative"):
        Site(
            name="s", entity="e", jurisdiction=None, place=None, overhead=home().overhead, supply=home().supply,
            loads=(slice_("a", prefill_nj=-1),),
        )  # fmt: skip
