from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenworks.power.signal import EVER_NS, Forecast, Piece, Signal, at, mean, weighed

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


@settings(deadline=None)
@given(steps(), st.lists(st.integers(-80, 900), max_size=20))
def test_many_instants_are_what_each_is_alone(found: Steps, instants: list[int]) -> None:
    """After the fast path: an array of instants gives what one instant at a time gives."""
    values, known = signal(found).sample(instants)
    ours = [int(value) if there else None for value, there in zip(values, known, strict=True)]
    assert ours == [at(signal(found), instant) for instant in instants]


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


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), steps()), max_size=5), steps(), st.integers(0, 300))
def test_a_decision_sees_the_latest_forecast_issued_before_it(
    vintages: list[tuple[int, Steps]], truth: Steps, decided: int
) -> None:
    """After hindsight: no value issued later is seen, and no truth before its step has passed."""
    known = Forecast([(issued, signal(found)) for issued, found in vintages], signal(truth)).known_at(decided, -50, 400)
    passed = [step for step in truth if step[1] <= decided]
    ranked = [passed] + [found for issued, found in sorted(vintages, key=lambda v: v[0])[::-1] if issued <= decided]
    for instant in range(-50, 400, 7):
        best = next((v for v in (naive(found, instant) for found in ranked) if v is not None), None)
        assert at(known, instant) == best


def test_nothing_known_is_an_empty_signal() -> None:
    """After the first day: before any forecast there is nothing, not zero."""
    known = Forecast([(10, Signal.constant(5))]).known_at(9, 0, 100)
    assert at(known, 50) is None
    assert np.array_equal(known.sample([1, 2])[1], [False, False])
