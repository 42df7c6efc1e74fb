"""What a meter says, judged: counters that wrap, reset, jump or stall are bounded and noted, silence is not zero."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from tokenworks.core.clock import Clock
from tokenworks.core.errors import TokenworksError
from tokenworks.core.units import NS_PER_S, energy_mj, split
from tokenworks.site.words import Readings

GAP_NS_MAX = 30 * NS_PER_S
"""Power is taken to go on for as long; of what was longer nothing is known. A counter knows."""
OWED_MAX = 60
FLOOR_SAMPLES, FLOOR_SAMPLES_MIN, FLOOR_PERMILLE = 256, 12, 50


class Sample(NamedTuple):
    """What a source said, and when: an energy counter, a power, or both."""

    at_ns: int
    mj: int | None = None
    mw: int | None = None


class Source(Protocol):
    """The port: everything that can be asked what it reads."""

    async def read(self) -> Mapping[str, Sample]:
        """Samples by channel (a device, a register). Raises TokenworksError, OSError or ValueError."""


class Reading(NamedTuple):
    """Energy since the last one. ``implausible_mj`` was counted beyond what the meter's load can draw."""

    mj: int
    implausible_mj: int
    seen_ns: int


class Meter:
    """One channel over time. ``max_mw`` and ``min_mw`` are what its load can and must draw; ``wrap_mj``: where the
    counter begins again; ``step_mj``: its resolution."""

    def __init__(
        self,
        max_mw: int,
        *,
        min_mw: int = 0,
        wrap_mj: int | None = None,
        step_mj: int = 1,
    ) -> None:
        self._max_mw, self._min_mw, self._wrap_mj, self._step_mj = max_mw, min_mw, wrap_mj, step_mj
        self._last: Sample | None = None
        self.notes: set[str] = set()
        self._mw: int | None = None
        self.clear()

    def clear(self) -> None:
        """Begin anew after a reading was booked."""
        self._mj = self._odd = self._seen_ns = 0
        self.notes.clear()

    def reading(self) -> Reading | None:
        """Since the last ``clear``; None: nothing was heard that counts."""
        if self._last is None or self._seen_ns == 0:
            return None
        return Reading(self._mj, self._odd, self._seen_ns)

    def mw(self, now_ns: int) -> int | None:
        """The power that it last told of; None: it did not, or that is too long ago."""
        return self._mw if self._last is not None and now_ns - self._last.at_ns <= GAP_NS_MAX else None

    def see(self, sample: Sample) -> None:
        """Count a sample. One that is not later than the last is noted and left out."""
        last = self._last
        gap_ns = sample.at_ns - last.at_ns if last else 0
        if last is None:
            self._last, self._mw = sample, sample.mw
        elif gap_ns <= 0:
            self.notes.add("answered out of order")
        elif sample.mj is not None and last.mj is not None:
            self._count(sample, sample.mj - last.mj, gap_ns)
        else:
            if sample.mw is not None and last.mw is not None and gap_ns <= GAP_NS_MAX:
                mean = (sample.mw + last.mw) // 2
                if not 0 <= mean <= self._most(self._max_mw):
                    self.notes.add("says more power than can be drawn, or less than none")
                self._mj += energy_mj(max(0, min(mean, self._max_mw)), gap_ns)
                self._seen_ns += gap_ns
            self._last, self._mw = sample, sample.mw

    def _count(self, sample: Sample, delta: int, gap_ns: int) -> None:
        most, now = self._most(energy_mj(self._max_mw, gap_ns)) + self._step_mj, sample.mj or 0
        if delta < 0 and self._wrap_mj is not None and 0 <= delta + self._wrap_mj <= most:
            delta += self._wrap_mj
        elif delta < 0:  # of the time before the reset nothing is known
            self.notes.add("its counter was reset")
            delta, gap_ns = (now if now <= most else 0), 0
        elif delta > most:
            self.notes.add("its counter jumped")
            self._odd += delta - most
            delta = most
        elif delta == 0 and energy_mj(self._min_mw, gap_ns) > 2 * self._step_mj:
            self.notes.add("its counter stalls")
            return  # the last sample stays: what it counts when it moves again is counted then
        self._mj += delta
        self._seen_ns += gap_ns
        self._last, self._mw = sample, delta * NS_PER_S // gap_ns if gap_ns else None

    @staticmethod
    def _most(amount: int) -> int:
        return amount * 11 // 10


class Wire(NamedTuple):
    """What a channel of a source meters: the whole facility, all IT, a server or a board of that name."""

    source: Source
    channel: str
    level: Literal["load", "it", "servers", "boards"]
    target: str
    meter: Meter


Late = dict[int, dict[tuple[str, str], int]]
"""By start of an interval that was closed without them: millijoules by level and target."""


class Panel:
    """All meters of a site: polled all the time, read when an interval closes, and cleared once that is booked."""

    def __init__(
        self,
        wires: Sequence[Wire] = (),
        sink: Callable[[int, int], int | None] = lambda _start, _end: None,
        every_s: float = 5.0,
        timeout_s: float = 2.0,
    ) -> None:
        self._wires, self._sink, self._every_s, self._timeout_s = tuple(wires), sink, every_s, timeout_s
        self._owed: list[deque[tuple[int, int]]] = [deque(maxlen=OWED_MAX) for _ in wires]

    async def poll(self) -> None:
        """Ask every source once, all at the same time; who does not answer in time is noted."""
        sources = {id(wire.source): wire.source for wire in self._wires}
        await asyncio.gather(*(self._ask(source) for source in sources.values()))

    async def _ask(self, source: Source) -> None:
        samples: Mapping[str, Sample] = {}
        try:
            async with asyncio.timeout(self._timeout_s):
                samples = await source.read()
        except (TokenworksError, OSError, TimeoutError, ValueError):
            pass  # what was not heard is noted below
        for wire in self._wires:
            if wire.source is source:
                if wire.channel in samples:
                    wire.meter.see(samples[wire.channel])
                else:
                    wire.meter.notes.add("does not answer")

    async def run(self, clock: Clock) -> None:
        """Poll until cancelled."""
        while self._wires:
            await self.poll()
            await clock.sleep(self._every_s)

    def read(self, start_ns: int, end_ns: int) -> tuple[Readings, Late]:
        """What the meters counted in [start, end), and what a meter that was silent before counted meanwhile, which is
        spread over that time. Reading again before ``booked`` says the same."""
        found: dict[str, dict[str, int | None]] = {"load": {}, "it": {}, "servers": {}, "boards": {}}
        late, odd, seen, notes = Late(), 0, 1_000, list[str]()
        for wire, owed in zip(self._wires, self._owed, strict=True):
            reading, times = wire.meter.reading(), [*owed, (start_ns, end_ns)]
            notes += [f"{wire.level} {wire.target}: {note}" for note in sorted(wire.meter.notes)]
            if reading is None:
                seen = 0 if wire.level in ("load", "it") else seen
                found[wire.level].update({wire.target: None} if wire.level == "servers" else {})
                continue
            missed = reading.seen_ns > end_ns - start_ns  # otherwise the counter did not survive its silence
            parts = split(reading.mj, [e - s for s, e in times]) if missed else [*([0] * len(owed)), reading.mj]
            for (start, _), mj in zip(times[:-1], parts, strict=False):
                if missed:
                    late.setdefault(start, {})[wire.level, wire.target] = mj
            found[wire.level][wire.target] = parts[-1] + (reading.implausible_mj if wire.level == "load" else 0)
            if wire.level == "load":
                odd = reading.implausible_mj
            seen = min(seen, reading.seen_ns * 1_000 // max(1, end_ns - start_ns))
        load, it = (next(iter(found[level].values()), None) for level in ("load", "it"))
        boards = {name: mj for name, mj in found["boards"].items() if mj is not None}
        sink_mc = self._sink(start_ns, end_ns)
        return Readings(load, it, found["servers"], boards, odd, {}, sink_mc, seen, tuple(notes)), late

    def now(self, now_ns: int, ns: int) -> Readings:
        """What the meters last told, as if it had lasted for ``ns``."""
        found: dict[str, dict[str, int | None]] = {"load": {}, "it": {}, "servers": {}, "boards": {}}
        for wire in self._wires:
            if (mw := wire.meter.mw(now_ns)) is not None:
                found[wire.level][wire.target] = energy_mj(mw, ns)
        load, it = (next(iter(found[level].values()), None) for level in ("load", "it"))
        return Readings(load, it, found["servers"])

    def meters(self, now_ns: int) -> list[tuple[str, int | None, str]]:
        """Of each: what it meters, its power, and what is wrong with it since the last interval."""
        found = [(wire.meter, f"{wire.level} {wire.target}".strip()) for wire in self._wires]
        return [(what, meter.mw(now_ns), "; ".join(sorted(meter.notes))) for meter, what in found]

    def booked(self, start_ns: int, end_ns: int) -> None:
        """The readings of this interval are in the books."""
        for wire, owed in zip(self._wires, self._owed, strict=True):
            if wire.meter.reading() is None:
                owed.append((start_ns, end_ns))
            else:
                owed.clear()
            wire.meter.clear()


class Floor:
    """The measured idle power of a server by its state: a low quantile, so that no odd sample is it."""

    def __init__(self) -> None:
        self._samples: dict[str, tuple[deque[int], list[int]]] = {}

    def see(self, state: str, mw: int) -> None:
        """The power of a time without work. A state is one of a few words."""
        recent, ordered = self._samples.setdefault(state, (deque(), []))
        recent.append(mw)
        insort(ordered, mw)
        if len(recent) > FLOOR_SAMPLES:
            ordered.remove(recent.popleft())

    def mw(self, state: str) -> int | None:
        """None: too little was seen."""
        ordered = self._samples.get(state, ((), []))[1]
        return ordered[len(ordered) * FLOOR_PERMILLE // 1_000] if len(ordered) >= FLOOR_SAMPLES_MIN else None
