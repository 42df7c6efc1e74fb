"""``tokenworks device``: the devices of this machine, and the catalogue of accelerators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tokenworks.cli import out
from tokenworks.cli.out import Answer, command
from tokenworks.cli.reach import get, grid_key
from tokenworks.core.errors import NotFound, nearest
from tokenworks.core.files import write_private
from tokenworks.datadir import data_directory, read_run
from tokenworks.device.catalogue import catalogue
from tokenworks.device.discovery import CPU, Device
from tokenworks.device.survey import changes, survey


@command
def device_list(*, forget: out.Flag = False) -> Answer:
    """The devices of this machine, what is wrong with them, and which are new or lost since the last look.

    Args:
        forget: Do not ask for lost devices again: they were taken out on purpose.
    """
    seen, file = survey(), data_directory() / "devices.json"
    known = _known(file)
    came = changes(seen.devices if known is None else known, seen.devices)
    if file.parent.is_dir():
        # A lost device stays on the list until it is back or forgotten: one look does not make it right.
        write_private(file, msgspec.json.encode((*seen.devices, *(() if forget else came.lost))))
    new, booked = [device.id for device in came.new], _booked()
    data = {"devices": seen.devices, "new": new, "lost": came.lost, "findings": seen.findings, "booked": booked}
    rows = [_row(device, booked, "new" if device in came.new else "") for device in seen.devices]
    rows += [_row(device, booked, "LOST") for device in came.lost]
    figures = ("compute", "memory", "booked", "used", "busy", "power", "idle to most")
    columns = ("device", "name", *figures, "catalogue", "")
    findings = [f"{each.about}: {each.what}" + (f" ({each.hint})" if each.hint else "") for each in seen.findings]
    return Answer(data, [out.table("", columns, rows, right=figures), *findings])


def _known(file: Path) -> list[Device] | None:
    """The devices of the last look; None when there was none, or nothing of it can be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Device])
    except (OSError, msgspec.DecodeError):
        return None


def _booked() -> Counter[str]:
    """Bytes by device that the running grid has booked on it; empty when none runs."""
    booked = Counter[str]()
    if read_run(data_directory()) is not None:
        for site in get("/v1/status", grid_key(admin=True))["sites"]:
            booked.update({each["device"]: each["memory_booked_bytes"] for each in site["devices"]})
    return booked


def _row(device: Device, booked: Mapping[str, int], state: str) -> tuple[object, ...]:
    idle, most = (f"{end.value / 1_000:,.1f}" if end else "?" for end in (device.idle_mw, device.max_mw))
    return (
        device.id, device.name, f"{device.threads} threads" if device.kind == CPU else "whole",
        shown(device.memory_bytes, 1e9, "GB"), shown(booked.get(device.id), 1e9, "GB"),
        shown(device.memory_used_bytes, 1e9, "GB"), shown(device.busy_permille, 10, "%"),
        shown(device.power_mw.value if device.power_mw else None, 1_000, "W"),
        f"{idle} to {most} W", device.catalogue_id, state,
    )  # fmt: skip


def shown(value: int | None, scale: float, unit: str) -> str | None:
    """A figure in a larger unit; None: unknown."""
    return None if value is None else f"{value / scale:,.1f} {unit}"


@command
def device_catalogue(*, vendor: str | None = None) -> Answer:
    """Accelerators with the figures of their data sheets; what no source says is left out. JSON has also the sources.

    Args:
        vendor: Only this vendor's.
    """
    vendors = {row.vendor.lower(): row.vendor for row in catalogue().values() if row.vendor}
    if vendor is not None and vendor.lower() not in vendors:
        near = vendors.get(nearest(vendor.lower(), vendors) or "")
        hint = f"did you mean {near!r}?" if near else "there is: " + ", ".join(sorted(vendors.values()))
        raise NotFound(f"no vendor {vendor!r} in the catalogue", hint=hint)
    rows = [row for row in catalogue().values() if vendor is None or (row.vendor or "").lower() == vendor.lower()]
    scaled = []
    for r in rows:
        figures = (r.memory_mb, r.bandwidth_mb_s, r.bf16_dense_gflops, r.fp8_dense_gflops, r.board_mw, r.idle_mw)
        known = (None if figure is None else f"{figure / 1_000:,g}" for figure in figures)
        scaled.append((r.id, *known, r.backend, r.confidence))
    columns = ("accelerator", "GB", "GB/s", "BF16 TFLOP/s", "FP8 TFLOP/s", "W", "W idle", "backend", "confidence")
    return Answer(rows, [out.table("", columns, scaled, right=columns[1:7])])
