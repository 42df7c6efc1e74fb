"""The facility around the racks: modules, what their conversion and cooling take, water, cost, and when it is there.

Overhead is a sum of watts, never a factor on anything: PUE is what comes out in the end (``pue_ppm``).
Model: fixed + a P + b P^2 (conversion) + cooling, as in Lei & Masanet, Energy 201 (2020), without its economiser modes.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from tokenworks.core.units import NS_PER_S, energy_mj, rate_of, split
from tokenworks.core.words import Word

PPM = 1_000_000
KELVIN_MC = 273_150
LATENT_MJ_PER_UL = 2_430
"""Heat that evaporates a microlitre of water at 30 C (steam tables: 2,430 kJ/kg)."""
WET_BAND_MC = 10_000
"""Above ``dry_below`` the evaporating part of the heat grows to all of it over 10 K."""
HOURS_PER_YEAR = 8_766
Kind = Literal["air", "liquid", "immersion", "sea"]


class Cooling(Word, frozen=True):
    """One kind of cooling; ``data/cooling.toml`` says what each figure means and who says so."""

    coolant_c: float
    approach_c: float
    fans: float
    carnot: float
    source: str
    dry_below_c: float | None = None
    cycles: float = 4.0

    def power_mw(self, heat_mw: int, sink_mc: int) -> int:
        """Fans and pumps, and the chiller, whose lift is what the sink is too warm: Q lift / (carnot T_cold)."""
        cold_mc = round(self.coolant_c * 1_000)
        lift_mc = max(0, sink_mc + round(self.approach_c * 1_000) - cold_mc)
        chiller = heat_mw * lift_mc * 1_000 // (round(self.carnot * 1_000) * (cold_mc + KELVIN_MC))
        return rate_of(heat_mw, round(self.fans * PPM), PPM) + chiller

    def water_ul(self, heat_mj: int, sink_mc: int) -> int:
        """Evaporated and drained (so that salts stay below ``cycles`` times the make-up water's)."""
        if self.dry_below_c is None:
            return 0
        wet_mc = min(WET_BAND_MC, max(0, sink_mc - round(self.dry_below_c * 1_000)))
        cycles = round(self.cycles * 1_000)
        return rate_of(heat_mj * wet_mc, cycles, LATENT_MJ_PER_UL * WET_BAND_MC * (cycles - 1_000))


@cache
def cooling_kinds() -> dict[str, Cooling]:
    """The shipped kinds."""
    return msgspec.toml.decode(
        files(__package__).joinpath("data", "cooling.toml").read_bytes(), type=dict[str, Cooling]
    )


class Window(Word, frozen=True):
    """When an orbiting or mobile site can be reached: from ``start_ns`` for a time, again after every period."""

    start_ns: int
    length_ns: int
    period_ns: int | None = None

    def near(self, now_ns: int) -> tuple[int, int]:
        """Start and end of the contact that is now or comes next (or was, when there is none to come)."""
        start = self.start_ns
        if self.period_ns is not None:
            start += max(0, (now_ns - start) // self.period_ns) * self.period_ns
            start += self.period_ns if start + self.length_ns <= now_ns else 0
        return start, start + self.length_ns


class Module(Word, frozen=True):
    """A prefabricated block, usually of 2 to 4 MW. Raises ValueError for one without IT or with more than its feed."""

    name: str
    capacity_mw: int
    it_mw: int
    cooling: Kind = "liquid"
    fixed_mw: int = 0
    """Taken whatever runs: controls, light, no-load losses."""
    loss_ppm: int = 20_000
    """Of IT power, lost in conversion at any load (a P)."""
    full_loss_ppm: int = 20_000
    """Of IT power, lost besides at full load; grows with its square (b P^2)."""
    capex_nano: int | None = None
    life_years: int = 15
    opex_nano_per_year: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.it_mw <= self.capacity_mw or self.life_years < 1:
            raise ValueError(f"module {self.name}: IT capacity is more than nothing and at most that of its feed")

    def variable_mw(self, it_mw: int, sink_mc: int) -> int:
        """Conversion and cooling at an IT power; all of it and the losses become heat."""
        losses = rate_of(it_mw, self.loss_ppm, PPM) + rate_of(it_mw * it_mw, self.full_loss_ppm, PPM * self.it_mw)
        return losses + cooling_kinds()[self.cooling].power_mw(it_mw + losses, sink_mc)


class Facility(Word, frozen=True):
    """The modules of a site, and where and when it is there. Raises ValueError for one without modules."""

    modules: tuple[Module, ...]
    design_sink_mc: int = 18_000
    """Wet bulb (or sea) where nothing is measured."""
    windows: tuple[Window, ...] = ()
    """Empty: always reachable."""

    def __post_init__(self) -> None:
        if not self.modules:
            raise ValueError("a facility has a module")

    @property
    def it_mw(self) -> int:
        """IT capacity."""
        return sum(module.it_mw for module in self.modules)

    def overhead_mj(self, it_mj: int, duration_ns: int, sink_mc: int | None) -> tuple[int, int]:
        """Fixed and variable overhead of an IT energy, spread over modules by their capacity."""
        sink = self.design_sink_mc if sink_mc is None else sink_mc
        fixed = energy_mj(sum(module.fixed_mw for module in self.modules), duration_ns)
        if duration_ns == 0:
            return fixed, 0
        shares = split(it_mj * NS_PER_S // duration_ns, [module.it_mw for module in self.modules])
        variable = sum(m.variable_mw(mw, sink) for m, mw in zip(self.modules, shares, strict=True))
        return fixed, energy_mj(variable, duration_ns)

    def water_ul(self, load_mj: int, sink_mc: int | None) -> int:
        """All energy of the site leaves it as heat, through its modules by their capacity."""
        sink = self.design_sink_mc if sink_mc is None else sink_mc
        shares = split(max(0, load_mj), [module.it_mw for module in self.modules])
        return sum(cooling_kinds()[m.cooling].water_ul(mj, sink) for m, mj in zip(self.modules, shares, strict=True))

    def cost_nano_per_hour(self, power_mw: int) -> int | None:
        """Capital (straight line) and operation of the facility for a slice of that most power; None: not known.

        By reserved power: who holds a slice holds its part of the building, used or not.
        """
        nano = 0
        for each in self.modules:
            if each.capex_nano is None or each.opex_nano_per_year is None:
                return None
            nano += rate_of(each.capex_nano, 1, each.life_years) + each.opex_nano_per_year
        return rate_of(nano, power_mw, self.it_mw * HOURS_PER_YEAR)

    def reachable(self, now_ns: int) -> tuple[int, int] | None:
        """The contact that is now or comes next, as (start, end); None: none will come. Always there: (0, ever)."""
        if not self.windows:
            return 0, 1 << 62
        return min((near for near in (w.near(now_ns) for w in self.windows) if near[1] > now_ns), default=None)


def pue_ppm(load_mj: int, it_mj: int) -> int | None:
    """Facility energy over IT energy, a result; None: no IT energy to compare with."""
    return rate_of(load_mj, PPM, it_mj) if it_mj > 0 else None
