"""Contracts: lists of charges. Each charge knows two things: what one more kilowatt-hour would cost (ex ante), and what
an interval cost (ex post). A bill is the sum of what its intervals were charged and of its months' peaks, to the unit.

A price times an energy is rounded once per interval, so bills of energy add up over any cut of the time. A standing fee
accrues without remainder.
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


class Charge(Protocol):
    """One line of a contract."""

    @property
    def name(self) -> str: ...
    def marginal_nano(self, instant_ns: int, moves: str) -> int | None:
        """Nano-currency of one more kilowatt-hour of load, which moves that: more ``import``, less ``export`` or
        ``curtailed``, or more of a plant. None: not known."""

    def nano(self, flow: Flow) -> int | None:
        """What an interval is charged; None: not known."""


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

    def marginal_nano(self, instant_ns: int, moves: str) -> int | None:
        if self.power_mw is not None or self.of not in (moves, "load"):
            return 0
        price = at(self.rate, instant_ns)
        more = -1 if self.of in ("export", "curtailed") else 1
        return None if price is None else price * more * self.sign

    def nano(self, flow: Flow) -> int | None:
        length_ns = flow.end_ns - flow.start_ns
        mj = flow.of(self.of) if self.power_mw is None else energy_mj(self.power_mw, length_ns)
        if mj == 0:
            return 0  # nothing costs nothing, whatever the price
        price_ns = weighed(self.rate, flow.start_ns, flow.end_ns)
        return None if price_ns is None else rate_of(self.sign * mj, price_ns, MJ_PER_KWH * length_ns)


class Peak(NamedTuple):
    """How a demand charge stands: the month (its start), its highest window so far, the window that runs [ns, mJ]."""

    month_ns: int = 0
    highest_mj: int = 0
    window_ns: int = 0
    mj: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """A price per kilowatt of the highest mean import over a window in each month of the zone's calendar.

    Which window that is, is known when the month is over, so no interval bears it: ``follow`` says how it stands.
    """

    name: str
    nano_per_kw: int
    zone: tzinfo = UTC
    window_ns: int = SLOT_NS

    def marginal_nano(self, instant_ns: int, moves: str) -> int | None:
        return 0

    def nano(self, flow: Flow) -> int | None:
        return 0

    def month_nano(self, mj: int) -> int:
        """What a month costs whose highest window has this import."""
        return rate_of(mj * NS_PER_S, self.nano_per_kw, MJ_PER_KW_S * self.window_ns)

    def follow(self, peak: Peak, flow: Flow) -> list[Peak]:
        """How it stands after each window of the interval that comes next, which is cut by time; the last is now."""
        found, window_ns = [peak], self.window_ns
        begins = range(flow.start_ns // window_ns * window_ns, flow.end_ns, window_ns)
        spans = [min(flow.end_ns, begin + window_ns) - max(flow.start_ns, begin) for begin in begins]
        for begin, part in zip(begins, split(flow.import_mj, spans), strict=True):
            was, month = found[-1], next(months(begin, begin + 1, self.zone))[0]
            mj = part + (was.mj if begin == was.window_ns else 0)
            found.append(Peak(month, max(mj, was.highest_mj if month == was.month_ns else 0), begin, mj))
        return found[1:]


@dataclass(frozen=True, slots=True)
class Standing:
    """A sum per month of the zone's calendar whatever is used: a capacity charge, a meter's fee. It accrues with time:
    the parts of any cut of a month sum to it exactly."""

    name: str
    nano_per_month: int
    zone: tzinfo = UTC

    def marginal_nano(self, instant_ns: int, moves: str) -> int | None:
        return 0

    def nano(self, flow: Flow) -> int | None:
        nano, monthly = 0, self.nano_per_month
        for begin, finish in months(flow.start_ns, flow.end_ns, self.zone):
            before_ns, after_ns = max(flow.start_ns, begin) - begin, min(flow.end_ns, finish) - begin
            nano += monthly * after_ns // (finish - begin) - monthly * before_ns // (finish - begin)
        return nano


def capacity(name: str, nano_per_kw: int, contracted_mw: int, zone: tzinfo = UTC) -> Standing:
    """A monthly price per kilowatt (or kVA) of contracted capacity, in milliwatts."""
    return Standing(name, rate_of(contracted_mw, nano_per_kw, MJ_PER_KW_S), zone)


def difference(name: str, strike: Steps, index: Steps, of: str = "", power_mw: int | None = None) -> tuple[Energy, ...]:
    """A contract for difference on what a plant makes, or (``power_mw``) a baseload PPA settled against the market: the
    strike is paid and the market price received for the same energy, whatever the site takes."""
    return (Energy(f"{name}: strike", strike, of, 1, power_mw), Energy(f"{name}: index", index, of, -1, power_mw))


def total(parts: Sequence[int | None]) -> int | None:
    """The sum; None when a part is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


@dataclass(frozen=True, slots=True)
class Contract:
    """A name and its charges, each of another name."""

    name: str
    charges: tuple[Charge, ...]

    def marginal_nano_per_kwh(self, instant_ns: int, moves: str = "import") -> int | None:
        """What one more kilowatt-hour of load would cost at an instant; None: a price of it is not known."""
        return total([charge.marginal_nano(instant_ns, moves) for charge in self.charges])

    def bill(self, flow: Flow) -> int | None:
        """What an interval costs; None: a price of it is not known. Demand charges are not in it: see ``Demand``."""
        return total([charge.nano(flow) for charge in self.charges])


def direct_connection_permille(flows: Sequence[Flow], plants: Sequence[str]) -> Mapping[str, int | None]:
    """The ratios that rules for green direct connection ask for: ``self_used`` of what the plants made, ``of_load`` of
    what the site took, ``exported`` of what they made (NDRC and NEA notice 2025 No. 650). None: of nothing."""
    made = sum(flow.produced_mj.get(plant, 0) for flow in flows for plant in plants)
    sold = sum(min(flow.export_mj, sum(flow.produced_mj.get(plant, 0) for plant in plants)) for flow in flows)
    load = sum(flow.load_mj for flow in flows)
    shares = {"self_used": (made - sold, made), "of_load": (made - sold, load), "exported": (sold, made)}
    return {name: rate_of(part, 1_000, whole) if whole else None for name, (part, whole) in shares.items()}
