"""What is learnt late becomes new entries, and what nobody used can be absorbed by what was served. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tokenworks.core.units import split
from tokenworks.core.words import EnergyLine, Interval, ServiceLine, Word
from tokenworks.site.costing import COLUMNS

_TOTALS = (
    "meter_mj", "idle_mj", "idle_nano", "overhead_mj", "overhead_nano", "residual_mj", "bill_nano", "carbon_ug",
    "idle_device_nano", "market_ug", "water_ul", "idle_embodied_ug",
)  # fmt: skip
_SERVICE = ("cpu_ns", "energy_mj", "energy_nano", "carbon_ug")


def correction(known: Sequence[Interval], again: Interval) -> Interval | None:
    """The entry that makes the ones known of a time, the first and its corrections, add up to what is known ``again``.

    Its figures are differences; None: there are none. Figures are unknown in the sum only where no entry knew them.
    """
    lines = _lines([e.requests for e in known], again.requests, "receipt", COLUMNS, EnergyLine)
    services = _lines([e.services for e in known], again.services, "layer", _SERVICE, ServiceLine)
    totals = _less(again, known, _TOTALS)
    reserved = {name: again.reserved_mj.get(name, 0) for each in (again, *known) for name in each.reserved_mj}
    reserved = {name: mj - sum(each.reserved_mj.get(name, 0) for each in known) for name, mj in reserved.items()}
    if not (lines or services or any(totals.values())):
        return None
    return msgspec.structs.replace(
        again, requests=lines, services=services, reserved_mj=reserved, corrects=len(known), **totals
    )


def _less(new: Word | None, old: Iterable[Word], names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        figures = [getattr(each, name) for each in old]
        now = None if new is None else getattr(new, name)
        nothing = now is None and all(figure is None for figure in figures)
        found[name] = None if nothing else (now or 0) - sum(figure or 0 for figure in figures)
    return found


def _lines(
    known: Sequence[Sequence[Any]], again: Sequence[Any], key: str, names: Sequence[str], kind: Any
) -> tuple[Any, ...]:
    """Differences by key, without those where nothing changed."""
    old: dict[str, list[Any]] = {}
    for line in (line for entry in known for line in entry):
        old.setdefault(getattr(line, key), []).append(line)
    new = {getattr(line, key): line for line in again}
    lines = []
    for name in sorted({*old, *new}):
        figures = _less(new.get(name), old.get(name, []), names)
        more = {}
        if kind is EnergyLine:
            more["ended"] = name in new and new[name].ended and not any(line.ended for line in old.get(name, ()))
        if any(figures.values()) or any(more.values()):
            lines.append(kind(**{key: name}, **figures, **more))
    return tuple(lines)


def fully_loaded(entries: Iterable[Interval]) -> Mapping[str, tuple[int, int]]:
    """Millijoules by receipt: dynamic, and fully loaded with everything but residuals of that period (a day, usually).

    Idle, services and overhead are absorbed by slice time, as the SCI of the Green Software Foundation counts reserved
    hardware. If any slice time was used, the second figures sum to the meter less residuals.
    """
    dynamic, held, shared = dict[str, int](), dict[str, int](), 0
    for entry in entries:
        shared += entry.idle_mj + entry.overhead_mj + sum(line.energy_mj for line in entry.services)
        for line in entry.requests:
            dynamic[line.receipt] = dynamic.get(line.receipt, 0) + line.energy_mj
            held[line.receipt] = held.get(line.receipt, 0) + line.slice_ns
    receipts = sorted(receipt for receipt, ns in held.items() if ns > 0)
    parts = split(shared, [held[receipt] for receipt in receipts]) if receipts else []
    absorbed = dict(zip(receipts, parts, strict=True))
    return {receipt: (mj, mj + absorbed.get(receipt, 0)) for receipt, mj in dynamic.items()}
