"""Two clocks, one house: everything that needs the time or waits asks a Clock."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The port: wall time for what is written down, and a sleep. Durations are differences of ``now_ns``."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970, UTC; never runs backwards within one clock."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class WallClock:
    """The live clock: monotonic time anchored once to UTC, so stepping the system clock is harmless."""

    def __init__(self, anchor_ns: int | None = None) -> None:
        self.anchor_ns = time.time_ns() - time.monotonic_ns() if anchor_ns is None else anchor_ns
        """UTC less monotonic time. Processes of one machine that share it tell the same time."""

    def now_ns(self) -> int:
        return self.anchor_ns + time.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that moves only when told to, for tests and for the twin."""

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance(self, seconds: float) -> None:
        """Move forward; negative steps are refused because time in the books never runs backwards."""
        if seconds < 0:
            raise ValueError("a clock cannot be moved back")
        self._now_ns += round(seconds * 1e9)

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)


def utc_text(ns: int) -> str:
    """``2026-11-21T03:46:00.123Z``."""
    return (
        datetime.fromtimestamp(ns // 1_000_000 / 1e3, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
