"""Keeps the event loop from sleeping for a moment after a request came or ended: the next thing is then not far.

A processor that sleeps takes longer to wake than a short answer takes to make. An idle gateway sleeps.
"""

from __future__ import annotations

import asyncio

from tokenworks.core.clock import Clock

AWAKE_NS = 100_000
ROUNDS_MAX = 200
"""Of the event loop, whatever the clock says."""


class Awake:
    """One for each event loop."""

    __slots__ = ("_clock", "_on", "_rounds", "_until_ns")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._on = False
        self._rounds = self._until_ns = 0

    def stir(self, loop: asyncio.AbstractEventLoop) -> None:
        """Something happened: look for what follows without sleeping, for ``AWAKE_NS`` at most."""
        self._until_ns, self._rounds = self._clock.now_ns() + AWAKE_NS, 0
        if not self._on:
            self._on = True
            loop.call_soon(self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._rounds += 1
        if self._rounds < ROUNDS_MAX and self._clock.now_ns() < self._until_ns:
            loop.call_soon(self._look, loop)
        else:
            self._on = False
