"""The site's agent: it knows which works run, and closes the books of its site interval by interval.

Input and output stay outside: processor time and meters come in through ports, closed intervals leave through ``emit``.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from tokenworks.core.clock import Clock
from tokenworks.core.errors import EngineDown, ExchangeDown, NotFound
from tokenworks.core.units import NS_PER_S, energy_mj, rate_of
from tokenworks.core.words import CORRECTABLE, EnergyLine, Interval, Provenance, Work
from tokenworks.site.attribution import close_interval
from tokenworks.site.correcting import correction
from tokenworks.site.costing import NS_PER_HOUR
from tokenworks.site.meters.meter import Floor, Late, Panel
from tokenworks.site.pace import Pace
from tokenworks.site.placing import place
from tokenworks.site.words import Pricing, Readings, Site

WORKS_MAX = 100_000
RETRY_S = 1.0


_end, _key = attrgetter("end_ns"), attrgetter("receipt", "replica")


class _Closed(NamedTuple):
    """What an interval was closed with, and its entries so far."""

    entries: list[Interval]
    works: list[Work]
    ended: frozenset[str]
    cpu_ns: dict[str, int]
    said: Readings
    keys: set[tuple[str, str]]
    """Of its works."""

    def ends(self, work: Work) -> bool:
        """The work's end is in it."""
        return self.entries[0].start_ns < work.end_ns <= self.entries[0].end_ns

    def lacks(self, work: Work) -> bool:
        """It was split without the work, ended or open."""
        return _key(work) not in self.keys


class SiteAgent:
    """Closes one interval after the other, without gap or overlap: each starts where the last one ended.

    ``services`` returns processor time [ns] per floor since it was last called, ``panel`` is read for the meters. If
    ``emit`` raises, nothing is forgotten and the interval goes on. ``works_max`` bounds the works known at once
    (closing early), and those of closed intervals. ``correct`` takes correcting entries; None: there are none.
    ``lag_s``: an interval is closed so long after its end, by when other processes have told of their works.
    """

    def __init__(
        self,
        site: Site,
        clock: Clock,
        emit: Callable[[Interval], None],
        interval_s: int = 60,
        services: Callable[[], Mapping[str, int]] = dict,
        panel: Panel | None = None,
        works_max: int = WORKS_MAX,
        pricing: Pricing | None = None,
        correct: Callable[[Interval], None] | None = None,
        lag_s: int = 0,
    ) -> None:
        if interval_s < 1 or works_max < 1:
            raise ValueError("an interval lasts at least a second, and at least one work must be known")
        self.site = site
        self.supply = site.supply
        """What energy costs and emits now, for estimates."""
        self.state = "resident"
        """What state its servers are in ("resident", "capped", ...): their idle power is learnt by state."""
        self.latest: Interval | None = None
        """The interval that was closed last, without its requests."""
        self._clock, self._emit, self._correct = clock, emit, correct
        self._interval_ns, self._lag_ns = interval_s * NS_PER_S, lag_s * NS_PER_S
        self._services, self._panel, self._pricing = services, panel or Panel(), pricing
        self._works_max = works_max
        self._loads = {load.slice: load for load in site.loads}
        self._paces = {load.slice: Pace() for load in site.loads}
        self._overhead = (site.overhead.value, 1_000)
        """Of an IT energy, for estimates."""
        self._last_ns = clock.now_ns()
        self._open: dict[str, dict[tuple[str, str], Work]] = {}
        """By slice, then by receipt and replica; ``end_ns`` is not meant yet."""
        self._ended: dict[str, list[Work]] = {}
        """By slice, in the order of their ends."""
        self._unseen: set[tuple[str, str]] = set()
        """Open ones whose beginning was told after its interval had closed, by receipt and replica."""
        self._opened = self._kept = 0
        self._cpu_ns: dict[str, int] = {}
        self._closed: deque[_Closed] = deque()
        self._late: list[Work] = []
        self._overdue: Late = {}
        self._floors: dict[str, Floor] = {}

    @property
    def last_ns(self) -> int:
        """Where the running interval began."""
        return self._last_ns

    def power(self, start_ns: int, end_ns: int) -> tuple[int, Provenance]:
        """Mean power [mW] of the last moments: by what meters last told, else by the model, which here leaves out the
        gateway's own processor time."""
        ns, said = end_ns - start_ns, self._panel.now(end_ns, end_ns - start_ns)
        busy = {name: pace.busy_ns(start_ns, end_ns) for name, pace in self._paces.items()}
        meter = Provenance.MODELLED if said.load is None else Provenance.MEASURED
        return place(self.site, ns, busy, (), said).meter * NS_PER_S // ns, meter

    def meters(self) -> list[tuple[str, int | None, str]]:
        """See ``Panel.meters``."""
        return self._panel.meters(self._clock.now_ns())

    def known(self) -> int:
        """Works known now: open, ended, and late for their interval."""
        return self._opened + self._kept + len(self._late)

    def receipts(self) -> set[str]:
        """Whose works are known now."""
        ended = {work.receipt for works in (*self._ended.values(), self._late) for work in works}
        return ended | {receipt for works in self._open.values() for receipt, _ in works}

    def resume(self, last_end_ns: int, works: Iterable[Work]) -> None:
        """After a restart: go on from the last closed interval, with the works that were settled since."""
        self._last_ns = last_end_ns
        for work in works:
            self._keep(work)

    def begin(self, receipt: str, replica: str, slice: str, start_ns: int) -> None:  # noqa: A002 - the field's own word
        """A request was dispatched. Until its work ends it is taken to hold its slice from ``start_ns`` on.

        Raises NotFound for a slice that is not of this site, EngineDown when too many works are open.
        """
        if slice not in self._loads:
            raise NotFound(f"site {self.site.name} has no slice {slice!r}")
        self._make_room()
        if self._opened >= self._works_max:
            raise EngineDown(f"site {self.site.name} already runs {self._works_max:,} works")
        work = self._work(receipt, replica, slice, start_ns)
        # A second dispatch without an end between does not shorten the time since the first.
        if self._open.setdefault(slice, {}).setdefault((receipt, replica), work) is work:
            self._opened += 1
            if start_ns < self._last_ns:
                self._unseen.add(_key(work))
            self._paces[slice].step(start_ns, 1)

    def _work(self, receipt: str, replica: str, name: str, ns: int) -> Work:
        at: dict[str, Any] = {"start_ns": ns, "end_ns": ns, "first_ns": None, "input_tokens": 0, "output_tokens": 0}
        return Work(receipt=receipt, replica=replica, site=self.site.name, slice=name, **at)

    def end(self, work: Work) -> None:
        """A request's work ended: this replaces the open one. Closed time that did not know of it is corrected."""
        booked, unseen = False, _key(work) in self._unseen
        known = self._drop(work.receipt, work.replica, work.slice, work.end_ns) and not unseen
        if not known and work.start_ns < self._last_ns:
            self._late.append(work)
            # Where its end can be booked yet, its record is made by a correction; else it ends in the running interval.
            booked = any(each.ends(work) and each.lacks(work) for each in self._closed)
        if not booked:
            self._keep(work)
        self._make_room()

    def forget(self, receipt: str, replica: str, slice: str) -> None:  # noqa: A002 - as above
        """A dispatch came to nothing: the request did no work there. Forgetting what is not known does nothing."""
        self._drop(receipt, replica, slice, self._clock.now_ns())

    def _drop(self, receipt: str, replica: str, name: str, now_ns: int) -> bool:
        self._unseen.discard((receipt, replica))
        if self._open.get(name, {}).pop((receipt, replica), None) is None:
            return False
        self._opened -= 1
        self._paces[name].step(now_ns, -1)
        return True

    def _keep(self, work: Work) -> None:
        insort(self._ended.setdefault(work.slice, []), work, key=_end)
        self._kept += 1

    def _make_room(self) -> None:
        if self.known() >= self._works_max and self._kept + len(self._late):
            self.close(self._clock.now_ns())

    def estimate(self, work: Work) -> EnergyLine:
        """The line of this work if the interval were [work.start, work.end], modelled, with the company known now.

        Made for every response, so in microseconds: by its time alone, the supply of the moment and the last overhead.
        """
        load, pace, supply = self._loads.get(work.slice), self._paces.get(work.slice), self.supply
        # An abort may be stamped before the start that its engine reported: no time, a line of zeros.
        ns = pace.share_ns(work.start_ns, work.end_ns) if pace else 0
        mj = energy_mj(load.busy_mw, ns) if load else 0
        overhead = rate_of(mj, *self._overhead)
        cost = load.cost_nano_per_hour if load else None
        return EnergyLine(
            receipt=work.receipt,
            energy_mj=mj,
            energy_nano=supply.bill_nano(mj),
            overhead_mj=overhead,
            overhead_nano=supply.bill_nano(overhead),
            carbon_ug=supply.carbon_ug(mj + overhead),
            slice_ns=ns,
            device_nano=None if cost is None else rate_of(ns, cost, NS_PER_HOUR),
            ended=True,
        )

    def _works(self, now_ns: int) -> Iterator[Work]:
        for ended in self._ended.values():
            yield from ended
        for open_ in self._open.values():
            for work in open_.values():
                yield msgspec.structs.replace(work, end_ns=max(work.start_ns, now_ns))

    def close(self, now_ns: int) -> Interval | None:
        """Close [last close, now) and emit it; None when no time has passed. Open works go on in the next interval."""
        if now_ns <= self._last_ns:
            return None
        for layer, cpu_ns in self._services().items():
            self._cpu_ns[layer] = self._cpu_ns.get(layer, 0) + cpu_ns
        said, late = self._panel.read(self._last_ns, now_ns)
        known = {name: floor.mw(self.state) for name, floor in self._floors.items()}
        said = said._replace(floor_mw={name: mw for name, mw in known.items() if mw is not None})
        # A work said to end after this cut (another clock) is not final yet: its tail belongs to the next interval.
        going = {receipt for open_ in self._open.values() for receipt, _ in open_}
        ended: set[str] = set()
        for works in self._ended.values():
            cut = bisect_right(works, now_ns, key=_end)
            ended.update(work.receipt for work in works[:cut])
            going.update(work.receipt for work in works[cut:])
        works = list(self._works(now_ns))
        booked = _Closed([], works, frozenset(ended - going), self._cpu_ns, said, set(map(_key, works)))
        interval = self._split(booked, self._last_ns, now_ns)
        self._emit(interval)
        self.latest = msgspec.structs.replace(interval, requests=())
        booked.entries.append(interval)
        self._panel.booked(self._last_ns, now_ns)
        self._learn_floors(interval, said, now_ns - self._last_ns)
        if self.site.facility is not None:
            self._overhead = interval.overhead_mj, max(1, interval.meter_mj - interval.overhead_mj)
        self._last_ns, self._cpu_ns = now_ns, {}
        for slice_, works in self._ended.items():
            self._ended[slice_] = works[bisect_right(works, now_ns, key=_end) :]
        self._kept = sum(map(len, self._ended.values()))
        if self._correct is not None:
            self._closed.append(booked)
            self._overdue.update(late)
            self._correct_all(self._correct, going)
            while len(self._closed) > CORRECTABLE or sum(len(each.works) for each in self._closed) > self._works_max:
                self._closed.popleft()
        self._late.clear()
        self._overdue.clear()
        return interval

    def _split(self, of: _Closed, start_ns: int, end_ns: int) -> Interval:
        return close_interval(self.site, start_ns, end_ns, of.works, of.ended, of.cpu_ns, of.said, self._pricing)

    def _learn_floors(self, interval: Interval, said: Readings, ns: int) -> None:
        """The power of each metered server on whose slices nothing ran, without what the gateway took on its own."""
        if any(line.slice_ns for line in interval.requests) or said.seen_permille < 900:
            return
        serving = sum(line.energy_mj for line in interval.services)
        for name, mj in said.servers.items():
            if mj is not None:
                own = mj - (0 if name else serving)
                self._floors.setdefault(name, Floor()).see(self.state, max(0, own) * NS_PER_S // ns)

    def _correct_all(self, correct: Callable[[Interval], None], going: set[str]) -> None:
        """Entries for works and readings that came after their interval had closed. What is too late stays out, and no
        record of a receipt that is ``going`` on elsewhere is final."""
        for at, closed in enumerate(self._closed):
            first, said = closed.entries[0], closed.said
            works = [w for w in self._late if w.start_ns < first.end_ns and w.end_ns > first.start_ns]
            works = [w for w in works if closed.lacks(w)]
            for (level, target), mj in self._overdue.get(first.start_ns, {}).items():
                more: Any = mj if level in ("load", "it") else {**getattr(said, level), target: mj}
                said = said._replace(**{level: more})
            if works or said != closed.said:
                ended = {work.receipt for work in works if closed.ends(work)} - going
                again = closed._replace(works=closed.works + works, said=said, ended=closed.ended | ended)
                again = again._replace(keys=closed.keys.union(map(_key, works)))
                entry = correction(closed.entries, self._split(again, first.start_ns, first.end_ns))
                if entry is not None:
                    correct(entry)
                    closed.entries.append(entry)
                self._closed[at] = again

    async def run(self) -> None:
        """Read the meters, and close an interval whenever it is due, until cancelled; then close once more."""
        reading = asyncio.create_task(self._panel.run(self._clock))
        try:
            while True:
                left_ns = self._last_ns + self._interval_ns + self._lag_ns - self._clock.now_ns()
                if left_ns > 0:
                    await self._clock.sleep(left_ns / NS_PER_S)
                else:
                    try:
                        self.close(self._clock.now_ns() - self._lag_ns)
                    except ExchangeDown:  # the disk is full, say: what is not booked now is booked with the next
                        await self._clock.sleep(RETRY_S)
        except asyncio.CancelledError:
            self.close(self._clock.now_ns())
            raise
        finally:
            reading.cancel()
