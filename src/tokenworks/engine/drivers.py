"""Drivers keep a replica up: the port, its pace, and the driver for engines that somebody else runs."""

from __future__ import annotations

import asyncio
from typing import Protocol

from tokenworks.core.clock import Clock
from tokenworks.core.errors import GridFileError
from tokenworks.core.words import Word
from tokenworks.engine.adapter import Adapter
from tokenworks.engine.openai_compatible import OpenAICompatible
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import State, came_up, started, stopped, went_down

CONNECTIONS_SPARE = 8
"""Connections beyond slots and waiting places: those that close while new ones open."""


class Pace(Word, frozen=True):
    """How often drivers look and how patient they are, in seconds."""

    load_poll_s: float = 0.05
    load_s_max: float = 600.0
    health_s: float = 1.0
    external_s: float = 2.0
    health_timeout_s: float = 2.0
    missed_max: int = 3
    """Health checks in a row that a ready replica may miss before it counts as hung."""
    stop_s: float = 3.0
    """How long a child may take to leave after its lifeline was cut, before it is killed."""


class Driver(Protocol):
    """What keeps one replica up until it is cancelled."""

    async def run(self, replica: Replica) -> None:
        """Never returns. On cancellation the replica is cold and nothing of it is left running."""
        ...


async def checked(adapter: Adapter, timeout_s: float) -> bool:
    """One health check that surely ends."""
    try:
        async with asyncio.timeout(timeout_s):
            return await adapter.healthy()
    except TimeoutError:
        return False


class ExternalDriver:
    """Watches an engine that somebody else runs: asks after its health, and nothing more."""

    def __init__(self, clock: Clock, pace: Pace) -> None:
        self._clock, self._pace = clock, pace

    async def run(self, replica: Replica) -> None:
        """See ``Driver.run``. Raises GridFileError when the replica has no usable URL."""
        adapter = self._adapter_for(replica)
        replica.speaks_through(adapter)
        missed = 0
        try:
            replica.turn(started)
            while True:
                if await checked(adapter, self._pace.health_timeout_s):
                    missed, replica.why = 0, ""
                    replica.turn(came_up)
                else:
                    missed += 1
                    self._missed(replica, missed)
                await self._clock.sleep(self._pace.external_s)
        finally:
            replica.speaks_through(None)
            replica.turn(stopped)
            await adapter.close()

    def _missed(self, replica: Replica, missed: int) -> None:
        patient = replica.life.state is State.READY and missed < self._pace.missed_max
        if not patient and replica.life.state is not State.FAILED:
            replica.why = f"({replica.spec.url} does not answer health checks)"
            replica.restarts += replica.life.state is State.READY
            replica.turn(went_down)

    @staticmethod
    def _adapter_for(replica: Replica) -> OpenAICompatible:
        spec = replica.spec
        try:
            return OpenAICompatible(
                spec.url or "",
                api_key=spec.api_key,
                upstream_model=spec.upstream_model,
                connections_max=spec.slots + replica.waiting_max + CONNECTIONS_SPARE,
            )
        except ValueError as error:
            raise GridFileError(f"replica {spec.name!r}: {error}", hint='url = "http://host:port"') from error
