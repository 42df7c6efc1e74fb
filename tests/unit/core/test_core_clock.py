from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.clock import ManualClock, WallClock, utc_text
from tokenworks.core.units import NS_PER_S


def test_the_wall_clock_ignores_a_stepped_system_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the monotonic clock moves it after the start, so an administrator's step back cannot reorder the books."""
    clock = WallClock()
    before = clock.now_ns()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    readings = [clock.now_ns() for _ in range(1_000)]
    assert [before, *readings] == sorted([before, *readings])
    assert before > 1_600_000_000 * NS_PER_S


@given(st.lists(st.floats(0, 1e6), max_size=20))
def test_a_manual_clock_moves_only_forward(steps: list[float]) -> None:
    """Each step adds its nanoseconds; nothing else moves it."""
    clock = ManualClock(5)
    for step in steps:
        before = clock.now_ns()
        clock.advance(step)
        assert clock.now_ns() == before + round(step * 1e9)


def test_a_manual_clock_refuses_to_go_back() -> None:
    """Time in the books never runs backwards."""
    clock = ManualClock(5)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1e-9)
    assert clock.now_ns() == 5


async def test_sleeping_moves_the_manual_clock_and_not_the_wall() -> None:
    """A test may sleep for a year."""
    clock = ManualClock(0)
    await clock.sleep(31_557_600)
    assert clock.now_ns() == 31_557_600 * NS_PER_S
    wall = WallClock()
    before = wall.now_ns()
    await wall.sleep(0)
    assert wall.now_ns() >= before


def test_utc_text() -> None:
    """Milliseconds are always there, cut and not rounded, and the zone is Z."""
    assert utc_text(0) == "1970-01-01T00:00:00.000Z"
    assert utc_text(1_700_000_000_123_999_999) == "2023-11-14T22:13:20.123Z"
    assert utc_text(1_700_000_000_000_000_000) == "2023-11-14T22:13:20.000Z"


@given(st.integers(0, 4_102_444_800_000))
def test_utc_text_is_exact_for_every_millisecond(ms: int) -> None:
    """No float error shows in the text of any millisecond of this century."""
    read = datetime.fromisoformat(utc_text(ms * 1_000_000).replace("Z", "+00:00"))
    assert read.replace(microsecond=0) == datetime.fromtimestamp(ms // 1_000, tz=UTC)
    assert read.microsecond == ms % 1_000 * 1_000
