"""What changes at a site without a request: what energy costs and emits now, and whether the site can be reached.

Kept up each second in the grid's first process and told to the others; the router's offers and the estimates follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from tokenworks.brain.route import Offer
from tokenworks.core.clock import utc_text
from tokenworks.core.words import Word
from tokenworks.power.supply import Supply
from tokenworks.site.agent import SiteAgent
from tokenworks.site.words import Site

Priced = Mapping[str, Callable[[Supply, int], Supply]]
"""By site: its flat supply and a time -> its supply then."""


class Moment(Word, frozen=True):
    """One site now."""

    supply: Supply
    away: str
    """Why it cannot be reached; empty: it can."""


def moments(sites: Iterable[Site], priced: Priced, now_ns: int) -> dict[str, Moment]:
    """Of the sites of which anything can change."""
    found = {}
    for site in sites:
        facility, price = site.facility, priced.get(site.name)
        if price or (facility and facility.windows):
            near = facility.reachable(now_ns) if facility else (0, 0)
            away = "any more" if near is None else f"before {utc_text(near[0])}" if near[0] > now_ns else ""
            found[site.name] = Moment(
                supply=price(site.supply, now_ns) if price else site.supply,
                away=away and f"site {site.name} cannot be reached {away}",
            )
    return found


def show(now: Mapping[str, Moment], offers: Mapping[str, list[Offer]], sites: Mapping[str, SiteAgent]) -> None:
    """Put moments into the router's offers and the sites' estimates."""
    for name, moment in now.items():
        sites[name].supply = moment.supply
    for of_model in offers.values():
        for index, offer in enumerate(of_model):
            if (here := now.get(offer.site)) is not None:
                price, carbon = (each and each.value for each in (here.supply.price, here.supply.carbon))
                known = {"price_nano_per_kwh": price, "carbon_ug_per_kwh": carbon, "away": here.away}
                of_model[index] = msgspec.structs.replace(offer, **known)
