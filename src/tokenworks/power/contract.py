"""Contracts: lists of charges. Each charge knows two things: what one more kilowatt-hour would cost (ex ante), and what
every interval of a metered period cost (ex post). A bill is the sum of what its intervals were charged, to the unit.

A price times an energy is rounded once per interval, so bills of energy add up over any cut of the time. What a period
costs as a whole (a peak, a standing fee) is rounded once and divided over its intervals without remainder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Literal, NamedTuple, Protocol

from tokenworks.core.units import MJ_PER_KWH, NS_PER_S, energy_mj, rate_of, split
from tokenworks.core.words import Word
from tokenworks.power.signal import Steps, at, weighed
from tokenworks.power.tariff import SLOT_NS, months

MJ_PER_KW_S = 1_000_000


class Flow(Word, frozen=True):
    """The energy of one interval at the busbar of a site, millijoules, none negative (raises ValueError).

    ``import + produced + discharged == load + charged + export``: what is not given here is ``load_mj``. Batteries are
    metered at their terminals. ``remote_mj`` is made for this site elsewhere, by plants under contract, and arrives as
    a part of ``import_mj``, if at all; ``curtailed_mj`` was not produced, by order of the grid.
    """

    start_ns: int
    end_ns: int
    import_mj: int = 0
    export_mj: int = 0
    produced_mj: dict[str, int] = {}
    charged_mj: dict[str, int] = {}
    discharged_mj: dict[str, int] = {}
    remote_mj: dict[str, int] = {}
    curtailed_mj: int = 0

    def __post_init__(self) -> None:
        named = (self.produced_mj, self.charged_mj, self.discharged_mj, self.remote_mj)
        energies = [self.import_mj, self.export_mj, self.curtailed_mj, *(mj for by in named for mj in by.values())]
        if min(energies) < 0 or self.load_mj < 0 or self.start_ns >= self.end_ns:
            raise ValueError("an interval has a length, and its energies and its load are not negative")

    @property
    def load_mj(self) -> int:
        """What the site itself took."""
        into = self.import_mj + sum(self.produced_mj.values()) + sum(self.discharged_mj.values())
        return into - self.export_mj - sum(self.charged_mj.values())

    def of(self, quantity: str) -> int:
        """``import``, ``export``, ``curtailed``, ``load``, or what a plant of that name made."""
        if quantity in ("import", "export", "curtailed", "load"):
            return int(getattr(self, f"{quantity}_mj"))
        return self.produced_mj.get(quantity, 0) + self.remote_mj.get(quantity, 0)


class Margin(NamedTuple):
    """What one more kilowatt-hour of load would move (more ``import``, less ``export`` or ``curtailed``, or more of a
    plant), and how near the import is to the month's highest (None: demand charges are not looked at)."""

    moves: str = "import"
    import_mw: int = 0
    peak_mw: int | None = None


class Charge(Protocol):
    """One line of a contract."""

    @property
    def name(self) -> str: ...
    def marginal_nano(self, instant_ns: int, margin: Margin) -> int | None:
        """Nano-currency of one more kilowatt-hour of load; None: not known."""

    def parts_nano(self, flows: Sequence[Flow], closing: bool) -> list[int | None]:
        """What each interval is charged; ``closing``: the months of these intervals are over and complete."""


@dataclass(frozen=True, slots=True)
class Energy:
    """A rate on an energy of the meter (``of``: as ``Flow.of``), or on a constant ``power_mw`` if that is given.

    ``sign`` -1: the site is paid. Fixed, time-of-use, spot, export, as-produced and curtailment are all this.
    """

    name: str
    rate: Steps
    of: str = "import"
    sign: Literal[1, -1] = 1
    power_mw: int | None = None

    def marginal_nano(self, instant_ns: int, margin: Margin) -> int | None:
        if self.power_mw is not None or self.of not in (margin.moves, "load"):
            return 0
        price = at(self.rate, instant_ns)
        more = -1 if self.of in ("export", "curtailed") else 1
        return None if price is None else price * more * self.sign

    def parts_nano(self, flows: Sequence[Flow], closing: bool) -> list[int | None]:
        return [self._nano(flow) for flow in flows]

    def _nano(self, flow: Flow) -> int | None:
        length_ns = flow.end_ns - flow.start_ns
        mj = flow.of(self.of) if self.power_mw is None else energy_mj(self.power_mw, length_ns)
        if mj == 0:
            return 0  # nothing costs nothing, whatever the price
        price_ns = weighed(self.rate, flow.start_ns, flow.end_ns)
        return None if price_ns is None else rate_of(self.sign * mj, price_ns, MJ_PER_KWH * length_ns)


@dataclass(frozen=True, slots=True)
class Demand:
    """A price per kilowatt of the highest mean import over a window in each month of the zone's calendar.

    When the month closes, the intervals of that window (of the first, if several are as high) bear it by their energy.
    """

    name: str
    nano_per_kw: int
    zone: tzinfo = UTC
    window_ns: int = SLOT_NS

    def marginal_nano(self, instant_ns: int, margin: Margin) -> int | None:
        if margin.peak_mw is None or margin.moves != "import" or margin.import_mw < margin.peak_mw:
            return 0
        return rate_of(self.nano_per_kw, 3_600 * NS_PER_S, self.window_ns)

    def parts_nano(self, flows: Sequence[Flow], closing: bool) -> list[int | None]:
        parts: list[int | None] = [0] * len(flows)
        peaks: dict[int, tuple[int, dict[int, int]]] = {}
        for window, shares in sorted(self._windows(flows).items()) if closing else ():
            month = next(months(window, window + 1, self.zone))[0]
            mj = sum(shares.values())
            if mj > peaks.get(month, (0,))[0]:
                peaks[month] = (mj, shares)
        for mj, shares in peaks.values():
            nano = rate_of(mj * NS_PER_S, self.nano_per_kw, MJ_PER_KW_S * self.window_ns)
            for index, part in zip(shares, split(nano, list(shares.values())), strict=True):
                parts[index] = (parts[index] or 0) + part
        return parts

    def _windows(self, flows: Sequence[Flow]) -> dict[int, dict[int, int]]:
        """Import by window and interval; one that spans windows is cut by time."""
        windows: dict[int, dict[int, int]] = {}
        for index, flow in sorted(enumerate(flows), key=lambda each: each[1].start_ns):
            first, last = flow.start_ns // self.window_ns, (flow.end_ns - 1) // self.window_ns
            starts = [number * self.window_ns for number in range(first, last + 1)]
            spans = [min(flow.end_ns, begin + self.window_ns) - max(flow.start_ns, begin) for begin in starts]
            for begin, mj in zip(starts, split(flow.import_mj, spans), strict=True):
                windows.setdefault(begin, {})[index] = mj
        return windows


@dataclass(frozen=True, slots=True)
class Standing:
    """A sum per month of the zone's calendar whatever is used: a capacity charge, a meter's fee. It accrues with time:
    the parts of any cut of a month sum to it exactly."""

    name: str
    nano_per_month: int
    zone: tzinfo = UTC

    def marginal_nano(self, instant_ns: int, margin: Margin) -> int | None:
        return 0

    def parts_nano(self, flows: Sequence[Flow], closing: bool) -> list[int | None]:
        return [self._accrued(flow.start_ns, flow.end_ns) for flow in flows]

    def _accrued(self, start_ns: int, end_ns: int) -> int:
        nano = 0
        for begin, finish in months(start_ns, end_ns, self.zone):
            before_ns, after_ns = max(start_ns, begin) - begin, min(end_ns, finish) - begin
            nano += self.nano_per_month * after_ns // (finish - begin) - self.nano_per_month * before_ns // (
                finish - begin
            )
        return nano


def capacity(name: str, nano_per_kw: int, contracted_mw: int, zone: tzinfo = UTC) -> Standing:
    """A monthly price per kilowatt (or kVA) of contracted capacity, in milliwatts."""
    return Standing(name, rate_of(contracted_mw, nano_per_kw, MJ_PER_KW_S), zone)


def difference(name: str, strike: Steps, index: Steps, of: str = "", power_mw: int | None = None) -> tuple[Energy, ...]:
    """A contract for difference on what a plant makes, or (``power_mw``) a baseload PPA settled against the market: the
    strike is paid and the market price received for the same energy, whatever the site takes."""
    return (Energy(f"{name}: strike", strike, of, 1, power_mw), Energy(f"{name}: index", index, of, -1, power_mw))


class Bill(NamedTuple):
    """What a metered period cost: ``nano`` is the sum of ``parts``, one per interval, and of the ``lines``, in each of
    which a charge has its own part per interval. None: a price is not known."""

    lines: dict[str, list[int | None]]
    parts: list[int | None]
    nano: int | None


def total(parts: Sequence[int | None]) -> int | None:
    """The sum; None when a part is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


@dataclass(frozen=True, slots=True)
class Contract:
    """A name and its charges, each of another name."""

    name: str
    charges: tuple[Charge, ...]

    def marginal_nano_per_kwh(self, instant_ns: int, margin: Margin = Margin()) -> int | None:  # noqa: B008 - frozen
        """What one more kilowatt-hour of load would cost at an instant; None: a price of it is not known."""
        return total([charge.marginal_nano(instant_ns, margin) for charge in self.charges])

    def bill(self, flows: Sequence[Flow], *, closing: bool = True) -> Bill:
        """The bill of these intervals (in any order, none twice). While a month runs, ``closing=False`` leaves out what
        only its end decides; the bill of the whole month less what was charged so far is then the true-up."""
        lines = {charge.name: charge.parts_nano(flows, closing) for charge in self.charges}
        parts = [total([line[index] for line in lines.values()]) for index in range(len(flows))]
        return Bill(lines, parts, total(parts))


def direct_connection_permille(flows: Sequence[Flow], plants: Sequence[str]) -> Mapping[str, int | None]:
    """The ratios that rules for green direct connection ask for: ``self_used`` of what the plants made, ``of_load`` of
    what the site took, ``exported`` of what they made (NDRC and NEA notice 2025 No. 650). None: of nothing."""
    made = sum(flow.produced_mj.get(plant, 0) for flow in flows for plant in plants)
    sold = sum(min(flow.export_mj, sum(flow.produced_mj.get(plant, 0) for plant in plants)) for flow in flows)
    load = sum(flow.load_mj for flow in flows)
    shares = {"self_used": (made - sold, made), "of_load": (made - sold, load), "exported": (sold, made)}
    return {name: rate_of(part, 1_000, whole) if whole else None for name, (part, whole) in shares.items()}
