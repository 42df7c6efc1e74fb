"""The live record of one replica: what the router reads and the drivers write."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tokenworks.core.clock import Clock
from tokenworks.core.errors import EngineDown, EngineFailed, TokenworksError
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Usage
from tokenworks.device.slices import Took
from tokenworks.engine.adapter import Adapter, Load, Timing
from tokenworks.engine.replica import Address, Life, ReplicaSpec, State, went_down
from tokenworks.engine.reports import TooBusy

log = logging.getLogger(__name__)

WAITING_MAX = 64
"""Requests that may wait at one replica beyond its slots."""
FAILED_MAX = 3
"""Answers in a row that may fail by the engine's fault before it gets no more requests."""
BUSY_S = 1.0
"""Without a request, when an engine says that it is too busy but not for how long."""
SPEED_WEIGHT = 0.2
"""Of the newest observation in the moving averages of speed."""
PREFILL_TOKENS_MIN = 16
DECODE_TOKENS_MIN = 4
"""Fewer tokens than these say nothing about speed."""


class Replica:
    """One replica now. Mutable; touched only from the event loop."""

    def __init__(self, spec: ReplicaSpec, clock: Clock, *, waiting_max: int = WAITING_MAX) -> None:
        self.spec = spec
        self.waiting_max = waiting_max
        self.life = Life(since_ns=clock.now_ns())
        self.running = 0
        """Requests that this grid has with it: worked on and waiting."""
        self.elsewhere = 0
        """Those of them that other gateways of this grid were last known to have."""
        self.prefill_tps = spec.prefill_tps
        """Uncached prompt tokens a second of one request; None: nothing seen yet."""
        self.decode_tps = spec.decode_tps
        """Output tokens a second of one request, beside whatever else ran."""
        self.wake_ns: int | None = None
        """From the request that last woke it until it could work; before the first one, how long it took to load."""
        self.load: Load | None = None
        """What the engine last said of its load; None: nothing, or nothing that can be believed."""
        self.failed = 0
        """Answers in a row that failed by the engine's fault."""
        self.served = 0
        """Requests that have ended, however."""
        self.took: Took | None = None
        """What its process was last measured to take; None: it is not ours, or not up."""
        self.address: Address | None = None
        """Where its present engine is reached; None: as its spec says."""
        self.rest = False
        """It is to sleep while it has nothing to do: power is short."""
        self.lost = ""
        """Which of its devices are gone: until they are back it is not started."""
        self.restarts = 0
        self.why = ""
        """What went wrong last, for people."""
        self.changed: Callable[[], None] = lambda: None
        self._clock = clock
        self._adapter: Adapter | None = None
        self._pause_ends_ns = 0

    @property
    def ready(self) -> bool:
        """It may get requests."""
        return self.life.state is State.READY or self.life.state is State.ASLEEP

    @property
    def wait_ns(self) -> int:
        """How long a request would wait before the engine can begin with it, as far as that is known."""
        return (self.wake_ns or 0) if self.life.state is State.ASLEEP else 0

    @property
    def full(self) -> bool:
        """Its slots and its waiting places are taken, or it has asked to be left alone for a while."""
        if self._pause_ends_ns and self._clock.now_ns() < self._pause_ends_ns:
            return True
        return self.running >= self.spec.slots + self.waiting_max

    @property
    def adapter(self) -> Adapter:
        """How to speak to its engine. Raises EngineDown while there is none."""
        if self._adapter is None:
            raise EngineDown(f"The replica {self.spec.name} is {self.life.state}.")
        return self._adapter

    def begin(self) -> None:
        """A request goes to it. Raises EngineDown when it is full: the bound holds whatever the router thinks."""
        if self.full:
            raise EngineDown(f"The replica {self.spec.name} has {self.running} requests already.")
        self.running += 1

    def end(self) -> None:
        """That request is over, however it ended."""
        assert self.running > 0, "end() without begin()"
        self.running -= 1
        self.served += 1

    def meanwhile(self, elsewhere: int, served: int = 0) -> None:
        """So many requests are with it from other gateways now, and so many of theirs have ended."""
        self.running += elsewhere - self.elsewhere
        self.elsewhere = elsewhere
        self.served += served

    def heard(self, error: TokenworksError | None) -> None:
        """How an answer ended: well (None), or with what error. One failure too many in a row takes it out."""
        if error is None:
            self.failed = 0
        elif isinstance(error, TooBusy):
            self.pause(error.retry_after_s or BUSY_S)
        elif isinstance(error, EngineDown | EngineFailed):
            self.failed += 1
            if self.failed >= FAILED_MAX and self.life.state is State.READY:
                self.why = f"({self.failed} answers in a row failed, the last one so: {error.message})"
                self.turn(went_down)

    def pause(self, seconds: float) -> None:
        """Send it nothing for so long: its rate limit is reached."""
        self._pause_ends_ns = self._clock.now_ns() + round(seconds * NS_PER_S)

    def observe(self, usage: Usage | None, timing: Timing | None) -> None:
        """Learn its speed from one finished request of one choice. What the engine did not say teaches nothing."""
        if usage is None or timing is None or usage.certainty != "exact":
            return
        if timing.prefill_ns and usage.input >= PREFILL_TOKENS_MIN:
            self.prefill_tps = _average(self.prefill_tps, usage.input * NS_PER_S / timing.prefill_ns)
        made = usage.output + usage.reasoning
        if timing.decode_ns and made >= DECODE_TOKENS_MIN:  # the clock of decoding starts with the first token
            self.decode_tps = _average(self.decode_tps, (made - 1) * NS_PER_S / timing.decode_ns)

    def turn(self, step: Callable[[Life, int], Life]) -> None:
        """For drivers: go through one transition of ``replica.py`` at the present time."""
        before, self.life = self.life, step(self.life, self._clock.now_ns())
        if before.state is not self.life.state:
            level = logging.WARNING if self.life.state is State.FAILED else logging.INFO
            log.log(level, "replica %s: %s -> %s %s", self.spec.name, before.state, self.life.state, self.why)
            self.changed()

    def speaks_through(self, adapter: Adapter | None) -> None:
        """For drivers: the adapter of its present engine."""
        self._adapter = adapter


def _average(before: float | None, seen: float) -> float:
    return seen if before is None else before + SPEED_WEIGHT * (seen - before)
