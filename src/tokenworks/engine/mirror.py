"""A fleet that another process keeps: its replicas as this one sees them. It starts, watches and ends no engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tokenworks.core.clock import Clock
from tokenworks.core.words import Word
from tokenworks.device.slices import Took
from tokenworks.engine.adapter import Engine, Load, Nap
from tokenworks.engine.adapters import adapter_for
from tokenworks.engine.record import FAILED_MAX, Replica
from tokenworks.engine.replica import Address, Life, ReplicaSpec, State, went_down

_FIGURES = ("restarts", "wake_ns", "load", "took")
"""What a mirror takes over as it is."""


class ReplicaNow(Word, frozen=True):
    """What the keeper of a replica tells of it."""

    name: str
    life: Life
    address: Address | None
    elsewhere: int
    """Requests that are with it from others than the one who is told."""
    restarts: int
    why: str
    wake_ns: int | None
    load: Load | None
    took: Took | None


class Use(Word, frozen=True):
    """What a mirror tells back of one replica."""

    running: int
    served: int
    """Requests ended since it was last told."""
    out: str | None = None
    """Why it got no more requests: too many answers failed."""
    wanted: bool = False
    """A request waits for it to wake."""


def now_of(replica: Replica, theirs: int) -> ReplicaNow:
    """A replica for a mirror that has so many requests with it."""
    same = {name: getattr(replica, name) for name in ("life", "address", "why", *_FIGURES)}
    return ReplicaNow(name=replica.spec.name, elsewhere=max(0, replica.running - theirs), **same)


def used(replica: Replica, use: Use, elsewhere: int) -> None:
    """For its keeper: what a mirror told, and how many requests all mirrors have with it."""
    replica.meanwhile(elsewhere, use.served)
    if use.wanted and replica.life.state is State.ASLEEP and isinstance(replica.adapter, Nap):
        replica.adapter.wanted.set()
    if use.out is not None and replica.life.state is State.READY:
        replica.failed, replica.why = FAILED_MAX, use.out
        replica.turn(went_down)


class Mirror:
    """Replicas that are shown and not kept; the router reads ``replicas``."""

    def __init__(self, specs: Iterable[ReplicaSpec], clock: Clock) -> None:
        self.replicas: dict[str, Replica] = {spec.name: Replica(spec, clock) for spec in specs}
        self.seen = asyncio.Event()
        """Something was shown."""
        self._lives: dict[str, Life] = {}
        self._engines: dict[str, tuple[Address | None, Engine]] = {}
        self._naps: dict[str, Nap] = {}
        self._served: dict[str, int] = {}
        self._out: set[str] = set()

    async def show(self, now: ReplicaNow) -> None:
        """Take over how a replica stands. Raises as ``adapter_for``."""
        replica = self.replicas[now.name]
        replica.meanwhile(now.elsewhere)
        for name in _FIGURES:
            setattr(replica, name, getattr(now, name))
        if self._lives.get(now.name) != now.life:
            self._lives[now.name] = replica.life = now.life
            replica.failed = 0
            self._out.discard(now.name)
            await self._speak(replica, now)
        if replica.life == now.life:  # else our own answers told more of it
            replica.why = now.why
        self.seen.set()

    async def _speak(self, replica: Replica, now: ReplicaNow) -> None:
        if now.life.state is State.ASLEEP:
            replica.speaks_through(self._naps.setdefault(now.name, Nap()))
            return
        engine = await self._engine(replica, now.address) if now.life.state is State.READY else None
        replica.speaks_through(engine)
        if (nap := self._naps.pop(now.name, None)) is not None:
            nap.end(engine)

    async def _engine(self, replica: Replica, address: Address | None) -> Engine:
        before = self._engines.get(replica.spec.name)
        if before is not None and before[0] == address:
            return before[1]
        engine = adapter_for(replica, *((address.url, address.api_key) if address else ()))
        self._engines[replica.spec.name] = (address, engine)
        if before is not None:
            await before[1].close()
        return engine

    def uses(self) -> dict[str, Use]:
        """What has happened to each replica through us since this was last asked."""
        return {name: self._use(name, replica) for name, replica in self.replicas.items()}

    def _use(self, name: str, replica: Replica) -> Use:
        served = replica.served - self._served.get(name, 0)
        self._served[name] = replica.served
        failed = replica.life.state is State.FAILED and self._lives[name].state is State.READY
        out = replica.why if failed and name not in self._out else None
        if out is not None:
            self._out.add(name)
        nap = self._naps.get(name)
        wanted = nap is not None and nap.wanted.is_set()
        return Use(running=replica.running - replica.elsewhere, served=served, out=out, wanted=wanted)

    async def close(self) -> None:
        """Close all connections; streams in the middle break."""
        for nap in self._naps.values():
            nap.end(None)
        for _, engine in self._engines.values():
            await engine.close()
