"""From a grid file to the floors' own words: sites with loads, replicas on slices, prices, facts. Starts nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tokenworks.brain.route import Offer, Scales
from tokenworks.core.errors import GridFileError
from tokenworks.core.words import BUCKETS, Provenance, Sourced, Word
from tokenworks.device.catalogue import accelerator
from tokenworks.device.discovery import Device, discover
from tokenworks.device.slices import Limits, Slice, cut, limits_of, share_out
from tokenworks.engine.models import catalogue as models
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import ReplicaSpec
from tokenworks.exchange.journal import Policy
from tokenworks.exchange.price_file import load_price_list
from tokenworks.exchange.prices import PriceList, shipped_prices
from tokenworks.exchange.words import SiteFacts
from tokenworks.gridfile import Device as DeviceTable
from tokenworks.gridfile import GridFile
from tokenworks.gridfile import Replica as ReplicaTable
from tokenworks.gridfile import Site as SiteTable
from tokenworks.power.supply import Supply, assumed_supply
from tokenworks.site.facility import Facility, Module, Window
from tokenworks.site.words import ASSUMED_OVERHEAD, Site, SliceLoad

SLOTS_DEFAULT = 4
CONTEXT_DEFAULT = 2048
SLICE_MEMORY_DEFAULT = 1_000_000_000
"""Bytes for an embedded replica: the model, its KV cache and its buffers, with room."""
GRID_FILE = "the grid file"
OURS = ("embedded", "process")
"""Drivers whose engines run on this machine and are ours to limit."""
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
    """Sites of which the file says more of power than one plain supply."""


def plan(grid: GridFile) -> Plan:
    """Work a grid file out on this machine. Raises GridFileError or TokenworksError when it cannot be."""
    currency = grid.exchange.currency
    here = discover(currency=currency)
    sites, specs, facts, devices = [], [], [], {}
    for table in grid.sites:
        devices[table.name] = tuple(_device(each, here) for each in table.devices) if table.devices else tuple(here)
        placed, slices = _place(grid, table.name, devices[table.name])
        specs += placed
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
        replicas=tuple(msgspec.structs.replace(spec, gateways=grid.gateway.workers) for spec in _pinned(specs)),
        facts=tuple(facts),
        devices=devices,
        workers=grid.gateway.workers,
        powers=tuple(table for table in grid.sites if table.powered),
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


def _device(table: DeviceTable, here: Sequence[Device]) -> Device:
    """A device of the grid file: what the file says over what was discovered."""
    if table.catalogue is not None:
        accelerator(table.catalogue)  # a wrong id is told here, with the nearest right one
    base = here[0] if here else None
    if base is None and (table.threads is None or table.memory_bytes is None):
        raise GridFileError(f"device {table.id!r}: nothing was discovered here", hint="give its threads and memory")
    threads = table.threads or (base.threads if base else 1)
    scale = threads if base is None else base.threads

    def said(value: int | None, found: Sourced | None) -> Sourced | None:
        if value is not None:
            return Sourced(value=value, provenance=Provenance.LISTED, source=GRID_FILE)
        return None if found is None else msgspec.structs.replace(found, value=found.value * threads // scale)

    return Device(
        id=table.id,
        catalogue_id=table.catalogue or (base.catalogue_id if base else None),
        name=base.name if base else table.id,
        vendor=base.vendor if base else "unknown",
        kind=base.kind if base else "cpu",
        threads=threads,
        memory_bytes=table.memory_bytes or (base.memory_bytes if base else 0),
        idle_mw=said(table.idle_mw, base.idle_mw if base else None),
        max_mw=said(table.max_mw, base.max_mw if base else None),
        cost_nano_per_hour=said(table.cost_nano_per_h, base.cost_nano_per_hour if base else None),
    )


def _place(grid: GridFile, site: str, devices: Sequence[Device]) -> tuple[list[ReplicaSpec], list[Slice]]:
    """Slices for the site's replicas, in the order of the file. An engine elsewhere has none."""
    tables = [replica for replica in grid.replicas if replica.site == site]
    ours = [replica for replica in tables if replica.driver in OURS]
    specs: list[ReplicaSpec] = []
    taken: list[Slice] = []
    for table in tables:
        device = next((d for d in devices if d.id == table.device), devices[0] if devices else None)
        measurable = device is not None and device.idle_mw is not None and device.max_mw is not None
        if table.driver not in OURS and table.threads is None:
            measurable = False  # it runs somewhere else: nothing is known of its energy
        threads, memory_bytes = table.threads or 1, table.memory_bytes or SLICE_MEMORY_DEFAULT
        if device is not None and table.threads is None and table.driver in OURS:
            # One thread stays free for the gateway: the engine's threads spin, and would starve it.
            threads = max(1, (device.threads - 1) // len(ours))
            if device.kind != "cpu":  # a whole card
                threads, memory_bytes = device.threads, table.memory_bytes or device.memory_bytes
        name, limits = "", Limits()
        if device is not None and measurable:
            taken.append(cut(device, threads, memory_bytes, taken))
            name, limits = taken[-1].id, limits_of(taken[-1:], [device])
        elif device is not None and table.driver in OURS:
            limits = Limits(env=device.visible)  # without its power no energy can be told, but it is that device's
        specs.append(msgspec.structs.replace(_spec(table, name, threads), limits=limits))
    return specs, taken


def _pinned(specs: Sequence[ReplicaSpec]) -> tuple[ReplicaSpec, ...]:
    """Each replica with a slice of this machine's processor on threads of its own, as long as there are enough."""
    own = [spec.threads if spec.driver in OURS and spec.limits.memory_bytes else 0 for spec in specs]
    shares = share_out(own, sorted(os.sched_getaffinity(0)))
    replace = msgspec.structs.replace
    return tuple(
        replace(spec, limits=replace(spec.limits, cpus=cpus)) for spec, cpus in zip(specs, shares, strict=True)
    )


def _spec(table: ReplicaTable, slice_id: str, threads: int) -> ReplicaSpec:
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
        slice=slice_id,
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
        threads=threads,
        upstream_model=table.upstream_model,
        api_key=key,
    )


def _site(table: SiteTable, devices: Sequence[Device], slices: Sequence[Slice], currency: str) -> Site:
    said = table.supply
    assumed = assumed_supply(currency)

    def sourced(value: int | None, otherwise: Sourced | None) -> Sourced | None:
        return otherwise if value is None else Sourced(value=value, provenance=Provenance.LISTED, source=GRID_FILE)

    idle_mw = sum(device.idle_mw.value for device in devices if device.idle_mw)
    first = next((d for d in devices if d.idle_mw and d.max_mw), None)
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
                slice=s.id, idle_mw=s.idle_mw, busy_mw=s.busy_mw, power=s.power, cost_nano_per_hour=s.cost_nano_per_hour
            )
            for s in slices
        ),
        facility=_facility(table),
        base_idle_mw=max(0, idle_mw - sum(s.idle_mw for s in slices)),
        thread_busy_mw=thread_mw,
    )


def _facility(table: SiteTable) -> Facility | None:
    """Its modules, and when it can be reached; None: the file has no modules."""
    if not table.modules:
        return None
    second_ns = 1_000_000_000
    modules = tuple(Module(**msgspec.structs.asdict(module)) for module in table.modules)
    windows = [(int(each.start.timestamp()) * second_ns, each.length_ns, each.period_ns) for each in table.windows]
    return Facility(
        modules=modules,
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
