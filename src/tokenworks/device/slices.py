"""Slices: shares of a device's threads and memory, each with its part of the power and the cost."""

from __future__ import annotations

from collections.abc import Sequence

from tokenworks.core.errors import TokenworksError
from tokenworks.core.words import Provenance, Word
from tokenworks.device.discovery import Device


class Slice(Word, frozen=True):
    """Part of one device."""

    id: str
    """``<device>/<n>``."""
    device: str
    threads: int
    memory_bytes: int
    idle_mw: int
    """Its share of the device's idle power."""
    busy_mw: int
    """Power drawn above idle when fully busy."""
    power: Provenance
    cost_nano_per_hour: int | None
    """None: unknown."""


def cut(device: Device, threads: int, memory_bytes: int, taken: Sequence[Slice]) -> Slice:
    """Cut a slice of ``threads`` and ``memory_bytes`` from what ``taken`` leaves of the device.

    Shares round down, so the slices of a device never sum above it. Raises TokenworksError when the slice does not
    fit, or when the device's power is unknown: its energy could not be accounted for.
    """
    others = [slice_ for slice_ in taken if slice_.device == device.id]
    _must_fit(device, "threads", threads, device.threads - sum(s.threads for s in others), least=1)
    _must_fit(device, "bytes of memory", memory_bytes, device.memory_bytes - sum(s.memory_bytes for s in others))
    idle, most, cost = device.idle_mw, device.max_mw, device.cost_nano_per_hour
    if idle is None or most is None:
        raise TokenworksError(
            f"nothing is known about the power of {device.id} ({device.name})",
            hint="state its idle and its greatest power, or add a row to the catalogue",
        )
    numbers = {s.id for s in others}
    number = next(n for n in range(len(others) + 1) if f"{device.id}/{n}" not in numbers)
    return Slice(
        id=f"{device.id}/{number}",
        device=device.id,
        threads=threads,
        memory_bytes=memory_bytes,
        idle_mw=idle.value * threads // device.threads,
        busy_mw=max(0, most.value - idle.value) * threads // device.threads,
        power=most.provenance if most.provenance == idle.provenance else Provenance.MODELLED,
        cost_nano_per_hour=None if cost is None else cost.value * threads // device.threads,
    )


def _must_fit(device: Device, what: str, wanted: int, left: int, least: int = 0) -> None:
    if wanted < least:
        raise TokenworksError(f"a slice needs at least {least} {what}, not {wanted}")
    if wanted > left:
        raise TokenworksError(
            f"{wanted:,} {what} do not fit on {device.id}: {left:,} are left",
            hint=f"ask for at most {left:,} {what}, or release a slice of {device.id}",
        )
