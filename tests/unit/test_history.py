"""Baselines from what a site drew before, in virtual time: similar days, event days, holidays, restarts, old days."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from tokenworks.core.units import NS_PER_S
from tokenworks.history import SLOTS_MAX, History

MINUTE_NS, HOUR_NS, DAY_NS = 60 * NS_PER_S, 3_600 * NS_PER_S, 86_400 * NS_PER_S
MONDAY = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp()) * NS_PER_S


def weekday_mw(day: int, hour: int) -> int:
    """A load with a shape: more by day, more each day, little at weekends."""
    return (1_000 if day % 7 >= 5 else 10_000 + 1_000 * day) * (3 if 8 <= hour < 20 else 1)


def run(history: History, days: range, *, event: int | None = None, hours: range = range(24)) -> None:
    """Live through days from the Monday on, looked at each minute; ``event``: the day with one at noon."""
    for day in days:
        for hour in hours:
            start = MONDAY + day * DAY_NS + hour * HOUR_NS
            for minute in range(60):
                now = start + minute * MINUTE_NS
                history.see(now, now + MINUTE_NS, weekday_mw(day, hour), event=day == event and hour == 12)


def at(day: int, hour: int) -> tuple[int, int]:
    start = MONDAY + day * DAY_NS + hour * HOUR_NS
    return start, start + 2 * HOUR_NS


def test_the_baseline_is_the_mean_of_the_same_time_on_ten_similar_days(tmp_path: Path) -> None:
    """Not of the seconds before: workdays for a workday, each at that time of day; fewer than ten are not enough."""
    history = History(tmp_path / "load.json")
    run(history, range(14))
    assert history.baseline_mw(*at(14, 12)) == sum(weekday_mw(day, 12) for day in range(14) if day % 7 < 5) // 10
    assert history.baseline_mw(*at(14, 2)) == sum(weekday_mw(day, 2) for day in range(14) if day % 7 < 5) // 10
    assert history.baseline_mw(*at(19, 12)) is None, "four days of a weekend"
    early = History(tmp_path / "early.json")
    run(early, range(11))
    assert early.baseline_mw(*at(11, 12)) is None, "nine workdays"


def test_days_with_an_event_and_holidays_do_not_count(tmp_path: Path) -> None:
    """The eleventh day back stands in for a day whose load was not its own."""
    history = History(tmp_path / "load.json")
    run(history, range(15), event=9)
    days = [day for day in range(15) if day % 7 < 5 and day != 9]
    assert history.baseline_mw(*at(15, 16)) == sum(weekday_mw(day, 16) for day in days) // 10
    history.holidays = (date(2026, 1, 6),)
    assert history.baseline_mw(*at(15, 16)) is None


def test_what_was_drawn_outlives_a_restart_and_is_bounded(tmp_path: Path) -> None:
    """From the file of the process before; a quarter that was seen in part is a gap, old quarters go."""
    path = tmp_path / "power" / "load.json"
    run(History(path), range(14))
    again = History(path)
    run(again, range(14, 15), hours=range(23, 24))
    assert again.baseline_mw(*at(15, 10)) is not None
    start = MONDAY + 15 * DAY_NS
    for minute in (*range(10), 60):
        again.see(start + minute * MINUTE_NS, start + (minute + 1) * MINUTE_NS, 1, event=False)
    assert max(History(path)._mw) == start // (900 * NS_PER_S) - 1, "a quarter that was seen in part is a gap"
    run(again, range(15, 80), hours=range(1))
    assert len(again._mw) < SLOTS_MAX
    assert min(again._mw) > (MONDAY + 15 * DAY_NS) // (900 * NS_PER_S)
    path.write_text("{")
    assert History(path).baseline_mw(*at(14, 12)) is None


def test_the_day_is_the_sites_own(tmp_path: Path) -> None:
    """An event at five in the afternoon UTC on Sunday is Monday's in Shanghai."""
    history = History(tmp_path / "load.json")
    run(history, range(27))
    assert history.baseline_mw(*at(13, 17)) is None
    history.zone = ZoneInfo("Asia/Shanghai")
    found = history.baseline_mw(*at(27, 17))  # Sunday here, Monday morning there
    days = [day for day in range(26, 0, -1) if (day + 1) % 7 < 5][:10]
    assert found == sum(weekday_mw(day, 17) for day in days) // 10
