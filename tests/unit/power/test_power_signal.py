from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenworks.power.signal import EVER_NS, Piece, Signal, mean, weighed

Steps = list[tuple[int, int, int]]


@st.composite
def steps(draw: st.DrawFn) -> Steps:
    """Steps of mixed length with gaps between them, values of either sign."""
    found, now = [], draw(st.integers(-50, 50))
    for _ in range(draw(st.integers(0, 12))):
        now += draw(st.sampled_from([0, 0, 0, 3, 15]))
        length = draw(st.sampled_from([1, 5, 15, 60]))
        found.append((now, now + length, draw(st.integers(-500, 500))))
        now += length
    return found


def signal(found: Steps) -> Signal:
    return Signal([b for b, _, _ in found], [e for _, e, _ in found], [v for _, _, v in found])


def naive(found: Steps, instant: int) -> int | None:
    return next((value for begin, end, value in found if begin <= instant < end), None)


@settings(deadline=None)
@given(steps(), st.integers(-80, 900), st.integers(1, 300))
def test_a_window_is_covered_once_and_every_moment_has_its_value(found: Steps, start: int, length: int) -> None:
    """After gaps and mixed lengths: pieces meet without overlap, and each moment says what a scan of the steps says."""
    pieces = signal(found).over(start, start + length)
    assert [pieces[0].start_ns, pieces[-1].end_ns] == [start, start + length]
    assert all(one.end_ns == other.start_ns for one, other in itertools.pairwise(pieces))
    for piece in pieces:
        for instant in range(piece.start_ns, piece.end_ns):
            assert piece.value == naive(found, instant)


@settings(deadline=None)
@given(steps(), st.integers(-80, 900), st.integers(1, 300))
def test_integral_and_mean_are_exact_or_unknown(found: Steps, start: int, length: int) -> None:
    """After silent zeros: the integral equals a sum over moments, and is None as soon as one of them is a gap."""
    moments = [naive(found, instant) for instant in range(start, start + length)]
    known = [value for value in moments if value is not None]
    total = weighed(signal(found), start, start + length)
    middle = mean(signal(found), start, start + length)
    if len(known) < length:
        assert total is None
        assert middle is None
    else:
        assert total == sum(known)
        assert middle is not None
        assert Fraction(-1, 2) < middle - Fraction(sum(known), length) <= Fraction(1, 2)


def test_a_constant_holds_for_ever() -> None:
    """After the plain supply: one price for all of recorded time."""
    assert Signal.constant(7).over(-5, 5) == [Piece(-5, 5, 7)]
    assert mean(Signal.constant(-3), 0, EVER_NS) == -3


@pytest.mark.parametrize(
    ("starts", "ends", "values"),
    [([0, 5], [6, 9], [1, 2]), ([0], [0], [1]), ([5, 0], [6, 1], [1, 2]), ([0], [1], [1, 2]), ([[0]], [[1]], [[1]])],
)
def test_steps_out_of_order_are_refused(starts: list[int], ends: list[int], values: list[int]) -> None:
    """After bad tables: overlaps, empty steps and disorder never become a signal."""
    with pytest.raises(ValueError, match="signal"):
        Signal(starts, ends, values)
