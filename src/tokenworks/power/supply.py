"""Supplies: what a kilowatt-hour costs, what it emits and where it comes from.

One price and one carbon intensity that never change, and the listed figures of what nobody said. Contracts, hours and
storage are in the modules beside this one.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import msgspec

from tokenworks.core.units import MJ_PER_KWH, parse, parse_price, rate_of
from tokenworks.core.words import Provenance, Sourced, Word


class Supply(Word, frozen=True):
    """One source of energy of a site."""

    name: str
    price: Sourced | None
    """Nano-currency per kWh; None: unknown."""
    carbon: Sourced | None
    """Micrograms of CO2 equivalent per kWh, location-based average; None: unknown."""
    mix_permille: dict[str, int] = {}
    """Shares of the sources of the energy ("coal", "hydro", ...), as far as known."""

    def bill_nano(self, energy_mj: int) -> int | None:
        """Nano-currency for an energy in millijoules, rounded half up; None when the price is unknown."""
        return None if self.price is None else rate_of(energy_mj, self.price.value, MJ_PER_KWH)

    def carbon_ug(self, energy_mj: int) -> int | None:
        """Micrograms of CO2 equivalent of an energy in millijoules; None when the intensity is unknown."""
        return None if self.carbon is None else rate_of(energy_mj, self.carbon.value, MJ_PER_KWH)


class _Listed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A statistic; ``figure`` is written with its unit."""

    figure: str
    currency: str | None = None
    year: int
    provenance: Provenance
    error_permille: int
    source: str

    def sourced(self, value: int) -> Sourced:
        return Sourced(value=value, provenance=self.provenance, source=self.source, error_permille=self.error_permille)


@cache
def _assumed() -> dict[str, _Listed]:
    text = files(__package__).joinpath("data", "assumed.toml").read_bytes()
    return msgspec.toml.decode(text, type=dict[str, _Listed])


def listed_carbon(what: str) -> Sourced | None:
    """The listed life-cycle intensity of a kind of plant ("solar", "wind", "genset"); None: not listed."""
    listed = _assumed().get(what)
    return None if listed is None else listed.sourced(parse(listed.figure, "carbon"))


def assumed_supply(currency: str) -> Supply:
    """The supply of a machine about which nobody said anything; figures and sources are in ``data/assumed.toml``.

    The price is None unless ``currency`` is the listed one, because nothing is converted silently.
    """
    price = _assumed()["price"]
    known = price.currency == currency
    return Supply(
        name="assumed",
        price=price.sourced(parse_price(price.figure, "kWh", currency)) if known else None,
        carbon=listed_carbon("world"),
    )
