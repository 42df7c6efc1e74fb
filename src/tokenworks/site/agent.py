"""The site's agent: it knows which works run, and closes the books of its site interval by interval.

Input and output stay outside: processor time and meter come in through ports, closed intervals leave through ``emit``.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from tokenworks.core.clock import Clock
from tokenworks.core.errors import EngineDown, NotFound
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import EnergyLine, Interval, Work
from tokenworks.site.attribution import close_interval
from tokenworks.site.words import Site

WORKS_MAX = 100_000
_COMPANY = ""
"""All others on the slice as one receipt: an estimate needs one line, and is made for every response."""


def _end(work: Work) -> int:
    return work.end_ns


class SiteAgent:
    """Closes one interval after the other, without gap or overlap: each starts where the last one ended.

    ``services`` returns processor time [ns] per floor since it was last called, ``reading`` the meter's millijoules
    since it was last called (None: no meter). If ``emit`` raises, nothing is forgotten and the interval goes on.
    ``works_max`` bounds the works known at once: reaching it closes the interval early.
    """

    def __init__(
        self,
        site: Site,
        clock: Clock,
        emit: Callable[[Interval], None],
        interval_s: int = 60,
        services: Callable[[], Mapping[str, int]] = dict,
        reading: Callable[[], int | None] = lambda: None,
        works_max: int = WORKS_MAX,
    ) -> None:
        if interval_s < 1 or works_max < 1:
            raise ValueError("an interval lasts at least a second, and at least one work must be known")
        self.site = site
        self._clock = clock
        self._emit = emit
        self._interval_ns = interval_s * NS_PER_S
        self._services = services
        self._reading = reading
        self._works_max = works_max
        self._slices = frozenset(load.slice for load in site.loads)
        self._last_ns = clock.now_ns()
        self._open: dict[str, dict[tuple[str, str], Work]] = {}
        """By slice, then by receipt and replica; ``end_ns`` is not meant yet."""
        self._ended: dict[str, list[Work]] = {}
        """By slice, in the order of their ends."""
        self._cpu_ns: dict[str, int] = {}
        self._meter_mj: int | None = None

    @property
    def last_ns(self) -> int:
        """Where the running interval began."""
        return self._last_ns

    def known(self) -> int:
        """Works known now, open and ended."""
        return sum(map(len, self._open.values())) + sum(map(len, self._ended.values()))

    def resume(self, last_end_ns: int, works: Iterable[Work]) -> None:
        """After a restart: go on from the last closed interval, with the works that were settled since."""
        self._last_ns = last_end_ns
        for work in works:
            self._keep(work)

    def begin(self, receipt: str, replica: str, slice: str, start_ns: int) -> None:  # noqa: A002 - the field's own word
        """A request was dispatched. Until its work ends it is taken to hold its slice from ``start_ns`` on.

        Raises NotFound for a slice that is not of this site, EngineDown when too many works are open.
        """
        if slice not in self._slices:
            raise NotFound(f"site {self.site.name} has no slice {slice!r}")
        self._make_room()
        if sum(map(len, self._open.values())) >= self._works_max:
            raise EngineDown(f"site {self.site.name} already runs {self._works_max:,} works")
        work = Work(
            receipt=receipt,
            replica=replica,
            site=self.site.name,
            slice=slice,
            start_ns=start_ns,
            first_ns=None,
            end_ns=start_ns,
            input_tokens=0,
            output_tokens=0,
        )
        # A second dispatch without an end between does not shorten the time since the first.
        self._open.setdefault(slice, {}).setdefault((receipt, replica), work)

    def end(self, work: Work) -> None:
        """A request's work ended: this replaces the open one."""
        self._open.get(work.slice, {}).pop((work.receipt, work.replica), None)
        self._keep(work)
        self._make_room()

    def forget(self, receipt: str, replica: str, slice: str) -> None:  # noqa: A002 - as above
        """A dispatch came to nothing: the request did no work there. Forgetting what is not known does nothing."""
        self._open.get(slice, {}).pop((receipt, replica), None)

    def _keep(self, work: Work) -> None:
        insort(self._ended.setdefault(work.slice, []), work, key=_end)

    def _make_room(self) -> None:
        if self.known() >= self._works_max and any(self._ended.values()):
            self.close(self._clock.now_ns())

    def estimate(self, work: Work) -> EnergyLine:
        """The line of this work if the interval were [work.start, work.end], modelled, with the company known now."""
        mates = [other for key, other in self._open.get(work.slice, {}).items() if key != (work.receipt, work.replica)]
        company = [msgspec.structs.replace(other, end_ns=work.end_ns, receipt=_COMPANY) for other in mates]
        ended = self._ended.get(work.slice, [])
        later = ended[bisect_right(ended, work.start_ns, key=_end) :]
        company += [msgspec.structs.replace(other, receipt=_COMPANY) for other in later if other != work]
        # An abort may be stamped before the start that its engine reported: no time, a line of zeros.
        end_ns = max(work.start_ns, work.end_ns)
        interval = close_interval(
            self.site, work.start_ns, end_ns, [work, *company], frozenset({work.receipt}), {}, None
        )
        return next(line for line in interval.requests if line.receipt == work.receipt)

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
        reading = self._reading()
        if reading is not None:
            self._meter_mj = (self._meter_mj or 0) + reading
        # A work said to end after this cut (another clock) is not final yet: its tail belongs to the next interval.
        going = {receipt for open_ in self._open.values() for receipt, _ in open_}
        ended: set[str] = set()
        for works in self._ended.values():
            cut = bisect_right(works, now_ns, key=_end)
            ended.update(work.receipt for work in works[:cut])
            going.update(work.receipt for work in works[cut:])
        interval = close_interval(
            self.site,
            self._last_ns,
            now_ns,
            list(self._works(now_ns)),
            frozenset(ended - going),
            self._cpu_ns,
            self._meter_mj,
        )
        self._emit(interval)
        self._last_ns, self._cpu_ns, self._meter_mj = now_ns, {}, None
        for slice_, works in self._ended.items():
            self._ended[slice_] = works[bisect_right(works, now_ns, key=_end) :]
        return interval

    async def run(self) -> None:
        """Close an interval whenever it is due, until cancelled; then close once more."""
        try:
            while True:
                left_ns = self._last_ns + self._interval_ns - self._clock.now_ns()
                if left_ns > 0:
                    await self._clock.sleep(left_ns / NS_PER_S)
                else:
                    self.close(self._clock.now_ns())
        except asyncio.CancelledError:
            self.close(self._clock.now_ns())
            raise
