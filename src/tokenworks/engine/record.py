"""The live record of one replica: what the router reads and the drivers write."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tokenworks.core.clock import Clock
from tokenworks.core.errors import EngineDown
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Usage
from tokenworks.engine.adapter import Adapter, Timing
from tokenworks.engine.replica import Life, ReplicaSpec, State

log = logging.getLogger(__name__)

WAITING_MAX = 64
"""Requests that may wait at one replica beyond its slots."""
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
        """Requests that we have with it: worked on and waiting."""
        self.prefill_tps: float | None = None
        """Uncached prompt tokens a second of one request; None: nothing seen yet."""
        self.decode_tps: float | None = None
        """Output tokens a second of one request, beside whatever else ran."""
        self.restarts = 0
        self.why = ""
        """What went wrong last, for people."""
        self.changed: Callable[[], None] = lambda: None
        self._clock = clock
        self._adapter: Adapter | None = None

    @property
    def ready(self) -> bool:
        """It may get requests."""
        return self.life.state is State.READY

    @property
    def full(self) -> bool:
        """Its slots and its waiting places are taken."""
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
