"""The fleet: all replicas of this process and the drivers that keep them up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from tokenworks.core.clock import Clock
from tokenworks.engine.drivers import Driver, ExternalDriver, Pace
from tokenworks.engine.local import EmbeddedDriver, ProcessDriver
from tokenworks.engine.on_ray import RayDriver
from tokenworks.engine.pull import Report
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import ReplicaSpec

__all__ = ["Fleet", "Pace", "Replica"]

log = logging.getLogger(__name__)


class Fleet:
    """Starts, watches and stops replicas; the router reads ``replicas``."""

    def __init__(
        self,
        specs: Iterable[ReplicaSpec],
        clock: Clock,
        log_dir: Path,
        cache_dir: Path,
        *,
        report: Report = log.info,
        pace: Pace | None = None,
    ) -> None:
        pace = pace or Pace()
        self.replicas: dict[str, Replica] = {spec.name: Replica(spec, clock) for spec in specs}
        self._drivers: dict[str, Driver] = {
            "embedded": EmbeddedDriver(clock, pace, log_dir, cache_dir, report),
            "external": ExternalDriver(clock, pace),
            "process": ProcessDriver(clock, pace, log_dir),
            "ray": RayDriver(clock, pace),
        }
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Start every driver; returns without waiting for any replica."""
        for name, replica in self.replicas.items():
            replica.changed = self._changed.set
            driver = self._drivers[replica.spec.driver]
            task = asyncio.create_task(driver.run(replica), name=f"replica {name}")
            task.add_done_callback(_tell)
            self._tasks.append(task)

    async def wait_ready(self, timeout_s: float) -> bool:
        """Wait until any replica is ready; False when none is in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._any_ready():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Stop every driver and wait until nothing of them is left. Streams in the middle break."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def _any_ready(self) -> bool:
        return any(replica.ready for replica in self.replicas.values())


def _tell(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s has no driver any more: %s", task.get_name(), error)
