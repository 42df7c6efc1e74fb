"""Rates: what a kilowatt-hour costs at every moment, in nano-currency. Each is a ``Steps``, so they can be summed.

A fixed rate is ``Signal.constant``; a market's is its signal; here are the two that are made from others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Literal

from tokenworks.core.units import NS_PER_S
from tokenworks.power.signal import Piece, Steps

SLOT_NS = 900 * NS_PER_S
"""Hours of tariffs begin on a quarter, and every zone is whole quarters from UTC: no tariff changes within a slot."""
Days = Literal["all", "workday", "weekend", "holiday"]


def local(instant_ns: int, zone: tzinfo) -> datetime:
    """The wall clock of a zone at an instant (whole seconds)."""
    return datetime.fromtimestamp(instant_ns // NS_PER_S, tz=UTC).astimezone(zone)


def months(start_ns: int, end_ns: int, zone: tzinfo) -> Iterator[tuple[int, int]]:
    """Start and end of every month of a zone's calendar that [start, end) touches."""
    month = local(start_ns, zone).replace(day=1, hour=0, minute=0, second=0, fold=0)
    begin = to_ns(month)
    while begin < end_ns:
        month = (month + timedelta(days=32)).replace(day=1)
        finish = to_ns(month)
        yield begin, finish
        begin = finish


def to_ns(when: datetime) -> int:
    """Nanoseconds UTC of an aware time; raises ValueError for one without a zone."""
    if when.tzinfo is None:
        raise ValueError("a time needs its zone")
    return round(when.timestamp() * 1e6) * 1_000


@dataclass(frozen=True, slots=True)
class Tier:
    """One price of a time-of-use tariff: in these months (none: all), on these days, between these local minutes.

    ``spans`` are (first, last) minutes of the day, the last not included; none: the whole day.
    """

    nano_per_kwh: int
    months: frozenset[int] = frozenset()
    days: Days = "all"
    spans: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if any(first % 15 or last % 15 or not 0 <= first < last <= 1440 for first, last in self.spans):
            raise ValueError("hours begin and end on a quarter; write those over midnight as two spans")

    def holds(self, month: int, day: Days, minute: int) -> bool:
        """Whether this is the price then."""
        hours = not self.spans or any(first <= minute < last for first, last in self.spans)
        return hours and self.days in ("all", day) and (not self.months or month in self.months)


@dataclass(frozen=True, slots=True)
class TimeOfUse:
    """Tiers by season, day type and hour of a local clock; the first that holds is the price, none: not known.

    A listed holiday is a ``holiday``, any other Saturday or Sunday a ``weekend``. Hours that the clock skips or repeats
    in spring and autumn cost what their wall clock says.
    """

    zone: tzinfo
    tiers: tuple[Tier, ...]
    holidays: frozenset[date] = frozenset()

    def _price(self, instant_ns: int) -> int | None:
        now = local(instant_ns, self.zone)
        day: Days = "weekend" if now.weekday() >= 5 else "workday"
        if now.date() in self.holidays:
            day = "holiday"
        minute = now.hour * 60 + now.minute
        return next((tier.nano_per_kwh for tier in self.tiers if tier.holds(now.month, day, minute)), None)

    def over(self, start_ns: int, end_ns: int) -> list[Piece]:
        """As ``Steps`` says."""
        pieces: list[Piece] = []
        begin = start_ns
        while begin < end_ns:
            finish = min(end_ns, (begin // SLOT_NS + 1) * SLOT_NS)
            price = self._price(begin)
            if pieces and pieces[-1].value == price:
                begin = pieces.pop().start_ns
            pieces.append(Piece(begin, finish, price))
            begin = finish
        return pieces


@dataclass(frozen=True, slots=True)
class Indexed:
    """A market's price times a factor plus an adder (fees, margin, tax), rounded half up; a gap stays one."""

    index: Steps
    adder_nano: int = 0
    factor_permille: int = 1_000

    def over(self, start_ns: int, end_ns: int) -> list[Piece]:
        """As ``Steps`` says."""
        pieces = self.index.over(start_ns, end_ns)
        price = [v if v is None else (v * self.factor_permille + 500) // 1_000 + self.adder_nano for *_, v in pieces]
        return [piece._replace(value=value) for piece, value in zip(pieces, price, strict=True)]
