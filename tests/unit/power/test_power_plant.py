from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenworks.core.units import NS_PER_S
from tokenworks.power.plant import Battery, Feed, Plant, Range, Supplies, dispatch
from tokenworks.power.signal import Signal

HOUR = 3_600 * NS_PER_S
SUN = Plant(name="sun", kind="solar", capacity_mw=4_000, availability=Signal([0, HOUR], [HOUR, 2 * HOUR], [500_000, 0]))
CELL = Battery(name="cell", capacity_mj=7_200_000, power_mw=1_500, efficiency_permille=900)
GENSET = Plant(name="diesel", kind="genset", capacity_mw=1_000)
FARM = Plant(name="farm", kind="wind", capacity_mw=9_000, remote=True)


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [(0, HOUR, Range(0, 2_000)), (0, 2 * HOUR, Range(0, 1_000)), (HOUR, 2 * HOUR, Range(0, 0)), (0, 3 * HOUR, None)],
)
def test_a_plant_gives_what_is_available(start: int, end: int, found: Range | None) -> None:
    """After the weather: the mean availability of the step counts, and where it is unknown nothing is promised."""
    assert SUN.feasible(start, end) == found


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        (0, Range(-1_500, 0)),
        (7_200_000, Range(0, 1_500)),
        (3_600_000, Range(-1_000, 900)),
        (9_000_000, Range(0, 1_500)),
    ],
)
def test_a_battery_is_bound_by_room_content_and_converter(stored: int, found: Range) -> None:
    """After impossible steps: neither more than fits, nor more than the loss leaves, nor more than the converter."""
    assert CELL.feasible(0, HOUR, stored) == found


@settings(deadline=None)
@given(
    st.integers(0, 40_000_000), st.integers(0, 1), st.integers(0, 7_200_000), st.none() | st.integers(0, 5_000),
    st.integers(0, 3_000), st.booleans(),
)  # fmt: skip
def test_dispatch_balances_within_every_range(
    load_mj: int, hour: int, stored: int, limit: int | None, export: int, island: bool
) -> None:
    """After invented energy: served and unserved load is the load, and no supply leaves its feasible range."""
    feed = None if island else Feed(name="grid", limit_mw=limit, export_limit_mw=export)
    supplies = Supplies(feed=feed, plants=(FARM, GENSET, SUN), batteries=(CELL,))
    start, end = hour * HOUR, (hour + 1) * HOUR
    flow, unserved = dispatch(supplies, load_mj, start, end, {"cell": stored})
    assert flow.load_mj + unserved == load_mj
    assert unserved >= 0
    room, content = -CELL.feasible(start, end, stored).min_mw * 3_600, CELL.feasible(start, end, stored).max_mw * 3_600
    assert flow.charged_mj.get("cell", 0) <= room
    assert flow.discharged_mj.get("cell", 0) <= content
    sun = SUN.feasible(start, end)
    assert sun is not None
    assert flow.produced_mj["sun"] <= sun.max_mw * 3_600
    assert flow.produced_mj.get("diesel", 0) <= GENSET.capacity_mw * 3_600
    assert flow.export_mj <= (0 if island else export * 3_600)
    assert flow.import_mj <= (0 if island else 10**18 if limit is None else limit * 3_600)
    if unserved:  # then everything gives what it can
        assert flow.import_mj == (0 if island or limit is None else limit * 3_600)
        assert flow.produced_mj["diesel"] == GENSET.capacity_mw * 3_600
        assert flow.discharged_mj["cell"] == content


def test_a_distant_farm_serves_no_island() -> None:
    """After double counting: what is made elsewhere is noted for matching and is not energy at this busbar."""
    flow, unserved = dispatch(Supplies(feed=None, plants=(FARM,)), 5, 0, HOUR, {})
    assert (flow.remote_mj, flow.produced_mj, unserved) == ({"farm": 9_000 * 3_600}, {}, 5)


def test_an_unknown_sun_makes_nothing() -> None:
    """After gaps: hours without a known availability are served by what is known."""
    flow, unserved = dispatch(Supplies(feed=Feed(name="grid"), plants=(SUN,)), 5, 2 * HOUR, 3 * HOUR, {})
    assert (flow.import_mj, flow.produced_mj, unserved) == (5, {}, 0)
