"""From a grid file to the floors' own words: sites with loads, replicas on slices, prices, facts. Starts nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tokenworks.brain.route import Offer, Scales
from tokenworks.compose_devices import GRID_FILE, Seat, devices_of, energies, pinned, seats
from tokenworks.core.errors import GridFileError
from tokenworks.core.words import BUCKETS, Provenance, Sourced, Word
from tokenworks.device.discovery import CPU, Device
from tokenworks.device.slices import Booked, Slice
from tokenworks.device.survey import survey
from tokenworks.engine.models import catalogue as models
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import ReplicaSpec
from tokenworks.exchange.journal import Policy
from tokenworks.exchange.price_file import load_price_list
from tokenworks.exchange.prices import PriceList, shipped_prices
from tokenworks.exchange.words import SiteFacts
from tokenworks.gridfile import GridFile
from tokenworks.gridfile import Replica as ReplicaTable
from tokenworks.gridfile import Site as SiteTable
from tokenworks.power.supply import Supply, assumed_supply
from tokenworks.site.facility import Facility, Module, Window
from tokenworks.site.words import ASSUMED_OVERHEAD, Site, SliceLoad

ACCELERATORS = "accelerators"
"""The server of those for which the file names none: what meters this machine's processors does not meter them."""
OPENAI_CAN = frozenset({"tools", "json_schema", "logprobs"})
CAPABILITIES = {
    "anthropic": frozenset({"tools", "images", "messages"}),
    "any-llm": frozenset({"tools"}),
    "ollama": frozenset({"tools", "json_schema"}),
}
"""What engines can do when the grid file does not say; any other: ``OPENAI_CAN``."""


class Plan(Word, frozen=True):
    """A grid, ready to be started."""

    name: str
    currency: str
    store: str | None
    """A PostgreSQL address; None: SQLite in the data directory."""
    journal: Policy
    journal_keep_bytes: int
    budget_nano: int
    prices: PriceList
    scales: Scales
    sites: tuple[Site, ...]
    intervals_s: dict[str, int]
    replicas: tuple[ReplicaSpec, ...]
    facts: tuple[SiteFacts, ...]
    devices: dict[str, tuple[Device, ...]]
    workers: int = 1
    """Gateway processes."""
    powers: tuple[SiteTable, ...] = ()
    """Sites of which the file says more of power than one plain supply, or names meters."""


def plan(grid: GridFile) -> Plan:
    """Work a grid file out on this machine. Raises GridFileError or TokenworksError when it cannot be."""
    currency = grid.exchange.currency
    seen = survey(currency=currency)
    ill = {finding.about for finding in seen.findings}
    sites, specs, facts, devices, cards_taken = [], [], [], {}, list[Booked]()
    for table in grid.sites:
        mine = [replica for replica in grid.replicas if replica.site == table.name]
        devices[table.name] = devices_of(table, seen.devices)
        found = seats(mine, devices[table.name], ill, cards_taken)
        specs += [_spec(each, found[each.name]) for each in mine]
        seated = [(each, found[each.name]) for each in mine]
        sites.append(_site(table, devices[table.name], seated, currency))
        facts.append(_facts(sites[-1], devices[table.name]))
    per_h = grid.brain.delay_price_nano_per_h
    scales = Scales(
        delay_nano_per_s=None if per_h is None else per_h // 3600,
        carbon_nano_per_kg=grid.brain.carbon_price_nano_per_kg,
    )
    return Plan(
        name=grid.name,
        **_same(grid.exchange, "currency", "store", "journal", "journal_keep_bytes", "budget_nano"),
        prices=_prices(grid),
        scales=scales,
        sites=tuple(sites),
        intervals_s={site.name: max(1, site.supply.interval_ns // 1_000_000_000) for site in grid.sites},
        replicas=tuple(msgspec.structs.replace(spec, gateways=grid.gateway.workers) for spec in pinned(specs)),
        facts=tuple(facts),
        devices=devices,
        workers=grid.gateway.workers,
        powers=tuple(table for table in grid.sites if table.powered or table.meters or table.wet_bulb),
    )


def _prices(grid: GridFile) -> PriceList:
    """The operator's list or what ships, and the lines of the grid file over whatever of it is in force."""
    said = grid.exchange
    if said.price_file is None:
        found = shipped_prices(said.currency)
    else:
        found = load_price_list(Path(said.price_file), said.currency, said.price_keys)
    rates = {rate.model: _buckets(rate, "ustu") for rate in said.rates}
    prices = {price.model: _buckets(price, "nano_per_mtok") for price in said.prices}
    # Other lines are another version, whether or not the grid got a new name.
    digest = hashlib.sha256(msgspec.json.encode((rates, prices), order="sorted")).hexdigest()[:8]
    return msgspec.structs.replace(found, rates=rates, prices=prices, laid=f"{grid.name}-{digest}")


def _buckets(line: msgspec.Struct, unit: str) -> dict[str, int]:
    named = {bucket: getattr(line, f"{bucket}_{unit}", None) for bucket in BUCKETS}
    return {bucket: value for bucket, value in named.items() if value is not None}


def _spec(table: ReplicaTable, seat: Seat) -> ReplicaSpec:
    model = models().get(table.upstream_model or table.model)
    known = (
        model.capabilities if model and table.driver == "embedded" else CAPABILITIES.get(table.engine or "", OPENAI_CAN)
    )
    key = os.environ.get(table.api_key_env) if table.api_key_env else None
    if table.api_key_env and not key:
        raise GridFileError(
            f"replica {table.name!r}: the environment has no {table.api_key_env}", hint="export it first"
        )
    if table.driver == "embedded" and model is None:
        names = ", ".join(sorted(models()))
        raise GridFileError(f"replica {table.name!r}: no embedded model {table.model!r}", hint=f"there is: {names}")
    context = table.context_tokens
    return ReplicaSpec(
        **_same(
            table, "name", "model", "site", "slots", "driver", "url", "command", "sleep_after_ns", "upstream_model"
        ),
        slice=seat.slice.id if seat.slice else "",
        context_tokens=min(context, model.context_tokens) if model and table.driver == "embedded" else context,
        capabilities=frozenset(table.capabilities) if table.capabilities is not None else known,
        engine="llamacpp" if table.driver == "embedded" else table.engine or "openai",
        resources_milli=table.resources_milli or {},
        cluster=table.cluster or "auto",
        cards=table.cards or 1,
        threads=seat.threads,
        limits=seat.limits,
        booked={part.device: (part.threads, part.memory_bytes) for part in seat.parts},
        api_key=key,
    )


def _same(table: msgspec.Struct, *names: str) -> dict[str, Any]:
    """What is called the same on both sides."""
    return {name: getattr(table, name) for name in names}


def _site(
    table: SiteTable, devices: Sequence[Device], seated: Sequence[tuple[ReplicaTable, Seat]], currency: str
) -> Site:
    said = table.supply
    assumed = assumed_supply(currency)

    def sourced(value: int | None, otherwise: Sourced | None) -> Sourced | None:
        return otherwise if value is None else Sourced(value=value, provenance=Provenance.LISTED, source=GRID_FILE)

    tables = {device.id: device for device in table.devices}
    beside = {device.id: "" if device.kind == CPU else ACCELERATORS for device in devices}
    on = {id_: (tables[id_].server if id_ in tables else "") or own for id_, own in beside.items()}
    board = {device.id: tables[device.id].board if device.id in tables else "" for device in devices}
    idle_mw = {"": 0, **dict.fromkeys(on.values(), 0), **{server.name: server.idle_mw for server in table.servers}}
    for device in devices:
        idle_mw[on[device.id]] += device.idle_mw.value if device.idle_mw else 0
    facility = _facility(table)
    loads = list[SliceLoad]()
    for replica, seat in seated:
        if (s := seat.slice) is None:
            continue
        idle_mw[on[s.device]] -= s.idle_mw
        loads.append(
            SliceLoad(
                slice=s.id,
                **_same(s, "idle_mw", "busy_mw", "power", "embodied_ug_per_hour"),
                cost_nano_per_hour=_cost(s, facility),
                server=on[s.device],
                board=board[s.device],
                reserved=replica.reserved,
                **energies(replica, devices, seat, s),
            )
        )
    processors = ((d.max_mw, d.idle_mw, d.threads) for d in devices if d.kind == CPU)
    thread_mw = next(((most.value - idle.value) // max(1, n) for most, idle, n in processors if most and idle), 0)
    return Site(
        **_same(table, "name", "entity", "jurisdiction", "place"),
        latency_ns=table.latency_ns or 0,
        overhead=sourced(table.pue_permille and table.pue_permille - 1_000, None) or ASSUMED_OVERHEAD,
        supply=Supply(
            name=said.name,
            price=sourced(said.price_nano_per_kwh, None if table.contract else assumed.price),
            carbon=sourced(said.carbon_ug_per_kwh, assumed.carbon),
            mix_permille=said.mix_permille,
        ),
        loads=tuple(loads),
        facility=facility,
        base_idle_mw=max(0, idle_mw.pop("")),
        thread_busy_mw=thread_mw,
        hosts_mw={name: max(0, mw) for name, mw in idle_mw.items()},
    )


def _cost(slice_: Slice, facility: Facility | None) -> int | None:
    """Of its part of the device, and of the building as far as that is known."""
    if slice_.cost_nano_per_hour is None or facility is None:
        return slice_.cost_nano_per_hour
    building = facility.cost_nano_per_hour(slice_.idle_mw + slice_.busy_mw)
    return slice_.cost_nano_per_hour + (building or 0)


def _facility(table: SiteTable) -> Facility | None:
    """Its modules, and when it can be reached; None: the file has no modules."""
    if not table.modules:
        return None
    second_ns = 1_000_000_000
    modules = tuple(Module(**msgspec.structs.asdict(module)) for module in table.modules)
    windows = [(int(each.start.timestamp()) * second_ns, each.length_ns, each.period_ns) for each in table.windows]
    return Facility(
        modules=modules,
        design_sink_mc=table.wet_bulb_mc,
        windows=tuple(Window(start_ns=start, length_ns=length, period_ns=period) for start, length, period in windows),
    )


def _facts(site: Site, devices: Sequence[Device]) -> SiteFacts:
    said = {"overhead": site.overhead, "price": site.supply.price, "carbon": site.supply.carbon}
    said["device_cost"] = next((d.cost_nano_per_hour for d in devices if d.cost_nano_per_hour is not None), None)
    facts = {name: fact for name, fact in said.items() if fact is not None}
    if most := next((device.max_mw for device in devices if device.max_mw is not None), None):
        how = "power above idle x the engine's busy time, shared by concurrent requests: equally, "
        how += "but prompts and contexts each by its own tokens where a model of the engine says what they take; "
        facts["energy"] = msgspec.structs.replace(most, source=how + (most.source or ""))
    for load in site.loads:
        if (ug := load.embodied_ug_per_hour) is not None:
            facts[f"embodied:{load.slice}"] = Sourced(value=ug, provenance=Provenance.LISTED, source=GRID_FILE)
    return SiteFacts(
        site=site.name,
        **_same(site, "entity", "jurisdiction", "place"),
        facts=facts,
        mix_permille=site.supply.mix_permille,
    )


def offer(replica: Replica, site: Site) -> Offer:
    """One replica as the router sees it now."""
    spec = replica.spec
    load = next((load for load in site.loads if load.slice == spec.slice), None)
    supply = site.supply
    return Offer(
        **_same(spec, "site", "model", "slots", "context_tokens", "capabilities"),
        replica=spec.name,
        load=replica,
        latency_ns=site.latency_ns,
        busy_mw=load.busy_mw * site.pue_permille // 1_000 if load else None,
        price_nano_per_kwh=supply.price.value if supply.price else None,
        carbon_ug_per_kwh=supply.carbon.value if supply.carbon else None,
        device_nano_per_hour=load.cost_nano_per_hour if load else None,
    )
