from __future__ import annotations

import pytest

from tokenworks.core.units import MJ_PER_KWH
from tokenworks.core.words import Provenance, Sourced
from tokenworks.power.supply import Supply, assumed_supply


def listed(value: int) -> Sourced:
    return Sourced(value=value, provenance=Provenance.LISTED)


def test_one_kwh_costs_its_price_and_emits_its_intensity() -> None:
    """After the units: nano-currency and micrograms per kWh, energy in millijoules."""
    supply = Supply(name="s", price=listed(380_000_000), carbon=listed(536_600_000))
    assert supply.bill_nano(MJ_PER_KWH) == 380_000_000
    assert supply.carbon_ug(2 * MJ_PER_KWH) == 1_073_200_000
    assert supply.bill_nano(0) == 0


def test_small_energies_round_half_up() -> None:
    """After rounding: 5 mJ at half a nano per 5 mJ is 1 nano, 4 mJ is 0."""
    supply = Supply(name="s", price=listed(MJ_PER_KWH // 10), carbon=None)
    assert [supply.bill_nano(mj) for mj in (4, 5, 14, 15)] == [0, 1, 1, 2]


def test_unknown_stays_unknown() -> None:
    """After honesty: an unknown price or intensity gives None and not 0, even for no energy."""
    supply = Supply(name="s", price=None, carbon=None)
    assert supply.bill_nano(0) is None
    assert supply.carbon_ug(1) is None


def test_assumed_supply_is_listed_with_source_and_error() -> None:
    """After provenance: both assumed figures say that they are listed, by whom, and how far off they may be."""
    supply = assumed_supply("USD")
    assert supply.price is not None
    assert supply.carbon is not None
    assert supply.price.value == 88_000_000
    assert supply.carbon.value == 481_000_000
    for figure in (supply.price, supply.carbon):
        assert figure.provenance is Provenance.LISTED
        assert figure.source
        assert figure.error_permille
    assert "CC BY 4.0" in (supply.carbon.source or "")


@pytest.mark.parametrize("currency", ["CNY", "EUR"])
def test_assumed_price_is_not_converted(currency: str) -> None:
    """After silent conversion: a grid in another currency gets no price at all, but the same carbon."""
    supply = assumed_supply(currency)
    assert supply.price is None
    assert supply.carbon == assumed_supply("USD").carbon
