"""The guard: looks at this machine's accelerators again and again, and takes replicas out whose cards are gone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tokenworks.core.clock import Clock
from tokenworks.device.discovery import CPU, Device
from tokenworks.device.survey import Survey, survey
from tokenworks.engine.record import Replica

LOOK_S_MAX = 10
MISSED_MAX = 2
"""Looks in a row that a card may be missing from: a tool may fail once."""


class Guard:
    """Of all sites. A vendor whose tool hangs tells nothing: its cards count as there."""

    def __init__(
        self, devices: Mapping[str, Sequence[Device]], replicas: Mapping[str, Replica], clock: Clock, every_s: int
    ) -> None:
        self._devices, self._replicas, self._clock = devices, replicas, clock
        self._every_s = min(every_s, LOOK_S_MAX)
        self._now: dict[str, Device] = {}
        self._missed: Counter[str] = Counter()
        """Looks in a row, by UUID."""

    async def run(self) -> None:
        """Look until cancelled; where there is no accelerator there is nothing to see."""
        while any(device.kind != CPU for site in self._devices.values() for device in site):
            self.see(await asyncio.to_thread(survey))
            await self._clock.sleep(self._every_s)

    def see(self, seen: Survey) -> None:
        """What one look showed."""
        self._now = {device.uuid: device for device in seen.devices if device.uuid}
        for uuid, device in {d.uuid: d for site in self._devices.values() for d in site if d.uuid}.items():
            if uuid in self._now:
                self._missed.pop(uuid, None)
            elif device.vendor not in seen.silent:
                self._missed[uuid] += 1
        for replica in self._replicas.values():
            booked, mine = replica.spec.booked, self._devices[replica.spec.site]
            gone = [device.id for device in mine if device.id in booked and self._gone(device)]
            replica.lost = f"{' and '.join(gone)}: gone" if gone else ""

    def _gone(self, device: Device) -> bool:
        return self._missed[device.uuid or ""] >= MISSED_MAX

    def status(self, site: str) -> list[dict[str, Any]]:
        """For people and programs: what of each device is booked, and beside it what is measured."""
        found: list[dict[str, Any]] = []
        specs = [replica.spec for replica in self._replicas.values() if replica.spec.site == site]
        for device in self._devices[site]:
            parts, now = [s.booked[device.id] for s in specs if device.id in s.booked], self._now.get(device.uuid or "")
            found.append({
                "device": device.id, "name": device.name, "gone": self._gone(device),
                "memory_bytes": device.memory_bytes, "memory_booked_bytes": sum(size for _, size in parts),
                "memory_measured_bytes": now and now.memory_used_bytes,
                "booked_permille": sum(threads for threads, _ in parts) * 1_000 // device.threads,
                "busy_permille": now and now.busy_permille, "power_mw": now and now.power_mw and now.power_mw.value,
            })  # fmt: skip
        return found
