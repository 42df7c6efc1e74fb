from __future__ import annotations

import pytest

from tokenworks.core.words import Provenance, Sourced
from tokenworks.power.supply import assumed_supply
from tokenworks.site.words import ASSUMED_OVERHEAD, Site, SliceLoad


def site(overhead: Sourced, *loads: SliceLoad) -> Site:
    return Site(
        name="s",
        entity="e",
        jurisdiction=None,
        place=None,
        overhead=overhead,
        supply=assumed_supply("USD"),
        loads=loads,
    )


def test_assumed_overhead_is_a_pue_of_1_58_with_its_source() -> None:
    """After a figure from nowhere: the assumed overhead is listed and says by whom."""
    assert site(ASSUMED_OVERHEAD).pue_permille == 1_580
    assert ASSUMED_OVERHEAD.provenance is Provenance.LISTED
    assert "Uptime Institute" in (ASSUMED_OVERHEAD.source or "")


def test_negative_power_and_double_slices_are_refused() -> None:
    """After a site whose books could not be split: negative figures and a slice named twice are errors at once."""
    load = SliceLoad(slice="a", idle_mw=1, busy_mw=1, power=Provenance.MODELLED, cost_nano_per_hour=None)
    with pytest.raises(ValueError, match="twice"):
        site(ASSUMED_OVERHEAD, load, load)
    with pytest.raises(ValueError, match="negative"):
        site(Sourced(value=-1, provenance=Provenance.LISTED), load)
