from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenworks.core.units import NS_PER_S
from tokenworks.power.signal import Signal, at, weighed
from tokenworks.power.tariff import SLOT_NS, Indexed, Tier, TimeOfUse, months

SHANGHAI, ROME, NEPAL = (ZoneInfo(name) for name in ("Asia/Shanghai", "Europe/Rome", "Asia/Kathmandu"))
HOUR = 3_600 * NS_PER_S
FLAT = 600_000_000
# The ratios that Zhejiang published for 2026; the hours here are made up.
ZHEJIANG = TimeOfUse(
    SHANGHAI,
    (
        Tier(FLAT // 5, days="holiday", spans=((600, 840),)),
        Tier(FLAT * 205 // 100, frozenset({1, 7, 8, 12}), "workday", ((570, 690), (900, 1020))),
        Tier(FLAT * 185 // 100, spans=((480, 690), (900, 1080))),
        Tier(FLAT * 2 // 5, spans=((0, 480), (690, 780))),
        Tier(FLAT),
    ),
    holidays=frozenset({date(2026, 10, 1)}),
)


def ns(text: str, zone: ZoneInfo = SHANGHAI) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()) * NS_PER_S


@pytest.mark.parametrize(
    ("when", "price"),
    [
        ("2026-07-01T10:00", FLAT * 205 // 100),  # a Wednesday in summer: high peak
        ("2026-07-04T10:00", FLAT * 185 // 100),  # a Saturday: peak
        ("2026-04-01T10:00", FLAT * 185 // 100),  # spring: peak
        ("2026-04-01T07:59", FLAT * 2 // 5),
        ("2026-04-01T13:00", FLAT),
        ("2026-10-01T10:00", FLAT // 5),  # a holiday: deep valley
        ("2026-10-01T09:45", FLAT * 185 // 100),
    ],
)
def test_a_provincial_tariff_by_season_day_and_hour(when: str, price: int) -> None:
    """After time-of-use: five tiers of a Chinese province, picked by the wall clock there and not by UTC."""
    assert at(ZHEJIANG, ns(when)) == price


@settings(deadline=None)
@given(st.integers(0, 400 * 24 * 60), st.integers(1, 3 * 24 * 60), st.sampled_from([SHANGHAI, ROME, NEPAL]))
def test_pieces_are_what_a_walk_minute_by_minute_finds(start_min: int, length_min: int, zone: ZoneInfo) -> None:
    """After merged slots and odd zones: each minute of a window costs what its own wall clock says, summer time too."""
    tariff = TimeOfUse(zone, ZHEJIANG.tiers)
    begin = ns("2025-01-01T00:00") + start_min * 60 * NS_PER_S
    pieces = tariff.over(begin, begin + length_min * 60 * NS_PER_S)
    total = 0
    for minute in range(length_min):
        clock = datetime.fromtimestamp(begin // NS_PER_S + minute * 60, tz=UTC).astimezone(zone)
        day = "weekend" if clock.weekday() >= 5 else "workday"
        tier = next(t for t in tariff.tiers if t.holds(clock.month, day, clock.hour * 60 + clock.minute))  # type: ignore[arg-type]
        total += tier.nano_per_kwh
    assert weighed(tariff, begin, begin + length_min * 60 * NS_PER_S) == total * 60 * NS_PER_S
    assert all(one.value != other.value for one, other in itertools.pairwise(pieces))


@pytest.mark.parametrize(("day", "hours"), [("2025-03-30", 23), ("2025-10-26", 25)])
def test_days_of_23_and_25_hours_cost_their_hours(day: str, hours: int) -> None:
    """After daylight saving: the night tier of six local hours has five in spring and seven in autumn."""
    tariff = TimeOfUse(ROME, (Tier(1, spans=((0, 360),)), Tier(0)))
    begin = ns(day, ROME)
    assert weighed(tariff, begin, begin + hours * HOUR) == (hours - 18) * HOUR


def test_a_moment_without_a_tier_is_unknown() -> None:
    """After silent zeros: a tariff that forgot the night does not make it free."""
    tariff = TimeOfUse(SHANGHAI, (Tier(5, spans=((480, 1200),)),))
    assert at(tariff, ns("2026-01-01T07:45")) is None
    assert weighed(tariff, ns("2026-01-01T07:45"), ns("2026-01-01T08:15")) is None


@pytest.mark.parametrize("span", [(1, 60), (0, 1441), (1320, 360), (60, 60)])
def test_hours_off_the_quarter_or_backwards_are_refused(span: tuple[int, int]) -> None:
    """After typing: spans are whole quarters, in order, within the day."""
    with pytest.raises(ValueError, match=r"quarter|midnight"):
        Tier(1, spans=(span,))


def test_spot_plus_adder_keeps_gaps_and_signs() -> None:
    """After negative prices: factor and adder apply below zero too, and a gap in the market stays a gap."""
    market = Signal([0, 20], [10, 30], [-500_000_000, 101])
    retail = Indexed(market, adder_nano=30_000_000, factor_permille=1_050)
    assert [piece.value for piece in retail.over(0, 30)] == [-495_000_000, None, 30_000_106]


def test_months_are_those_of_the_zone() -> None:
    """After UTC months: a month begins at local midnight, and the one of spring has an hour less."""
    spans = list(months(ns("2025-03-01T00:00", ROME), ns("2025-04-01T01:00", ROME), ROME))
    assert spans[0] == (ns("2025-03-01T00:00", ROME), ns("2025-04-01T00:00", ROME))
    assert spans[0][1] - spans[0][0] == timedelta(days=31, hours=-1).total_seconds() * NS_PER_S
    assert spans[1][0] == spans[0][1]
    assert spans[0][0] % SLOT_NS == 0
