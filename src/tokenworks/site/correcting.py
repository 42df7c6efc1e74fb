"""What is learnt late becomes new entries. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from tokenworks.core.words import FIGURES, EnergyLine, Interval, ServiceLine, Word

_TOTALS = (
    "meter_mj", "idle_mj", "idle_nano", "overhead_mj", "overhead_nano", "residual_mj", "bill_nano", "carbon_ug",
    "idle_device_nano", "market_ug", "water_ul", "idle_embodied_ug",
)  # fmt: skip
_SERVICE = ("cpu_ns", "energy_mj", "energy_nano", "carbon_ug")


def correction(known: Sequence[Interval], again: Interval) -> Interval | None:
    """The entry that makes the ones known of a time, the first and its corrections, add up to what is known ``again``.

    Its figures are differences; None: there are none. Figures are unknown in the sum only where no entry knew them.
    """
    lines = _lines([e.requests for e in known], again.requests, "receipt", FIGURES, EnergyLine)
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
