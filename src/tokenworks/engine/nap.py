"""The adapter of a replica that sleeps: the first request wakes it, and all that come meanwhile wait together."""

from __future__ import annotations

import asyncio

from tokenworks.core.errors import EngineDown
from tokenworks.core.words import Request
from tokenworks.engine.adapter import Adapter, Completion, TokenStream


class Nap(Adapter):
    """Stands in for the engine while it sleeps; to be asked, it is not woken. How many wait here is bounded by the
    replica's own count."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        """A request has come."""
        self._over: asyncio.Future[Adapter | None] = asyncio.get_running_loop().create_future()

    def end(self, adapter: Adapter | None) -> None:
        """It is awake and speaks through this; None: it could not be woken."""
        if not self._over.done():
            self._over.set_result(adapter)

    async def _awake(self) -> Adapter:
        self.wanted.set()
        adapter = await asyncio.shield(self._over)
        if adapter is None:
            raise EngineDown("The replica slept and could not be woken.")
        return adapter

    async def stream(self, request: Request) -> TokenStream:
        """See ``Adapter.stream``."""
        return await (await self._awake()).stream(request)

    async def complete(self, request: Request) -> Completion:
        """See ``Adapter.complete``."""
        return await (await self._awake()).complete(request)

    async def close(self) -> None:
        """See ``Adapter.close``."""
        self.end(None)
