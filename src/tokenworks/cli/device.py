"""``tokenworks device``: the devices of this machine, and the catalogue of accelerators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from tokenworks.cli import out
from tokenworks.cli.talk import Json
from tokenworks.core.errors import NotFound, nearest
from tokenworks.datadir import data_directory, write_private
from tokenworks.device.catalogue import catalogue
from tokenworks.device.discovery import Device
from tokenworks.device.survey import changes, survey


def device_list(*, forget: Annotated[bool, Parameter(negative=())] = False, as_json: Json = False) -> int:
    """The devices of this machine, what is wrong with them, and which are new or lost since the last look.

    Parameters
    ----------
    forget:
        Do not ask for lost devices again: they were taken out on purpose.
    """
    seen, file = survey(), data_directory() / "devices.json"
    known = _known(file)
    came = changes(seen.devices if known is None else known, seen.devices)
    if file.parent.is_dir():
        # A lost device stays on the list until it is back or forgotten: one look does not make it right.
        write_private(file, msgspec.json.encode((*seen.devices, *(() if forget else came.lost))))
    if as_json:
        new = [device.id for device in came.new]
        out.put_json({"devices": seen.devices, "new": new, "lost": came.lost, "findings": seen.findings})
        return 0
    rows = [_row(device, "new" if device in came.new else "") for device in seen.devices]
    rows += [_row(device, "LOST") for device in came.lost]
    columns = ("device", "name", "compute", "memory", "used", "busy", "power", "idle to most", "catalogue", "")
    out.console().print(out.table("", columns, rows, right=columns[2:8]))
    for finding in seen.findings:
        out.console().print(f"{finding.about}: {finding.what}" + (f" ({finding.hint})" if finding.hint else ""))
    return 0


def _known(file: Path) -> list[Device] | None:
    """The devices of the last look; None when there was none, or nothing of it can be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Device])
    except (OSError, msgspec.DecodeError):
        return None


def _row(device: Device, state: str) -> tuple[object, ...]:
    idle, most = (f"{end.value / 1_000:,.1f}" if end else "?" for end in (device.idle_mw, device.max_mw))
    return (
        device.id,
        device.name,
        f"{device.threads} threads" if device.kind == "cpu" else "whole",
        _shown(device.memory_bytes, 1e9, "GB"),
        _shown(device.memory_used_bytes, 1e9, "GB"),
        _shown(device.busy_permille, 10, "%"),
        _shown(device.power_mw.value if device.power_mw else None, 1_000, "W"),
        f"{idle} to {most} W",
        device.catalogue_id,
        state,
    )


def _shown(value: int | None, scale: float, unit: str) -> str | None:
    return None if value is None else f"{value / scale:,.1f} {unit}"


def device_catalogue(*, vendor: str | None = None, as_json: Json = False) -> int:
    """Accelerators with the figures of their data sheets; what no source says is left out.

    Parameters
    ----------
    vendor:
        Only this vendor's.
    as_json:
        Print JSON, with the source and the confidence of each row.
    """
    vendors = {row.vendor.lower(): row.vendor for row in catalogue().values() if row.vendor}
    if vendor is not None and vendor.lower() not in vendors:
        near = vendors.get(nearest(vendor.lower(), vendors) or "")
        hint = f"did you mean {near!r}?" if near else "there is: " + ", ".join(sorted(vendors.values()))
        raise NotFound(f"no vendor {vendor!r} in the catalogue", hint=hint)
    rows = [row for row in catalogue().values() if vendor is None or (row.vendor or "").lower() == vendor.lower()]
    if as_json:
        out.put_json(rows)
        return 0
    scaled = []
    for r in rows:
        figures = (r.memory_mb, r.bandwidth_mb_s, r.bf16_dense_gflops, r.fp8_dense_gflops, r.board_mw, r.idle_mw)
        known = (None if figure is None else f"{figure / 1_000:,g}" for figure in figures)
        scaled.append((r.id, *known, r.backend, r.confidence))
    columns = ("accelerator", "GB", "GB/s", "BF16 TFLOP/s", "FP8 TFLOP/s", "W", "W idle", "backend", "confidence")
    out.console().print(out.table("", columns, scaled, right=columns[1:7]))
    return 0
