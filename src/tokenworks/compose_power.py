"""From a site's tables to the words of floor 1: its supplies, its contract, the events that are known beforehand.

Apart from ``compose`` because it reads tables of signals (numpy): a site with one plain supply never needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from tokenworks.core.errors import GridFileError
from tokenworks.core.words import like
from tokenworks.gridfile.tables import Charge as ChargeTable
from tokenworks.gridfile.tables import Contract as ContractTable
from tokenworks.gridfile.tables import Event, SignalFile, Site
from tokenworks.gridfile.tables import Supply as SupplyTable
from tokenworks.power.contract import Charge, Contract, Demand, Energy, Standing, capacity, difference
from tokenworks.power.events import GridEvent
from tokenworks.power.plant import Battery, Feed, Plant, Supplies
from tokenworks.power.signal import Signal, Steps
from tokenworks.power.supply import assumed_supply, listed_carbon
from tokenworks.power.tables import load
from tokenworks.power.tariff import Indexed, Tier, TimeOfUse, to_ns


class SitePower(NamedTuple):
    """All of floor 1 that a site stands on."""

    supplies: Supplies
    contract: Contract
    events: tuple[GridEvent, ...]


def site_power(site: Site, currency: str) -> SitePower:
    """Work out a site's power. Raises BadTable for a file of signals, GridFileError for an event without sense."""
    feeds = [_feed(table, currency) for table in site.supplies if table.kind == "grid"]
    supplies = Supplies(
        feed=feeds[0] if feeds else None,
        plants=tuple(plant for table in site.supplies for plant in _plants(table)),
        batteries=tuple(_battery(table) for table in site.supplies if table.kind == "battery"),
    )
    try:
        events = tuple(_event(event) for event in site.events)
    except ValueError as error:
        raise GridFileError(f"site {site.name!r}: {error}") from error
    return SitePower(supplies, _contract(site, currency), events)


def signal_of(table: SignalFile) -> Signal:
    """What a table of signals says. Raises BadTable."""
    zone = ZoneInfo(table.zone) if table.zone else None
    return load(Path(table.file), table.column, length_ns=table.length_ns, zone=zone, by_end=table.by_end)


def _feed(table: SupplyTable, currency: str) -> Feed:
    assumed, said = assumed_supply(currency).carbon, table.carbon_ug_per_kwh
    carbon = None if assumed is None else Signal.constant(assumed.value)
    if table.carbon_file is not None:
        carbon = signal_of(table.carbon_file)
    elif said is not None:
        carbon = Signal.constant(said)
    return Feed(
        name=table.name, limit_mw=table.limit_mw, export_limit_mw=table.export_limit_mw, carbon=carbon,
        residual=None if table.residual_ug_per_kwh is None else Signal.constant(table.residual_ug_per_kwh),
        mix_permille=table.mix_permille,
    )  # fmt: skip


def _plants(table: SupplyTable) -> Iterator[Plant]:
    if table.kind != "grid" and table.kind != "battery":
        listed = listed_carbon(table.kind)
        said = table.carbon_ug_per_kwh
        yield Plant(
            name=table.name,
            kind=table.kind,
            capacity_mw=table.capacity_mw or 0,
            availability=signal_of(table.availability) if table.availability else None,
            carbon=Signal.constant(said) if said is not None else Signal.constant(listed.value) if listed else None,
            remote=table.remote,
        )


def _battery(table: SupplyTable) -> Battery:
    sizes = {"capacity_mj": table.energy_mj or 0, "power_mw": table.power_mw or 0}
    return Battery(name=table.name, efficiency_permille=table.efficiency_permille, **sizes)


def _contract(site: Site, currency: str) -> Contract:
    """The contract, or without one the price of the feed as its only charge; without that, the listed one if any."""
    if site.contract is not None:
        charges = tuple(charge for table in site.contract.charges for charge in _charges(table, site.contract))
        return Contract(site.contract.name, charges)
    assumed = assumed_supply(currency).price
    price = site.supply.price_nano_per_kwh
    price = assumed.value if price is None and assumed else price
    rate = Signal([], [], []) if price is None else Signal.constant(price)
    return Contract(site.supply.name, (Energy("energy", rate),))


def _charges(table: ChargeTable, contract: ContractTable) -> Iterator[Charge]:
    name, zone = table.name or table.kind, ZoneInfo(contract.zone)
    if table.kind == "demand":
        yield Demand(name, table.nano_per_kw or 0, zone, table.window_ns)
    elif table.kind == "capacity":
        yield capacity(name, table.nano_per_kw or 0, table.power_mw or 0, zone)
    elif table.kind == "standing":
        yield Standing(name, table.nano_per_month or 0, zone)
    elif table.kind == "ppa" and table.index is not None:
        strike = Signal.constant(table.price_nano_per_kwh or 0)
        yield from difference(name, strike, _rate(table, contract, by_index=True), table.of or "", table.power_mw)
    elif table.kind in ("export", "curtailment"):
        of = "export" if table.kind == "export" else "curtailed"
        yield Energy(name, _rate(table, contract), of, -1)
    else:
        yield Energy(name, _rate(table, contract), table.of or "import")


def _rate(table: ChargeTable, contract: ContractTable, *, by_index: bool = False) -> Steps:
    if table.index is not None and (by_index or table.price_nano_per_kwh is None):
        return Indexed(signal_of(table.index), table.adder_nano_per_kwh, table.factor_permille)
    if not table.tiers:
        return Signal.constant((table.price_nano_per_kwh or 0) + table.adder_nano_per_kwh)
    tiers = [
        Tier(tier.price_nano_per_kwh + table.adder_nano_per_kwh, frozenset(tier.months), tier.days, _spans(tier.hours))
        for tier in table.tiers
    ]
    return TimeOfUse(ZoneInfo(contract.zone), tuple(tiers), frozenset(contract.holidays))


def _spans(hours: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """``"08:00-11:30"`` as minutes of the day."""
    minutes = [[int(part[:2]) * 60 + int(part[3:]) for part in span.split("-")] for span in hours]
    return tuple((first, last) for first, last in minutes)


def _event(table: Event) -> GridEvent:
    start = to_ns(table.start)
    again = None if table.raise_start is None else to_ns(table.raise_start)
    again_ns = None if again is None else again + (table.raise_duration_ns or table.duration_ns)
    times = {"start_ns": start, "end_ns": start + table.duration_ns, "raise_start_ns": again, "raise_end_ns": again_ns}
    return like(table, GridEvent, **times)
