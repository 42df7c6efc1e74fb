"""From a site's tables to this machine's devices: which replica stands where, and what holds its process there."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import msgspec

from tokenworks.core.errors import BadRequest, GridFileError, NotFound, UnknownModel
from tokenworks.core.words import Demand, Provenance, Sourced
from tokenworks.device.catalogue import Accelerator, accelerator
from tokenworks.device.discovery import CPU, HOURS_PER_YEAR, Device
from tokenworks.device.placement import WHOLE, Spot, place
from tokenworks.device.slices import Booked, Limits, Slice, cut, limits_of, share_out
from tokenworks.engine.perf.devices import device_spec
from tokenworks.engine.perf.plan import MEMORY_SHARE, RESERVE_BYTES, WEIGHT_BYTES, DeviceSpec, Plan
from tokenworks.engine.perf.shapes import shape_named
from tokenworks.engine.perf.simulate import modelled
from tokenworks.engine.replica import ReplicaSpec
from tokenworks.gridfile import Device as DeviceTable
from tokenworks.gridfile import Replica as ReplicaTable
from tokenworks.gridfile import Site as SiteTable

SLICE_MEMORY_DEFAULT = 1_000_000_000
"""Bytes for an embedded replica: the model, its KV cache and its buffers, with room."""
GRID_FILE = "the grid file"
ELSEWHERE = "accelerator"
"""The kind of a card of another machine: nothing of ours runs on it."""
OURS = ("embedded", "process")
"""Drivers whose engines run on this machine and are ours to limit."""
SHOWN_MAX = 8
"""Cards in an error's hint."""
_ANY = DeviceSpec(id="", memory_bytes=0, bandwidth_gb_s=0, bf16_tflops=0)
MB = 1_000_000
MIG = ":"


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
        names = ("idle_mw", "busy_mw", "cost_nano_per_hour", "embodied_ug_per_hour")
        figures = {name: [getattr(part, name) for part in known] for name in names}
        sums = {name: None if None in each else sum(each) for name, each in figures.items()}
        return msgspec.structs.replace(known[0], id="+".join(part.id for part in known), **sums)


def devices_of(site: SiteTable, here: Sequence[Device]) -> tuple[Device, ...]:
    """What the site has: all of this machine, or what the grid file lists."""
    return tuple(_device(each, here, _embodied(site, each)) for each in site.devices) if site.devices else tuple(here)


def _device(table: DeviceTable, here: Sequence[Device], embodied_ug: int | None) -> Device:
    """A device of the grid file: what the file says over what was found under this id, else over its data sheet."""
    row = accelerator(table.catalogue) if table.catalogue else None  # a wrong id is told with the nearest right one
    base = next((each for each in here if each.id == table.id), None) or _elsewhere(table, row, here)
    threads, scale = table.threads or base.threads, base.threads

    def said(value: int | None, found: Sourced | None) -> Sourced | None:
        if value is not None:
            return Sourced(value=value, provenance=Provenance.LISTED, source=GRID_FILE)
        return None if found is None else msgspec.structs.replace(found, value=found.value * threads // scale)

    return msgspec.structs.replace(
        base,
        catalogue_id=table.catalogue or base.catalogue_id,
        threads=threads,
        memory_bytes=table.memory_bytes or base.memory_bytes,
        idle_mw=said(table.idle_mw, base.idle_mw),
        max_mw=said(table.max_mw, base.max_mw),
        cost_nano_per_hour=said(table.cost_nano_per_h, base.cost_nano_per_hour),
        embodied_ug_per_hour=embodied_ug,
    )


def _elsewhere(table: DeviceTable, row: Accelerator | None, here: Sequence[Device]) -> Device:
    """Not of this machine, so nothing of this machine is taken for it."""
    card = row is not None and row.memory_mb is not None  # a processor has no fixed size
    threads = WHOLE if card else table.threads
    memory_bytes = table.memory_bytes or (row and row.memory_mb and row.memory_mb * MB)
    if not threads or not memory_bytes:
        raise GridFileError(
            f"device {table.id!r} is not on this machine, and its size is not known",
            hint=f"here: {', '.join(each.id for each in here)}; elsewhere: its catalogue, or its threads and memory",
        )

    def sheet(figure: str) -> Sourced | None:
        mw = getattr(row, figure, None)
        return Sourced(value=mw, provenance=Provenance.LISTED, source=f"{row.id}; {row.source}") if row and mw else None

    return Device(
        id=table.id, catalogue_id=None, name=row.name if row else table.id, vendor=(row and row.vendor) or "unknown",
        kind=ELSEWHERE if card else CPU, threads=threads, memory_bytes=memory_bytes,
        idle_mw=sheet("idle_mw"), max_mw=sheet("board_mw"), cost_nano_per_hour=None,
    )  # fmt: skip


def _embodied(site: SiteTable, table: DeviceTable) -> int | None:
    """Micrograms of CO2 an hour for making a device, and its part of its server, whose devices bear it alike."""
    beside = sum(each.server == table.server for each in site.devices)
    made = [(table, 1), *((server, beside) for server in site.servers if server.name == table.server)]
    known = [m.embodied_ug // (m.life_years * HOURS_PER_YEAR * n) for m, n in made if m.embodied_ug is not None]
    return sum(known) if known else None


def energies(table: ReplicaTable, devices: Sequence[Device], seat: Seat, load: Slice) -> dict[str, Any]:
    """How the engine's model splits the energy of whole cards; nothing where too little is known of model or cards."""
    whole = {(device.id, device.threads): device.catalogue_id for device in devices}
    rows = {whole.get((part.device, part.threads)) or "" for part in seat.parts}
    try:
        made = _made(table, device_spec(accelerator(rows.pop())), len(seat.parts))
    except (BadRequest, NotFound, UnknownModel):
        return {}
    return {} if rows else modelled(made, table.slots, table.context_tokens, load.idle_mw, load.busy_mw)


def _made(table: ReplicaTable, card: DeviceSpec, count: int) -> Plan:
    """Raises UnknownModel where nobody knows the shape of its model."""
    name = (table.upstream_model or table.model).lower()
    precision = next((word for word in WEIGHT_BYTES if word in name), "int4" if "awq" in name else "bf16")
    return Plan(shape=shape_named(name), device=card, precision=precision, engine=table.engine or "", tp=count)


def seats(
    tables: Sequence[ReplicaTable], devices: Sequence[Device], ill: Container[str], cards_taken: list[Booked]
) -> dict[str, Seat]:
    """Seats for a site's replicas, by name. ``cards_taken`` grows: sites of one machine share its accelerators.

    A ``process`` that says nothing else gets a whole accelerator where there is one, everything else the processor.
    Nothing is placed on devices that are ``ill``. Raises GridFileError for a demand that fits nowhere.
    """
    kinds = {device.id: device.kind for device in devices}
    cards = [device for device in devices if device.kind not in (CPU, ELSEWHERE)]

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
    return found | _as_said([table for table in tables if table.name not in found], devices, cards_taken)


def _as_said(tables: Sequence[ReplicaTable], devices: Sequence[Device], cards_taken: list[Booked]) -> dict[str, Seat]:
    """In the order of the file, one slice each. An engine that is not ours has one where the file names an accelerator
    for it, which it has whole, or gives it threads."""
    ours = sum(table.driver in OURS for table in tables)
    found: dict[str, Seat] = {}
    taken: list[Booked] = []
    for table in tables:
        own = [device for device in devices if table.device == device.id or (not table.device and device.kind == CPU)]
        card = bool(own) and own[0].kind != CPU
        if not own or (table.driver not in OURS and table.threads is None and not card):
            found[table.name] = Seat(table.threads or 1)
            continue
        # One thread stays free for the gateway: the engine's threads spin, and would starve it.
        threads = table.threads or (own[0].threads if card else max(1, (own[0].threads - 1) // ours))
        size = own[0].memory_bytes * threads // own[0].threads if card else SLICE_MEMORY_DEFAULT
        booked = cards_taken if own[0].visible else taken
        booked.append(cut(own[0], threads, table.memory_bytes or size, booked))
        limits = limits_of(booked[-1:], own) if table.driver in OURS else Limits()
        found[table.name] = Seat(threads, (booked[-1],), limits)
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
        # A MIG instance works with no other: a process sees only one.
        model=card.id if MIG in card.id else card.catalogue_id or card.name,
        backend=card.vendor,
        memory_mb=card.memory_bytes // MB,
        booked_permille=max(shared, sum(part.threads for part in mine) * WHOLE // card.threads),
        booked_mb=-(-sum(part.memory_bytes for part in mine) // MB),
        used_mb=(card.memory_used_bytes or 0) // MB,
    )


def _demand(table: ReplicaTable, cards: Sequence[Device]) -> Demand:
    """Of memory: what the file says; else weights and the caches of all slots, where the model's shape is known; else
    what engines take of the smallest card."""
    count, share, memory_bytes = table.cards or 1, table.share_permille or WHOLE, table.memory_bytes
    if memory_bytes is None:
        try:
            made = _made(table, _ANY, count)
            caches = table.slots * made.sequence_bytes(table.context_tokens)
            memory_bytes = int(made.weight_bytes + caches + RESERVE_BYTES)
        except UnknownModel:
            sizes = [card.memory_bytes for card in cards if table.vendor in (None, card.vendor) and MIG not in card.id]
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
