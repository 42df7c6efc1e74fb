"""Supplies: what a kilowatt-hour costs, what it emits and where it comes from.

Step 1: one price and one carbon intensity per supply. Contracts, hours and storage stand on this later.
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
    year: int
    provenance: Provenance
    error_permille: int
    source: str


class _Carbon(_Listed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    intensity: str


class _Price(_Listed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    price: str
    currency: str


class _Assumed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    carbon: _Carbon
    price: _Price


@cache
def _assumed() -> _Assumed:
    return msgspec.toml.decode(files(__package__).joinpath("data", "assumed.toml").read_bytes(), type=_Assumed)


def _sourced(value: int, listed: _Listed) -> Sourced:
    return Sourced(
        value=value, provenance=listed.provenance, source=listed.source, error_permille=listed.error_permille
    )


def assumed_supply(currency: str) -> Supply:
    """The supply of a machine about which nobody said anything; figures and sources are in ``data/assumed.toml``.

    The price is None unless ``currency`` is the listed one, because nothing is converted silently.
    """
    carbon, price = _assumed().carbon, _assumed().price
    return Supply(
        name="assumed",
        price=_sourced(parse_price(price.price, "kWh", currency), price) if currency == price.currency else None,
        carbon=_sourced(parse(carbon.intensity, "carbon"), carbon),
    )
