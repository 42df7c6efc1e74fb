"""How much of a slice a request has had so far, kept up as requests come and go: an answer in microseconds.

The clock of ``attribution.shares``, live: it runs at 1/n while n works run, so a work's share of a time is how far the
clock moved in it. Works are seen from their dispatch on, and in the order in which they are told.
"""

from __future__ import annotations

from bisect import bisect_right

from tokenworks.site.attribution import FINE

EDGES_MAX = 65_536


class Pace:
    """The fair-share clock of one slice. Times before its oldest edge count as that edge."""

    def __init__(self) -> None:
        self._at_ns = [0]
        self._ticks = [0]
        self._running = [0]

    def step(self, now_ns: int, change: int) -> None:
        """A work began (1) or ended (-1)."""
        now_ns = max(now_ns, self._at_ns[-1])
        self._ticks.append(self._moved(now_ns))
        self._at_ns.append(now_ns)
        self._running.append(max(0, self._running[-1] + change))
        if len(self._at_ns) > EDGES_MAX:
            for history in (self._at_ns, self._ticks, self._running):
                del history[: EDGES_MAX // 2]

    def _moved(self, instant_ns: int) -> int:
        i = bisect_right(self._at_ns, instant_ns) - 1
        if i < 0:
            return self._ticks[0]
        running = self._running[i]
        return self._ticks[i] + ((instant_ns - self._at_ns[i]) * FINE // running if running else 0)

    def busy_ns(self, start_ns: int, end_ns: int) -> int:
        """How long anything ran in [start, end)."""
        busy, i = 0, max(0, bisect_right(self._at_ns, start_ns) - 1)
        edges = [*self._at_ns[i:], end_ns]
        for begin, finish, running in zip(edges, edges[1:], self._running[i:], strict=False):
            busy += max(0, min(finish, end_ns) - max(begin, start_ns)) if running else 0
        return busy

    def share_ns(self, start_ns: int, end_ns: int) -> int:
        """A work's share of the slice over its time."""
        return (self._moved(end_ns) - self._moved(start_ns)) // FINE if end_ns > start_ns else 0
