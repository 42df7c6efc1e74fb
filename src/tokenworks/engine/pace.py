"""Streams that come faster than tokens are made are read a little more rarely: what came meanwhile is one packet.

A packet costs the gateway, its client and the kernel more than the events in it. Engines that catch up, and other
gateways, hand on many events within a millisecond; tokens that are made take longer, and are never held back.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

PACE_S = 0.002
"""A stream whose packets come closer together than this is read again after this time."""
BY_BUFFER, BY_CLIENT, BY_HOLD, BY_PACE = 1, 2, 4, 8
"""Why a socket is not read: our buffer is full, the client is slow, the hold must grow first, it was read just now."""


class Paced(Protocol):
    """A connection that can be left unread."""

    def pause(self, why: int) -> None: ...
    def resume(self, why: int) -> None: ...


class Pace:
    """Lets the streams of one pool that came too fast be read again, all at the same time."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Paced] = []

    def too_fast(self, before: float, now: float) -> bool:
        """Whether packets at these two times, in seconds, are too close together."""
        return now < before + PACE_S

    def slow(self, connection: Paced, loop: asyncio.AbstractEventLoop) -> None:
        """Read no more of it until the next time."""
        connection.pause(BY_PACE)
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            loop.call_later(PACE_S, self._again)

    def _again(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.resume(BY_PACE)
