"""Slices: shares of a device's compute and memory, each with its part of the power and the cost.

What is booked stands in ``Booked``, what is measured in ``Took``; neither is ever taken for the other. ``Limits`` is
what the platform can be told: processors and memory of a child, the environment of an accelerator's process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

from tokenworks.core.errors import TokenworksError
from tokenworks.core.words import Provenance, Word
from tokenworks.device.discovery import CPU, Device


class Booked(Word, frozen=True):
    """Part of one device."""

    id: str
    """``<device>/<n>``."""
    device: str
    threads: int
    """Hardware threads of a processor, thousandths of an accelerator."""
    memory_bytes: int


class Slice(Booked, frozen=True):
    """Part of one device of which it is known what it draws."""

    idle_mw: int
    """Its share of the device's idle power."""
    busy_mw: int
    """Power drawn above idle when fully busy."""
    power: Provenance
    cost_nano_per_hour: int | None
    embodied_ug_per_hour: int | None = None
    """None: unknown."""


class Limits(Word, frozen=True):
    """What a process may take, as far as the platform enforces it."""

    cpus: tuple[int, ...] = ()
    """Processors it may run on; empty: all."""
    memory_bytes: int | None = None
    """Booked memory of this machine, for a slice of its processor."""
    env: dict[str, str] = {}
    not_enforced: str | None = None


class Took(Word, frozen=True):
    """What a process was measured to take."""

    memory_bytes: int
    cpu_ns: int
    """Processor time since its start, of all its threads."""


def cut(device: Device, threads: int, memory_bytes: int, taken: Sequence[Booked]) -> Booked:
    """Book ``threads`` and ``memory_bytes`` of what ``taken`` leaves of the device: a Slice, if its power is known.

    Shares round down, so the slices of a device never sum above it. Raises TokenworksError when there is no room.
    """
    others = [part for part in taken if part.device == device.id]
    _must_fit(device, "threads", threads, device.threads - sum(s.threads for s in others), least=1)
    _must_fit(device, "bytes of memory", memory_bytes, device.memory_bytes - sum(s.memory_bytes for s in others))
    numbers = {s.id for s in others}
    id_ = next(each for n in range(len(others) + 1) if (each := f"{device.id}/{n}") not in numbers)
    idle, most, cost, embodied = device.idle_mw, device.max_mw, device.cost_nano_per_hour, device.embodied_ug_per_hour
    if idle is None or most is None:
        return Booked(id=id_, device=device.id, threads=threads, memory_bytes=memory_bytes)
    return Slice(
        id=id_,
        device=device.id,
        threads=threads,
        memory_bytes=memory_bytes,
        idle_mw=idle.value * threads // device.threads,
        busy_mw=max(0, most.value - idle.value) * threads // device.threads,
        power=most.provenance if most.provenance == idle.provenance else Provenance.MODELLED,
        cost_nano_per_hour=None if cost is None else cost.value * threads // device.threads,
        embodied_ug_per_hour=None if embodied is None else embodied * threads // device.threads,
    )


def _must_fit(device: Device, what: str, wanted: int, left: int, least: int = 0) -> None:
    if wanted < least:
        raise TokenworksError(f"a slice needs at least {least} {what}, not {wanted}")
    if wanted > left:
        raise TokenworksError(
            f"{wanted:,} {what} do not fit on {device.id}: {left:,} are left",
            hint=f"ask for at most {left:,} {what}, or release a slice of {device.id}",
        )


def limits_of(slices: Sequence[Booked], devices: Sequence[Device]) -> Limits:
    """How to hold one process to its parts, one of each device in ``devices``: one processor, or cards of one vendor.

    A whole card needs only the visible-device variable of its vendor. A part of an NVIDIA card is enforced by MPS, when
    its daemon runs (NVIDIA Multi-Process Service, environment variables); a MIG instance is a device of its own. The
    parts of other vendors' cards are enforced by nobody.
    """
    first, device = slices[0], devices[0]
    if device.kind == CPU:
        return Limits(memory_bytes=first.memory_bytes)
    names = [value for each in devices for value in each.visible.values()]
    env = dict.fromkeys(device.visible, ",".join(names))
    if first.threads >= device.threads:
        return Limits(env=env)
    if device.vendor == "NVIDIA":
        memory = ",".join(f"{place}={each.memory_bytes >> 20}M" for place, each in enumerate(slices))
        share = str(max(1, 100 * first.threads // device.threads))
        return Limits(
            env=env | {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": share, "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": memory}
        )
    return Limits(env=env, not_enforced=f"a part of {device.id}: {device.vendor} cards are only shown or hidden whole")


def share_out(wanted: Sequence[int], cpus: Sequence[int]) -> list[tuple[int, ...]]:
    """Processors for processes that want so many threads each: disjoint while there are enough of them."""
    around = cycle(cpus)
    return [tuple(sorted(islice(around, min(threads, len(cpus))))) for threads in wanted]


def overrun(limits: Limits, took: Took) -> str | None:
    """How a process broke what was booked for it, or None: the sentence that its operator reads."""
    if limits.memory_bytes is None or took.memory_bytes <= limits.memory_bytes:
        return None
    return f"it takes {took.memory_bytes:,} bytes of memory, booked are {limits.memory_bytes:,}"
