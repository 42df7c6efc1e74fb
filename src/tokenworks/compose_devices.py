"""From a site's tables to this machine's devices: which replica stands where, and what holds its process there."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from typing import NamedTuple

import msgspec

from tokenworks.core.errors import GridFileError, UnknownModel
from tokenworks.core.words import Demand, Provenance, Sourced
from tokenworks.device.catalogue import accelerator
from tokenworks.device.discovery import CPU, Device
from tokenworks.device.placement import WHOLE, Spot, place
from tokenworks.device.slices import Booked, Limits, Slice, cut, limits_of, share_out
from tokenworks.engine.perf.plan import MEMORY_SHARE, RESERVE_BYTES, WEIGHT_BYTES, DeviceSpec, Plan
from tokenworks.engine.perf.shapes import shape_named
from tokenworks.engine.replica import ReplicaSpec
from tokenworks.gridfile import Device as DeviceTable
from tokenworks.gridfile import Replica as ReplicaTable
from tokenworks.gridfile import Site as SiteTable

SLOTS_DEFAULT = 4
CONTEXT_DEFAULT = 2048
SLICE_MEMORY_DEFAULT = 1_000_000_000
"""Bytes for an embedded replica: the model, its KV cache and its buffers, with room."""
GRID_FILE = "the grid file"
OURS = ("embedded", "process")
"""Drivers whose engines run on this machine and are ours to limit."""
SHOWN_MAX = 8
"""Cards in an error's hint."""
_ANY = DeviceSpec(id="", memory_bytes=0, bandwidth_gb_s=0, bf16_tflops=0)
MB = 1_000_000


class Seat(NamedTuple):
    """A replica's parts of devices. None at all: it runs somewhere else."""

    threads: int = 1
    parts: tuple[Booked, ...] = ()
    limits: Limits = Limits()

    @property
    def slice(self) -> Slice | None:
        """All its parts as one; None: nothing is known of the energy of one of them."""
        known = [part for part in self.parts if isinstance(part, Slice)]
        if not known or len(known) < len(self.parts):
            return None
        costs = [part.cost_nano_per_hour for part in known if part.cost_nano_per_hour is not None]
        return msgspec.structs.replace(
            known[0],
            id="+".join(part.id for part in known),
            idle_mw=sum(part.idle_mw for part in known),
            busy_mw=sum(part.busy_mw for part in known),
            cost_nano_per_hour=sum(costs) if len(costs) == len(known) else None,
        )


def devices_of(site: SiteTable, here: Sequence[Device]) -> tuple[Device, ...]:
    """What the site has: all of this machine, or what the grid file lists."""
    return tuple(_device(each, here) for each in site.devices) if site.devices else tuple(here)


def _device(table: DeviceTable, here: Sequence[Device]) -> Device:
    """A device of the grid file: what the file says over what was found under this id, else over the processor."""
    if table.catalogue is not None:
        accelerator(table.catalogue)  # a wrong id is told here, with the nearest right one
    base = next((each for each in here if each.id == table.id), None)
    base = base or next((each for each in here if each.kind == CPU), None)
    if base is None:
        if table.threads is None or table.memory_bytes is None:
            raise GridFileError(f"device {table.id!r}: nothing was discovered here", hint="give its threads and memory")
        base = Device(
            id=table.id, catalogue_id=None, name=table.id, vendor="unknown", kind=CPU, threads=table.threads,
            memory_bytes=table.memory_bytes, idle_mw=None, max_mw=None, cost_nano_per_hour=None,
        )  # fmt: skip
    threads, scale = table.threads or base.threads, base.threads

    def said(value: int | None, found: Sourced | None) -> Sourced | None:
        if value is not None:
            return Sourced(value=value, provenance=Provenance.LISTED, source=GRID_FILE)
        return None if found is None else msgspec.structs.replace(found, value=found.value * threads // scale)

    return msgspec.structs.replace(
        base,
        id=table.id,
        catalogue_id=table.catalogue or base.catalogue_id,
        threads=threads,
        memory_bytes=table.memory_bytes or base.memory_bytes,
        idle_mw=said(table.idle_mw, base.idle_mw),
        max_mw=said(table.max_mw, base.max_mw),
        cost_nano_per_hour=said(table.cost_nano_per_h, base.cost_nano_per_hour),
    )


def seats(
    tables: Sequence[ReplicaTable], devices: Sequence[Device], ill: Container[str], cards_taken: list[Booked]
) -> dict[str, Seat]:
    """Seats for a site's replicas, by name. ``cards_taken`` grows: sites of one machine share its accelerators.

    A ``process`` that says nothing else gets a whole accelerator where there is one, everything else the processor.
    Nothing is placed on devices that are ``ill``. Raises GridFileError for a demand that fits nowhere.
    """
    kinds = {device.id: device.kind for device in devices}
    cards = [device for device in devices if device.kind != CPU]

    def on_card(table: ReplicaTable) -> bool:
        if table.device is not None:
            if table.device not in kinds:
                what = f"replica {table.name!r}: there is no device {table.device!r}"
                raise GridFileError(what, hint="there is: " + ", ".join(kinds))
            return table.driver in OURS and kinds[table.device] != CPU
        asks = table.cards or table.vendor or table.share_permille or (cards and table.threads is None)
        return table.driver == "process" and bool(asks)

    found: dict[str, Seat] = {}
    wanting = [table for table in tables if on_card(table)]
    for group in (*([table] for table in wanting if table.device), [table for table in wanting if not table.device]):
        near = [card for card in cards if card.id not in ill and group and group[0].device in (None, card.id)]
        found |= _on_cards(group, near, cards_taken)
    return found | _on_processor([table for table in tables if table.name not in found], devices)


def _on_processor(tables: Sequence[ReplicaTable], devices: Sequence[Device]) -> dict[str, Seat]:
    """In the order of the file, one slice each. An engine elsewhere has none, unless the file gives it threads here."""
    ours = sum(table.driver in OURS for table in tables)
    found: dict[str, Seat] = {}
    taken: list[Booked] = []
    for table in tables:
        own = [device for device in devices if table.device == device.id or (not table.device and device.kind == CPU)]
        if not own or (table.driver not in OURS and table.threads is None):
            found[table.name] = Seat(table.threads or 1)
            continue
        # One thread stays free for the gateway: the engine's threads spin, and would starve it.
        threads = table.threads or max(1, (own[0].threads - 1) // ours)
        taken.append(cut(own[0], threads, table.memory_bytes or SLICE_MEMORY_DEFAULT, taken))
        limits = limits_of(taken[-1:], own) if table.driver in OURS else Limits()
        found[table.name] = Seat(threads, (taken[-1],), limits)
    return found


def _on_cards(tables: Sequence[ReplicaTable], cards: Sequence[Device], taken: list[Booked]) -> dict[str, Seat]:
    spots, demands = [_spot(card, taken) for card in cards], [_demand(table, cards) for table in tables]
    placement, found = place(spots, demands), dict[str, Seat]()
    for demand in demands:
        kind, share = "/".join(demand.backends) or "accelerator", demand.share_permille
        if why := placement.refused.get(demand.name):
            mine = [spot for spot in spots if spot.backend in demand.backends or not demand.backends][:SHOWN_MAX]
            free = [f"{spot.id} {(WHOLE - spot.booked_permille) / 10:g} %, {spot.free_mb:,} MB" for spot in mine]
            raise GridFileError(
                f"replica {demand.name!r} needs {share / 10:g} % of {demand.count} {kind} card(s), "
                f"{demand.memory_mb:,} MB free on each: {why}",
                hint=f"say its memory, share or cards; free: {'; '.join(free)}" if free else "tokenworks device list",
            )
        own = [card for id_ in placement.placed[demand.name] for card in cards if card.id == id_]
        sizes = [card.memory_bytes if share == WHOLE else demand.memory_mb * MB for card in own]
        parts = [cut(c, c.threads * share // WHOLE, size, taken) for c, size in zip(own, sizes, strict=True)]
        taken += parts
        found[demand.name] = Seat(1, tuple(parts), limits_of(parts, own))
    return found


def _spot(card: Device, taken: Sequence[Booked]) -> Spot:
    mine = [part for part in taken if part.device == card.id]
    # Nothing of ours runs yet: a card in use is somebody else's, and no whole one any more.
    shared = (card.memory_used_bytes or 0) > card.memory_bytes * (1 - MEMORY_SHARE)
    return Spot(
        id=card.id,
        node="",
        model=card.id if _instance(card) else card.catalogue_id or card.name,
        backend=card.vendor,
        memory_mb=card.memory_bytes // MB,
        booked_permille=max(shared, sum(part.threads for part in mine) * WHOLE // card.threads),
        booked_mb=-(-sum(part.memory_bytes for part in mine) // MB),
        used_mb=(card.memory_used_bytes or 0) // MB,
    )


def _instance(card: Device) -> bool:
    """It is a MIG instance, which works with no other: a process sees only one."""
    return ":" in card.id


def _demand(table: ReplicaTable, cards: Sequence[Device]) -> Demand:
    """Of memory: what the file says; else weights and the caches of all slots, where the model's shape is known; else
    what engines take of the smallest card."""
    count, share, name = table.cards or 1, table.share_permille or WHOLE, (table.upstream_model or table.model).lower()
    memory_bytes = table.memory_bytes
    if memory_bytes is None:
        precision = next((word for word in WEIGHT_BYTES if word in name), "int4" if "awq" in name else "bf16")
        try:
            made = Plan(shape=shape_named(name), device=_ANY, precision=precision, tp=count)
            caches = (table.slots or SLOTS_DEFAULT) * made.sequence_bytes(table.context_tokens or CONTEXT_DEFAULT)
            memory_bytes = int(made.weight_bytes + caches + RESERVE_BYTES)
        except UnknownModel:
            sizes = [card.memory_bytes for card in cards if table.vendor in (None, card.vendor) and not _instance(card)]
            memory_bytes = int(min(sizes, default=0) * MEMORY_SHARE) * share // WHOLE
    vendors = frozenset({table.vendor}) if table.vendor else frozenset[str]()
    return Demand(
        name=table.name, memory_mb=-(-memory_bytes // MB), count=count, share_permille=share, backends=vendors
    )


def pinned(specs: Sequence[ReplicaSpec]) -> tuple[ReplicaSpec, ...]:
    """Each replica with a slice of this machine's processor on threads of its own, as long as there are enough."""
    own = [spec.threads if spec.driver in OURS and spec.limits.memory_bytes else 0 for spec in specs]
    shares = share_out(own, sorted(os.sched_getaffinity(0)))
    replace = msgspec.structs.replace
    return tuple(
        replace(spec, limits=replace(spec.limits, cpus=cpus)) for spec, cpus in zip(specs, shares, strict=True)
    )
