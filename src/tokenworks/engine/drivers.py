"""Drivers keep a replica up. They differ in how an engine begins and ends; how it is watched is the same for all."""

from __future__ import annotations

import abc
import asyncio
import logging

import msgspec

from tokenworks.core.clock import Clock
from tokenworks.core.errors import EngineDown, EngineFailed, TokenworksError
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Request, Word
from tokenworks.device.slices import Took, overrun
from tokenworks.engine.adapter import Adapter, Engine, Nap
from tokenworks.engine.adapters import adapter_for
from tokenworks.engine.record import FAILED_MAX, Replica
from tokenworks.engine.replica import State, came_up, fell_asleep, may_start, started, stopped, went_down
from tokenworks.engine.watch import Doubt, Idleness, Silence

log = logging.getLogger(__name__)


class Pace(Word, frozen=True):
    """How often drivers look and how patient they are, in seconds."""

    load_poll_s: float = 0.05
    load_s_max: float = 600.0
    health_s: float = 1.0
    external_s: float = 2.0
    health_timeout_s: float = 2.0
    missed_max: int = 3
    """Health checks in a row that a ready replica may miss before it counts as hung."""
    silent_s: float = 60.0
    """An engine with a free slot that owes answers and sends no byte for so long is asked for one token."""
    silent_full_s: float = 180.0
    """One without a free slot cannot be asked: after so long it counts as hung."""
    probe_s: float = 30.0
    """How long that one token may take."""
    drain_s: float = 10.0
    """How long answers may go on after the replica was taken out because others failed."""
    place_s: float = 30.0
    """How long a cluster may take to find room."""
    stop_s: float = 3.0
    """How long a child may take to leave after its lifeline was cut, before it is killed."""


class Held:
    """An engine that a driver has found. One that it has begun, it can see and end too."""

    engine: Engine
    """How to speak to it."""

    async def ended(self) -> str:
        """Wait until it is gone, and say how; for ever when that cannot be seen."""
        await asyncio.Event().wait()
        return ""

    def look(self) -> Took | None:
        """What it takes of this machine; None: unknown."""
        return None

    async def stop(self, patience_s: float) -> None:
        """End it, if it is ours. Never raises."""


async def checked(adapter: Adapter, timeout_s: float) -> bool:
    """One health check that surely ends."""
    try:
        async with asyncio.timeout(timeout_s):
            return await adapter.healthy()
    except TimeoutError:
        return False


async def probed(engine: Engine, model: str, timeout_s: float) -> None:
    """Ask for one token. Raises EngineDown unless it comes; a refusal is an answer too."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    request = Request(
        id="probe", endpoint="chat", model=model, body=msgspec.json.encode(body), stream=False, show_usage=False,
        input_max=2, output_max=1, choices=1, needs=frozenset(), arrived_ns=0,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            await engine.complete(request)
    except TimeoutError:
        raise EngineDown(f"it did not make one token in {timeout_s:g} s") from None
    except TokenworksError as error:
        if error.status >= 500:
            raise EngineDown(f"asked for one token it failed: {error.message}") from error


class Driver(abc.ABC):
    """What keeps one replica up until it is cancelled."""

    owns = True
    """It may end the engine, and so put it to sleep if nothing else can."""

    def __init__(self, clock: Clock, pace: Pace) -> None:
        self._clock, self._pace = clock, pace

    @abc.abstractmethod
    async def begin(self, replica: Replica) -> Held:
        """Start or find its engine, without waiting until it is healthy. Raises a TokenworksError."""

    async def run(self, replica: Replica) -> None:
        """Never returns. On cancellation the replica is cold and nothing of it is left running."""
        nap: Nap | None = None
        try:
            while True:
                pause_ns = replica.life.next_try_ns - self._clock.now_ns()
                if nap is not None:
                    await nap.wanted.wait()
                elif not may_start(replica.life, self._clock.now_ns()):
                    await self._clock.sleep(pause_ns / NS_PER_S)
                    continue
                else:
                    replica.turn(started)
                try:
                    nap = await _Life(replica, self, self._clock, self._pace, nap).live()
                except Exception as error:  # whatever it was, a replica without a driver would never come back
                    nap = None
                    self._failed(replica, error)
        finally:
            if nap is not None:
                nap.end(None)
            replica.speaks_through(None)
            replica.turn(stopped)

    @staticmethod
    def _failed(replica: Replica, error: Exception) -> None:
        replica.restarts += replica.life.state is not State.LOADING
        if isinstance(error, _TakenOut):
            return
        if isinstance(error, TokenworksError):
            replica.why = f"({error})"
        else:
            replica.why = f"({type(error).__name__}: {error})"
            log.error("replica %s", replica.spec.name, exc_info=error)
        if replica.life.state is not State.FAILED:  # its answers may have told us first
            replica.turn(went_down)


class _TakenOut(EngineDown):
    """Its answers failed too often; it is down already, and why stands on its record."""


class _Life:
    """One life of an engine, from its beginning to its end or its sleep."""

    def __init__(self, replica: Replica, driver: Driver, clock: Clock, pace: Pace, nap: Nap | None) -> None:
        self._replica, self._driver, self._clock, self._pace = replica, driver, clock, pace
        self._nap = nap
        """Who waits for it to wake."""
        self._can_sleep = True
        self._missed = 0
        self._silence, self._doubt = Silence(), Doubt()
        self._idle = Idleness(replica.served, clock.now_ns())

    async def live(self) -> Nap:
        """Returns when it was put to sleep by being ended. Raises EngineDown, saying why, for every other end."""
        try:
            began_ns = self._clock.now_ns()
            held = await self._begun()
            return await self._lived(held, began_ns)
        except BaseException:
            self._replica.speaks_through(None)
            if self._nap is not None:
                self._nap.end(None)
            raise

    async def _begun(self) -> Held:
        if self._replica.lost:
            raise EngineDown(self._replica.lost)
        try:
            async with asyncio.timeout(self._pace.load_s_max):
                return await self._driver.begin(self._replica)
        except TimeoutError:
            raise EngineDown(f"it did not start in {self._pace.load_s_max:g} s") from None

    async def _lived(self, held: Held, began_ns: int) -> Nap:
        replica, ended = self._replica, asyncio.create_task(held.ended())
        try:
            await self._healthy(held.engine, ended)
            if replica.failed >= FAILED_MAX:  # health checks were not enough to know the last time
                await probed(held.engine, replica.spec.model, self._pace.probe_s)
                replica.heard(None)
            self._awake(held.engine, began_ns if self._driver.owns else None)
            while True:
                every_s = self._pace.health_s if self._driver.owns else self._pace.external_s
                done, _ = await asyncio.wait({ended}, timeout=every_s)
                if done:
                    raise EngineDown(ended.result())
                if replica.life.state is State.FAILED:
                    await self._drained()
                    raise _TakenOut
                await self._look(held)
                if self._tired():
                    nap = await self._sleep(held.engine, ended)
                    if nap is not None:
                        return nap
        finally:
            ended.cancel()
            replica.took = replica.load = None
            # Shielded: a cancelled driver still leaves no process and no socket behind.
            await asyncio.shield(_end(held, self._pace.stop_s))

    async def _healthy(self, engine: Engine, ended: asyncio.Task[str]) -> None:
        """Wait for the first good health check; an engine that is not ours is asked once."""
        end_ns = self._clock.now_ns() + round(self._pace.load_s_max * NS_PER_S)
        while not await checked(engine, self._pace.health_timeout_s):
            if not self._driver.owns:
                raise EngineDown(f"{self._replica.spec.url} does not answer health checks")
            if ended.done():
                raise EngineDown(ended.result())
            if self._clock.now_ns() > end_ns:
                raise EngineDown(f"it was not healthy {self._pace.load_s_max:g} s after its start")
            await self._clock.sleep(self._pace.load_poll_s)

    def _awake(self, engine: Engine, since_ns: int | None) -> None:
        """It can work: it was loaded or woken since then. None: it was up all the time."""
        replica = self._replica
        if since_ns is not None:
            replica.wake_ns = self._clock.now_ns() - since_ns
        replica.why = ""
        replica.speaks_through(engine)
        replica.turn(came_up)
        if self._nap is not None:
            self._nap.end(engine)
            self._nap = None

    async def _drained(self) -> None:
        """Answers that still come may end."""
        end_ns = self._clock.now_ns() + round(self._pace.drain_s * NS_PER_S)
        while self._replica.running and self._clock.now_ns() < end_ns:
            await self._clock.sleep(self._pace.load_poll_s)

    async def _look(self, held: Held) -> None:
        """Devices, health, memory, load and silence. Raises EngineDown when it must not go on."""
        replica = self._replica
        if replica.lost:
            raise EngineDown(replica.lost)
        if not await checked(held.engine, self._pace.health_timeout_s):
            self._missed += 1
            if self._missed >= self._pace.missed_max:
                raise EngineDown(f"the engine missed {self._missed} health checks")
            return
        self._missed = 0
        replica.took = held.look()
        if replica.took and (said := overrun(replica.spec.limits, replica.took)):
            raise EngineDown(f"{said}, and was killed")
        await self._ask_load(held.engine)
        silent_s = self._silence.lasts_s(held.engine.heard(), self._clock.now_ns())
        if replica.running < replica.spec.slots and silent_s > self._pace.silent_s:
            await probed(held.engine, replica.spec.model, self._pace.probe_s)
            self._silence = Silence()
        elif silent_s > self._pace.silent_full_s:
            raise EngineDown(f"{replica.running} requests are with it, and it has said nothing for {silent_s:.0f} s")

    async def _ask_load(self, engine: Engine) -> None:
        """Keep what the engine says of its load, unless it cannot be true: then say so, and trust our own count."""
        replica, why = self._replica, None
        try:
            async with asyncio.timeout(self._pace.health_timeout_s):
                load = await engine.load()
        except EngineFailed as error:
            load, why = None, f"{error.message}; they are not believed"
        except (TimeoutError, EngineDown):
            load, why = None, "its metrics do not come"
        why = why or self._doubt.about(load, replica.running)
        replica.load = None if why else load
        replica.why = f"({why})" if why else ""
        if replica.load is not None and replica.load.requests_left == 0:
            replica.pause(replica.load.resets_s or 1.0)

    def _tired(self) -> bool:
        """It has had no request for as long as the grid file says, or sleeps already."""
        replica = self._replica
        idle_ns = self._idle.lasts_ns(replica.running, replica.served, self._clock.now_ns())
        if replica.running or replica.life.state is not State.READY:
            return False
        if replica.load is not None and replica.load.asleep:
            return True
        after_ns = NS_PER_S if replica.rest else replica.spec.sleep_after_ns
        return self._can_sleep and after_ns is not None and idle_ns >= after_ns

    async def _sleep(self, engine: Engine, ended: asyncio.Task[str]) -> Nap | None:
        """Put it to sleep, and wake it when a request comes. The nap: it can only sleep by being ended."""
        replica, nap = self._replica, Nap()
        replica.speaks_through(nap)  # from here on requests wait, whatever the engine does
        replica.turn(fell_asleep)
        self._nap = nap
        if not (replica.load is not None and replica.load.asleep) and not await self._asleep(engine):
            if self._driver.owns:
                return nap
            self._can_sleep = False
            self._awake(engine, None)
            return None
        wanted = asyncio.create_task(nap.wanted.wait())
        try:
            await asyncio.wait({wanted, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()
        if ended.done():
            raise EngineDown(ended.result())
        began_ns = self._clock.now_ns()
        await engine.wake()
        await self._healthy(engine, ended)
        self._awake(engine, began_ns)
        replica.load = None  # it was that of a sleeper
        return None

    @staticmethod
    async def _asleep(engine: Engine) -> bool:
        try:
            return await engine.sleep()
        except EngineDown:
            return False


async def _end(held: Held, patience_s: float) -> None:
    await held.engine.close()
    await held.stop(patience_s)


class ExternalDriver(Driver):
    """Watches an engine that somebody else runs."""

    owns = False

    async def begin(self, replica: Replica) -> Held:
        held = Held()
        held.engine = adapter_for(replica)
        return held
