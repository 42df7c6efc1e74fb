"""From a grid file to the floors' own words: sites with loads, replicas on slices, prices, facts. Starts nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tokenworks.brain.route import Offer, Scales
from tokenworks.compose_devices import CONTEXT_DEFAULT, GRID_FILE, SLOTS_DEFAULT, Seat, devices_of, pinned, seats
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
        slices = [seat.slice for seat in found.values() if seat.slice is not None]
        sites.append(_site(table, devices[table.name], slices, currency))
        facts.append(_facts(sites[-1], devices[table.name]))
    per_h = grid.brain.delay_price_nano_per_h
    scales = Scales(
        delay_nano_per_s=None if per_h is None else per_h // 3600,
        carbon_nano_per_kg=grid.brain.carbon_price_nano_per_kg,
    )
    return Plan(
        name=grid.name,
        currency=currency,
        store=grid.exchange.store,
        journal=grid.exchange.journal,
        journal_keep_bytes=grid.exchange.journal_keep_bytes,
        budget_nano=grid.exchange.budget_nano,
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
    context = table.context_tokens or CONTEXT_DEFAULT
    return ReplicaSpec(
        name=table.name,
        model=table.model,
        site=table.site,
        slice=seat.slice.id if seat.slice else "",
        slots=table.slots or SLOTS_DEFAULT,
        context_tokens=min(context, model.context_tokens) if model and table.driver == "embedded" else context,
        capabilities=frozenset(table.capabilities) if table.capabilities is not None else known,
        driver=table.driver,
        engine="llamacpp" if table.driver == "embedded" else table.engine or "openai",
        url=table.url,
        command=table.command,
        sleep_after_ns=table.sleep_after_ns,
        resources_milli=table.resources_milli or {},
        cluster=table.cluster or "auto",
        cards=table.cards or 1,
        threads=seat.threads,
        limits=seat.limits,
        booked={part.device: (part.threads, part.memory_bytes) for part in seat.parts},
        upstream_model=table.upstream_model,
        api_key=key,
    )


def _site(table: SiteTable, devices: Sequence[Device], slices: Sequence[Slice], currency: str) -> Site:
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
    for s in slices:
        idle_mw[on[s.device]] -= s.idle_mw
    facility = _facility(table)
    first = next((d for d in devices if d.kind == CPU and d.idle_mw and d.max_mw), None)
    thread_mw = 0
    if first is not None and first.idle_mw is not None and first.max_mw is not None:
        thread_mw = (first.max_mw.value - first.idle_mw.value) // max(1, first.threads)
    overhead = ASSUMED_OVERHEAD
    if table.pue_permille is not None:
        overhead = Sourced(value=table.pue_permille - 1_000, provenance=Provenance.LISTED, source=GRID_FILE)
    return Site(
        name=table.name,
        entity=table.entity,
        jurisdiction=table.jurisdiction,
        place=table.place,
        latency_ns=table.latency_ns or 0,
        overhead=overhead,
        supply=Supply(
            name=said.name,
            price=sourced(said.price_nano_per_kwh, None if table.contract else assumed.price),
            carbon=sourced(said.carbon_ug_per_kwh, assumed.carbon),
            mix_permille=said.mix_permille,
        ),
        loads=tuple(
            SliceLoad(
                slice=s.id,
                idle_mw=s.idle_mw,
                busy_mw=s.busy_mw,
                power=s.power,
                cost_nano_per_hour=_cost(s, facility),
                server=on[s.device],
                board=board[s.device],
            )
            for s in slices
        ),
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
    facts = {"overhead": site.overhead}
    if site.supply.price is not None:
        facts["price"] = site.supply.price
    if site.supply.carbon is not None:
        facts["carbon"] = site.supply.carbon
    for device in devices:
        if device.max_mw is not None and "energy" not in facts:
            how = "power above idle x the engine's busy time, shared equally by concurrent requests; "
            facts["energy"] = msgspec.structs.replace(device.max_mw, source=how + (device.max_mw.source or ""))
        if device.cost_nano_per_hour is not None and "device_cost" not in facts:
            facts["device_cost"] = device.cost_nano_per_hour
    return SiteFacts(
        site=site.name,
        entity=site.entity,
        place=site.place,
        jurisdiction=site.jurisdiction,
        facts=facts,
        mix_permille=site.supply.mix_permille,
    )


def offer(replica: Replica, site: Site) -> Offer:
    """One replica as the router sees it now."""
    spec = replica.spec
    load = next((load for load in site.loads if load.slice == spec.slice), None)
    supply = site.supply
    return Offer(
        replica=spec.name,
        site=spec.site,
        model=spec.model,
        load=replica,
        slots=spec.slots,
        context_tokens=spec.context_tokens,
        capabilities=spec.capabilities,
        latency_ns=site.latency_ns,
        busy_mw=load.busy_mw * site.pue_permille // 1_000 if load else None,
        price_nano_per_kwh=supply.price.value if supply.price else None,
        carbon_ug_per_kwh=supply.carbon.value if supply.carbon else None,
        device_nano_per_hour=load.cost_nano_per_hour if load else None,
    )
