"""NVIDIA devices through NVML: ``python -m tokenworks.device.nvml`` prints what nvidia-smi would print for them.

A process of its own, because a call into a broken driver may never return. Where MIG is on, the instances are printed
instead of the card, with ``card:instance`` as their index. Nothing is printed where there is no driver.
"""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Iterator
from typing import Any


def rows(nvml: Any) -> Iterator[tuple[object, ...]]:
    """One row a device: index, UUID, name, bus, total and used MiB, busy percent, watts now, watts at most.

    ``nvml`` is the module ``pynvml``. What a device does not say is an empty cell; one that is lost has no row.
    """

    def said(what: str, *arguments: object) -> Any:
        with contextlib.suppress(nvml.NVMLError):
            return getattr(nvml, f"nvmlDevice{what}")(*arguments)
        return None

    for index in range(nvml.nvmlDeviceGetCount()):
        card = said("GetHandleByIndex", index)
        mode = said("GetMigMode", card) if card else None
        slots = range(said("GetMaxMigDeviceCount", card) or 0) if mode and mode[0] else ()
        parts = {f"{index}:{slot}": said("GetMigDeviceHandleByIndex", card, slot) for slot in slots}
        for name, device in (parts or {str(index): card}).items():
            if device is None:
                continue
            memory, bus, busy = said("GetMemoryInfo", device), said("GetPciInfo", card), None
            watts: list[str | None] = [None, None]
            if not parts:  # an instance has no power of its own
                busy = said("GetUtilizationRates", card)
                milliwatts = said("GetPowerUsage", card), said("GetEnforcedPowerLimit", card)
                watts = [None if mw is None else f"{mw / 1_000:.3f}" for mw in milliwatts]
            total, used = (memory.total >> 20, memory.used >> 20) if memory else (None, None)
            about = (said("GetUUID", device), said("GetName", device), bus and bus.busId)
            yield name, *about, total, used, busy and busy.gpu, *watts


def main() -> None:
    """Print the rows of this machine."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        csv.writer(sys.stdout).writerows(rows(pynvml))


if __name__ == "__main__":
    main()
