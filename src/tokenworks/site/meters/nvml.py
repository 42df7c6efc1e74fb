"""NVML: energy and power of boards, by NVIDIA's driver library."""

from __future__ import annotations

import asyncio
from typing import Any

from tokenworks.core.clock import Clock
from tokenworks.core.errors import Unreachable
from tokenworks.site.meters.meter import Sample


class Nvml:
    """Boards by UUID: the energy counter (mJ since the driver was loaded; Volta and newer) and power.

    ``nvml`` is the module ``pynvml``. Never an instance of a shared board: it would show the whole board's energy.
    """

    def __init__(self, clock: Clock, nvml: Any) -> None:
        self._clock, self._nvml = clock, nvml

    def _read(self) -> dict[str, Sample]:
        nvml, found = self._nvml, dict[str, Sample]()

        def said(what: str, handle: Any) -> Any:
            try:
                return getattr(nvml, f"nvmlDeviceGet{what}")(handle)
            except nvml.NVMLError:
                return None

        try:
            nvml.nvmlInit()
            for index in range(nvml.nvmlDeviceGetCount()):
                if (handle := said("HandleByIndex", index)) and (uuid := said("UUID", handle)):
                    mj, mw = said("TotalEnergyConsumption", handle), said("PowerUsage", handle)
                    found[uuid] = Sample(self._clock.now_ns(), mj, mw)
        except nvml.NVMLError as error:
            raise Unreachable(f"NVML: {error}") from error
        return found

    async def read(self) -> dict[str, Sample]:
        """As ``Source`` says; in a thread, as a driver may take its time."""
        return await asyncio.to_thread(self._read)
