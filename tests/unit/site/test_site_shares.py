from __future__ import annotations

import random
import time
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.words import Work
from tokenworks.site.attribution import shares


def work(receipt: str, start_ns: int, end_ns: int, slice_: str = "a") -> Work:
    return Work(
        receipt=receipt,
        replica="r",
        site="s",
        slice=slice_,
        start_ns=start_ns,
        first_ns=None,
        end_ns=end_ns,
        input_tokens=1,
        output_tokens=1,
    )


WORKS = st.lists(
    st.builds(
        lambda receipt, start, length, slice_: work(f"r{receipt}", start, start + length, slice_),
        st.integers(0, 5),
        st.integers(-20, 120),
        st.integers(0, 60),
        st.sampled_from("ab"),
    ),
    max_size=12,
)


def naive(works: list[Work], start: int, end: int) -> dict[str, tuple[int, dict[str, Fraction]]]:
    """The oracle: walk nanosecond by nanosecond and hand each to whoever runs in it, in exact fractions."""
    found: dict[str, tuple[int, dict[str, Fraction]]] = {}
    for instant in range(start, end):
        for slice_ in {w.slice for w in works}:
            running = [w for w in works if w.slice == slice_ and w.start_ns <= instant < w.end_ns]
            if not running:
                continue
            busy, parts = found.get(slice_, (0, {}))
            for each in running:
                parts[each.receipt] = parts.get(each.receipt, Fraction(0)) + Fraction(1, len(running))
            found[slice_] = (busy + 1, parts)
    return found


@given(WORKS)
def test_shares_agree_with_a_walk_through_every_nanosecond(works: list[Work]) -> None:
    """After a wrong sweep: an independent walk finds the same busy time, and each share within 1 ns of the exact."""
    found, exact = shares(works, 0, 100), naive(works, 0, 100)
    assert found.keys() == exact.keys()
    for slice_, (busy, parts) in found.items():
        assert busy == exact[slice_][0] == sum(parts.values())
        assert parts.keys() == exact[slice_][1].keys()
        assert all(abs(parts[receipt] - exact[slice_][1][receipt]) < 1 for receipt in parts)


@given(WORKS, st.randoms(use_true_random=False))
def test_order_of_works_changes_nothing(works: list[Work], order: random.Random) -> None:
    """After results that depend on who reported first: any order gives the same shares in the same order."""
    shuffled = list(works)
    order.shuffle(shuffled)
    assert [(s, b, list(p.items())) for s, (b, p) in shares(works, 0, 100).items()] == [
        (s, b, list(p.items())) for s, (b, p) in shares(shuffled, 0, 100).items()
    ]


@given(WORKS, st.integers(0, 100))
def test_cutting_the_interval_conserves_time(works: list[Work], at: int) -> None:
    """After time lost or counted twice at a cut: busy time adds up exactly, each receipt's within rounding."""
    whole, left, right = shares(works, 0, 100), shares(works, 0, at), shares(works, at, 100)
    assert whole.keys() == left.keys() | right.keys()
    for slice_, (busy, parts) in whole.items():
        (busy_left, parts_left), (busy_right, parts_right) = (half.get(slice_, (0, {})) for half in (left, right))
        assert busy == busy_left + busy_right
        assert parts.keys() == parts_left.keys() | parts_right.keys()
        for receipt, ns in parts.items():
            assert abs(ns - parts_left.get(receipt, 0) - parts_right.get(receipt, 0)) <= 2


@given(WORKS, st.integers(0, 80), st.integers(1, 40))
def test_equal_works_get_equal_shares(works: list[Work], start: int, length: int) -> None:
    """Symmetry: two works of the same time on the same slice differ by at most 1 ns, whatever else runs."""
    twins = [work("x", start, start + length), work("y", start, start + length)]
    parts = shares([*works, *twins], 0, 100)["a"][1]
    assert abs(parts["x"] - parts["y"]) <= 1


def test_more_than_32_at_once_still_close_exactly() -> None:
    """After the limit of the exact clock: 97 concurrent works of odd length share everything, evenly."""
    parts_by_receipt = shares([work(f"r{n:03}", 0, 1_000_003) for n in range(97)], 0, 10**9)["a"][1]
    assert sum(parts_by_receipt.values()) == 1_000_003
    assert max(parts_by_receipt.values()) - min(parts_by_receipt.values()) <= 1


def test_hundred_thousand_works_take_seconds_at_most() -> None:
    """After quadratic time: as many works as an agent may know, a thousand at once, in one call."""
    works = [work(f"r{n}", n * 1_000, n * 1_000 + 1_000_000) for n in range(100_000)]
    begun = time.monotonic()
    busy, parts = shares(works, 0, 10**12)["a"]
    assert time.monotonic() - begun < 10
    assert sum(parts.values()) == busy == 99_999 * 1_000 + 1_000_000
