from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.site import POWER, WORKS, columns, home, work

from tokenworks.core.units import NS_PER_S, split
from tokenworks.core.words import FIGURES, Work
from tokenworks.site import attribution
from tokenworks.site.attribution import BULK_NS_MAX, close_interval
from tokenworks.site.bulk import close_columns, divided
from tokenworks.site.words import Costs, Readings

END = 60 * NS_PER_S


@given(st.integers(-(10**15), 10**15), st.lists(st.integers(0, 10**17), min_size=1, max_size=30))
def test_arrays_divide_as_integers_do(total: int, weights: list[int]) -> None:
    """After 64 bits: whatever the size, the array's split is the split of Python's integers."""
    assert divided(total, np.array(weights, np.int64)).tolist() == split(total, weights)


def test_what_does_not_fit_is_divided_all_the_same() -> None:
    """After silent overflow: totals and weights beyond the fast arithmetic take the slow one."""
    for total, weights in ((1 << 60, [1, 2]), (7, [1 << 61, 1 << 62]), (5, [0, 0])):
        assert divided(total, np.array(weights, np.int64)).tolist() == split(total, weights)


@settings(max_examples=150)
@given(WORKS, st.integers(0, 3), st.none() | POWER, st.none() | POWER, st.none() | POWER, st.booleans())
def test_columns_give_the_same_integers(
    works: list[Work], variant: int, load: int | None, server: int | None, board: int | None, metered: bool
) -> None:
    """The bulk path against the readable one: every line and every total is the same integer, for any schedule."""
    site = home(variant)
    said = Readings(
        load=load,
        servers={"s1": server} if metered else {},
        boards={} if board is None else {"b": board},
        sink_mc=25_000,
    )
    services = {"brain": 10**9, "agents": 3 * 10**9}

    def pricing(start_ns: int, end_ns: int, mj: int) -> Costs:
        return Costs(mj * 7 // 3 - 10**6, mj * 5, mj * 2, {"wind": 1_000})

    receipts, table = columns(works)
    interval = close_interval(site, 0, END, works, frozenset(receipts), services, said, pricing)
    head, lines = close_columns(site, 0, END, table, len(receipts), services, said, pricing)
    for at, line in enumerate(interval.requests):
        assert line.receipt == receipts[at]
        for name in FIGURES:
            column = lines[name]
            found = None if column is None else int(column[at])
            expected = getattr(line, name)
            assert found == (0 if expected is None and name in ("device_nano", "embodied_ug") else expected), name
    for name in interval.__struct_fields__:
        if name != "requests":
            assert getattr(head, name) == getattr(interval, name), name


def test_more_than_an_hour_is_attributed_by_integers_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """After arithmetic that would not fit: a grid that slept for a day closes its interval all the same."""
    monkeypatch.setattr(attribution, "BULK_MIN", 1)
    interval = close_interval(home(), 0, 24 * BULK_NS_MAX, [work("r", 0, 86_400)], frozenset("r"), {}, Readings())
    assert interval.requests[0].slice_ns == 24 * BULK_NS_MAX


@given(WORKS, st.integers(0, 3), st.sets(st.integers(0, 6)))
def test_many_works_of_an_agent_are_attributed_in_bulk(works: list[Work], variant: int, ended: set[int]) -> None:
    """From ``BULK_MIN`` works on arrays are used, and nobody can tell: the same lines, the same unknowns."""
    site, done = home(variant), frozenset(f"r{number}" for number in ended)
    few = close_interval(site, 0, END, works, done, {"agents": 10**9}, Readings(load=10**7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attribution, "BULK_MIN", 1)
        assert close_interval(site, 0, END, works, done, {"agents": 10**9}, Readings(load=10**7)) == few
