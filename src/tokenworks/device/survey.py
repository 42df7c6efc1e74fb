"""The survey: all devices of this machine, what is wrong with them, and what changed since the last look."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import NamedTuple

import msgspec

from tokenworks.core.words import Provenance, Sourced, Word
from tokenworks.device.catalogue import recognise
from tokenworks.device.discovery import Device, Names, Read, discover, list_names, read_text
from tokenworks.device.tools import ENDLESS, Run, run_tool
from tokenworks.device.vendors import Raw, Vendor, vendors

HEALTHY, CHECK = ("OK", "Available"), "check the driver and its tool"
MEMORY_BYTES_MAX, POWER_MW_MAX = 1 << 50, 100_000_000
"""What a tool says beyond these is garbage."""
NAME_CHARS_MAX, WHOLE = 120, 1_000


class Finding(Word, frozen=True):
    """Something that an operator should know."""

    about: str
    what: str
    hint: str | None = None


class Survey(Word, frozen=True):
    """One look at this machine."""

    devices: tuple[Device, ...]
    findings: tuple[Finding, ...]
    silent: frozenset[str] = frozenset()
    """Vendors whose tool did not end, so that nothing is known of their cards."""


class Changes(NamedTuple):
    """What one survey has and another has not."""

    new: tuple[Device, ...]
    lost: tuple[Device, ...]


class Ports(NamedTuple):
    """What a survey looks through."""

    read: Read = read_text
    names: Names = list_names
    run: Run = run_tool


def survey(ports: Ports = Ports(), *, currency: str = "USD") -> Survey:  # noqa: B008 - immutable
    """Ask for the processor and every vendor's devices, all vendors at once. Never raises: troubles are findings."""
    on_bus = _on_bus(ports)
    with ThreadPoolExecutor(len(vendors())) as pool:
        asked = list(pool.map(lambda vendor: _ask(vendor, on_bus[vendor.prefix], ports.run), vendors()))
    devices = discover(ports.read, currency=currency, names=ports.names)
    findings = [] if devices else [Finding(about="processor", what="this machine does not say what it has")]
    for found, told in asked:
        devices += found
        findings += told
    silent = frozenset(each.about for each in findings if ENDLESS in each.what)
    return Survey(devices=tuple(devices), findings=tuple(findings), silent=silent)


def changes(before: Sequence[Device], after: Sequence[Device]) -> Changes:
    """Devices that came and went. The same card in another slot is no change; another card in the same slot is two."""
    old, new = ({device.uuid or device.id: device for device in devices} for devices in (before, after))
    return Changes(
        new=tuple(device for key, device in new.items() if key not in old),
        lost=tuple(device for key, device in old.items() if key not in new),
    )


def _on_bus(ports: Ports) -> Counter[str]:
    """How many devices of each vendor are on the PCI bus."""
    count: Counter[str] = Counter()
    for name in ports.names("/sys/bus/pci/devices"):
        maker = (ports.read(f"/sys/bus/pci/devices/{name}/vendor") or "").strip()
        sort = ports.read(f"/sys/bus/pci/devices/{name}/class") or ""
        count.update(v.prefix for v in vendors() if v.pci == maker and sort.startswith(v.pci_classes))
    return count


def _ask(vendor: Vendor, on_bus: int, run: Run) -> tuple[list[Device], list[Finding]]:
    """Devices and findings of one vendor. No tool and nothing on the bus is no finding: there are none of its cards."""
    trouble, absent = "", True
    for way in vendor.ways:
        if way.on_bus_only and not on_bus:
            continue
        ran = [run(command) for command in way.commands]
        tool = way.commands[-1][-1].rpartition(".")[2] if way.commands[-1][0] == "python" else way.commands[-1][0]
        troubles = list(dict.fromkeys(each.trouble for each in ran if each.trouble))
        absent = absent and all(each.absent for each in ran)
        outputs = [each.out for each in ran if each.out.strip()]
        raws: list[Raw] = []
        try:
            raws = way.parse(outputs) if outputs else []
        except Exception as error:  # whatever a vendor's tool printed, it must not hide the other vendors' devices
            troubles.append(f"what {tool} prints cannot be read ({type(error).__name__})")
        made = (_device(vendor, raw, f"read from {tool}") for raw in raws)
        if devices := {device.id: device for device in made if device is not None}:
            return _told_apart(list(devices.values())), _findings(vendor, list(devices), raws, troubles, on_bus)
        trouble = "; ".join(troubles) or f"{tool} shows no device"
    what = f"{on_bus} on the bus, but {trouble}" if on_bus else trouble
    return [], [] if absent and not on_bus else [Finding(about=vendor.name, what=what, hint=CHECK)]


def _findings(
    vendor: Vendor, ids: Sequence[str], raws: Sequence[Raw], troubles: Sequence[str], on_bus: int
) -> list[Finding]:
    found = [Finding(about=vendor.name, what=trouble, hint=CHECK) for trouble in troubles]
    if on_bus > (cards := len({id_.partition(":")[0] for id_ in ids})):
        what = f"{on_bus} on the bus, but only {cards} can be used"
        found.append(Finding(about=vendor.name, what=what, hint="one fell off, or this container may not see it"))
    ill = [(f"{vendor.prefix}{raw['index']}", raw["health"]) for raw in raws if raw.get("health")]
    return found + [Finding(about=id_, what=f"its health is {health}") for id_, health in ill if health not in HEALTHY]


def _told_apart(devices: Sequence[Device]) -> list[Device]:
    """Several chips on one card may share their place on the bus: their ids tell them apart."""
    places = Counter(device.uuid for device in devices)
    replace = msgspec.structs.replace
    return [d if places[d.uuid] == 1 else replace(d, uuid=f"{d.uuid}/{d.id}") for d in devices]


def _device(vendor: Vendor, raw: Raw, source: str) -> Device | None:
    """A device from what its tool says; None when it has no name or nobody knows its memory."""
    name = "".join(c for c in raw.get("name", "") if c.isprintable())[:NAME_CHARS_MAX]
    total = _whole(raw.get("total"), 1 << 20, MEMORY_BYTES_MAX)
    row = recognise(vendor.name, name, total)
    memory = total or (row.memory_mb * 1_000_000 if row and row.memory_mb else None)
    if not name or not memory:
        return None
    limit = _whole(raw.get("limit"), 1_000, POWER_MW_MAX)
    uuid = next((raw[key] for key in ("uuid", "bus") if re.fullmatch(r"[\w:.-]{3,80}", raw.get(key, ""))), None)
    idle, board, sheet = (row.idle_mw, row.board_mw, f"{row.id}; {row.source}") if row else (None, None, "")
    return Device(
        id=f"{vendor.prefix}{raw['index']}", catalogue_id=row.id if row else None, name=name, vendor=vendor.name,
        kind=vendor.kind, threads=WHOLE, memory_bytes=memory, idle_mw=_said(idle, Provenance.LISTED, sheet),
        max_mw=_said(limit or board, Provenance.LISTED, f"power limit {source}" if limit else sheet),
        cost_nano_per_hour=None, uuid=uuid,
        visible={vendor.visible: uuid if vendor.by_uuid and uuid else raw["index"]},
        memory_used_bytes=_whole(raw.get("used"), 1 << 20, memory), busy_permille=_whole(raw.get("busy"), 10, 1_000),
        power_mw=_said(_whole(raw.get("power"), 1_000, POWER_MW_MAX), Provenance.MEASURED, source),
    )  # fmt: skip


def _said(value: int | None, provenance: Provenance, source: str) -> Sourced | None:
    return None if value is None else Sourced(value=value, provenance=provenance, source=source)


def _whole(text: str | None, scale: int, most: int) -> int | None:
    """``"96.66W"`` times 1,000 -> 96660; None for what is no number ("N/A", "[Unknown Error]", "-1") or senseless."""
    match = re.match(r"\s*(\d{1,12}(?:\.\d{1,6})?)", text or "")
    value = int(Fraction(match[1]) * scale) if match else None
    return value if value is not None and value <= most else None
