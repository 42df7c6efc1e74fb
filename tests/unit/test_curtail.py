"""The simple answer to a limit: step by step, never back before the end, at once where nothing may be drawn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Limit
from tokenworks.curtail import CAP, DEFER, SLEEP, STEP_NS, Order, answer

NOW = 1_000 * NS_PER_S


def limit(max_mw: int | None, start_s: int = 0, end_s: int = 60, event: str = "e", min_mw: int = 0) -> Limit:
    return Limit(
        site="s", event=event, start_ns=NOW + start_s * NS_PER_S, end_ns=NOW + end_s * NS_PER_S, max_mw=max_mw,
        min_mw=min_mw,
    )  # fmt: skip


def test_nothing_is_asked_for_without_a_limit_in_force() -> None:
    """No limit, one to come, one that is over, and one that asks for more load: no order."""
    for limits in ([], [limit(5, start_s=1)], [limit(5, start_s=-9, end_s=0)], [limit(None, min_mw=7)]):
        assert answer(limits, 10, None, NOW) is None


def test_the_lowest_limit_counts_and_the_order_ends_with_its_event() -> None:
    """Of two events at once the lower one; a ramp back belongs to the event."""
    ramp = [limit(5, end_s=60), limit(8, start_s=60, end_s=70)]
    order = answer([*ramp, limit(6, event="other")], 10, None, NOW)
    assert order == Order(
        event="e", max_mw=5, firm=True, end_ns=NOW + 70 * NS_PER_S, step=DEFER, since_ns=NOW
    )  # fmt: skip
    assert order.running_max is None


def test_steps_follow_each_other_only_while_the_power_is_too_high() -> None:
    """Above the limit a step comes after each pause; at the limit none does; the last step is the last."""
    limits, order, steps = [limit(5)], None, []
    for second in range(12):
        order = answer(limits, 6, order, NOW + second * NS_PER_S)
        assert order is not None
        steps.append(order.step)
    assert steps == [DEFER] * 3 + [CAP] * 3 + [SLEEP] * 6
    assert order is not None
    assert order.running_max == 1
    kept = answer(limits, 5, answer(limits, 5, None, NOW), NOW + 10 * STEP_NS)
    assert kept is not None
    assert kept.step == DEFER


def test_a_disconnection_takes_all_steps_at_once() -> None:
    """Nothing may be drawn: there is no time to try."""
    order = answer([limit(0)], 10, None, NOW)
    assert order is not None
    assert order.step == SLEEP


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(1, 4)), max_size=40))
def test_steps_are_never_taken_back_while_the_event_lasts(moves: list[tuple[int, int]]) -> None:
    """Whatever the power does, and however irregular the looks are."""
    order, now = None, NOW
    for power, seconds in moves:
        now += seconds * NS_PER_S
        after = answer([limit(5, end_s=10_000)], power, order, now)
        assert after is not None
        assert order is None or order.step <= after.step <= order.step + 1
        order = after
