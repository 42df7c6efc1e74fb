"""What a driver concludes from looking at a replica again and again: silence, lies, idleness. No effects."""

from __future__ import annotations

from tokenworks.core.units import NS_PER_S
from tokenworks.engine.adapter import Load

LIES_MAX = 5
"""Looks in a row at which an engine may claim less than half of the requests that we have with it. One or two are the
lag of its page; more can also be a client that reads slowly, which costs nothing but the engine's own figures.
"""


class Silence:
    """How long an engine that owes answers has sent no byte of any."""

    def __init__(self) -> None:
        self._heard: int | None = None
        self._since_ns = 0

    def lasts_s(self, heard: int | None, now_ns: int) -> float:
        """``heard`` as ``Engine.heard`` says it now."""
        if heard is None or heard != self._heard:
            self._heard, self._since_ns = heard, now_ns
        return (now_ns - self._since_ns) / NS_PER_S


class Idleness:
    """How long a replica has had no request."""

    def __init__(self, served: int, now_ns: int) -> None:
        self._served, self._since_ns = served, now_ns

    def lasts_ns(self, running: int, served: int, now_ns: int) -> int:
        """``served`` counts requests that have ended: none ran between two looks when it stands still."""
        if running or served != self._served:
            self._served, self._since_ns = served, now_ns
        return now_ns - self._since_ns


class Doubt:
    """Whether an engine's own figures can be true beside our count of the requests that we have with it."""

    def __init__(self) -> None:
        self._before = 0
        self._lies = 0

    def about(self, load: Load | None, running: int) -> str | None:
        """Why they are not believed; None: they may be true."""
        ours, self._before = min(running, self._before), running  # those that were there at both looks, at most
        if load is None or load.running is None:
            return None
        claimed = load.running + (load.waiting or 0)
        self._lies = self._lies + 1 if 2 * claimed < ours else 0
        if self._lies < LIES_MAX:
            return None
        return f"its metrics say {claimed} requests, {ours} are with it; they are not believed"
